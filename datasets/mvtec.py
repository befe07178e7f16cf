"""MVTec AD: 15 products with good training images and 73 defect types with masks.

Owner: MVTec Software GmbH, https://www.mvtec.com/company/research/datasets/mvtec-ad (Bergmann et al., CVPR 2019 and
IJCV 2021). License CC BY-NC-SA 4.0: no commercial use. 4.9 GB, PNG, 700 to 1024 pixels square.

Layout, as unpacked: `<category>/train/good/NNN.png`, `<category>/test/<defect>/NNN.png` and
`<category>/ground_truth/<defect>/NNN_mask.png`. Copies in other formats (JPEG) are read as well.
"""

from pathlib import Path

from bench.dataset import Download, Sample

from .parts.layout import Counts, list_official

TITLE = "MVTec AD"
SYNTHETIC = False
ABOUT = (
    "MVTec AD, CC BY-NC-SA 4.0, 4.9 GB, from https://www.mvtec.com/company/research/datasets/mvtec-ad; unpacked it has "
    "the folders bottle/train/good/, bottle/test/<defect>/, bottle/ground_truth/<defect>/ and so on"
)

DOWNLOAD = Download(
    page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
    license="CC BY-NC-SA 4.0",
    license_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
    url="https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/"
    "mvtec_anomaly_detection.tar.xz",
    file="mvtec_anomaly_detection.tar.xz",
    sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
    source="anomalib 2.7.0, anomalib/data/datamodules/image/mvtecad.py; not verified with the archive",
    max_bytes=8_000_000_000,
    max_unpacked_bytes=16_000_000_000,
)

# Training, good test, defective test images, from the file lists in zhiyuanyou/UniAD; in total 3629, 467 and 1258.
COUNTS = {
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
    """List the categories in `root`, or `root` itself if it is a category.

    Logs a warning if categories are missing or counts differ from the official ones. Raises BenchError if there is no
    category.
    """
    return list_official(root, TITLE, COUNTS, f"Unpack it there or pass its folder with --data DIR ({ABOUT}).")
