"""MVTec 3D-AD: ten products in colour and depth, of which the colour images are used here.

Owner: MVTec Software GmbH, https://www.mvtec.com/company/research/datasets/mvtec-3d-ad (Bergmann et al., VISAPP 2022).
Licence CC BY-NC-SA 4.0: no commercial use. About 13 GB, nearly all of it depth.

Layout, as unpacked: `<category>/{train,validation,test}/<defect>/{rgb,gt,xyz}/NNN.{png,png,tiff}`. Images come from
`rgb/`, masks from `gt/`; `xyz/` is not read. Good images have masks too, all black, which are not needed.
`validation/` (294 images) is left out, and said so.
"""

from pathlib import Path

from bench.dataset import Sample

from .parts.layout import Counts, images, left_out, official

TITLE = "MVTec 3D-AD (colour)"
SYNTHETIC = False
ABOUT = (
    "MVTec 3D-AD, CC BY-NC-SA 4.0, about 13 GB, from https://www.mvtec.com/company/research/datasets/mvtec-3d-ad; "
    "unpacked it has folders as tire/train/good/rgb/, tire/test/<defect>/rgb/ and tire/test/<defect>/gt/"
)

# Train, test good, test defective. [M] By category from recollection; their sums 2656, 249 and 948 are the paper's.
COUNTS = {
    "bagel": Counts(244, 22, 88),
    "cable_gland": Counts(223, 21, 87),
    "carrot": Counts(286, 27, 132),
    "cookie": Counts(210, 28, 103),
    "dowel": Counts(288, 26, 104),
    "foam": Counts(236, 20, 80),
    "peach": Counts(361, 26, 106),
    "potato": Counts(300, 22, 92),
    "rope": Counts(298, 32, 69),
    "tire": Counts(210, 25, 87),
}


def samples(root: Path) -> list[Sample]:
    """The categories found in `root`, or the one that `root` is; BenchError where there is none.

    Warns where categories are absent, where counts differ from the official ones, and of `validation/`.
    """
    mend = f"Unpack it there or say where with --data DIR ({ABOUT})."
    found = official(root, TITLE, COUNTS, mend, inner="rgb", masks=_masks)
    left_out(found, TITLE, "validation")
    return found


def _masks(folder: Path, defect: str) -> dict[str, tuple[Path, ...]]:
    return {path.stem: (path,) for path in images(folder / "test" / defect / "gt")}
