"""MVTec AD: 15 products, good images to train on, 73 kinds of defects with masks.

Owner: MVTec Software GmbH, https://www.mvtec.com/company/research/datasets/mvtec-ad (Bergmann et al., CVPR 2019 and
IJCV 2021). Licence CC BY-NC-SA 4.0: no commercial use. 4.9 GB, PNG, 700 to 1024 pixels square.

Layout, as unpacked: `<category>/train/good/NNN.png`, `<category>/test/<defect>/NNN.png` and
`<category>/ground_truth/<defect>/NNN_mask.png`. Copies in other formats (JPEG) are read alike.
"""

from pathlib import Path

from bench.dataset import Sample

from .parts.layout import Counts, official

TITLE = "MVTec AD"
SYNTHETIC = False
ABOUT = (
    "MVTec AD, CC BY-NC-SA 4.0, 4.9 GB, from https://www.mvtec.com/company/research/datasets/mvtec-ad; unpacked it has "
    "folders as bottle/train/good/, bottle/test/<defect>/ and bottle/ground_truth/<defect>/"
)

COUNTS = {  # train, test good, test defective; from the file lists in zhiyuanyou/UniAD, 3629 + 467 + 1258 in all
    "bottle": Counts(209, 20, 63),
    "cable": Counts(224, 58, 92),
    "capsule": Counts(219, 23, 109),
    "carpet": Counts(280, 28, 89),
    "grid": Counts(264, 21, 57),
    "hazelnut": Counts(391, 40, 70),
    "leather": Counts(245, 32, 92),
    "metal_nut": Counts(220, 22, 93),
    "pill": Counts(267, 26, 141),
    "screw": Counts(320, 41, 119),
    "tile": Counts(230, 33, 84),
    "toothbrush": Counts(60, 12, 30),
    "transistor": Counts(213, 60, 40),
    "wood": Counts(247, 19, 60),
    "zipper": Counts(240, 32, 119),
}


def samples(root: Path) -> list[Sample]:
    """The categories found in `root`, or the one that `root` is; BenchError where there is none.

    Warns where categories are absent and where counts differ from the official ones.
    """
    return official(root, TITLE, COUNTS, f"Unpack it there or say where with --data DIR ({ABOUT}).")
