"""MVTec 3D-AD: ten products as color and depth images; only the color images are used.

Owner: MVTec Software GmbH, https://www.mvtec.com/company/research/datasets/mvtec-3d-ad (Bergmann et al., VISAPP 2022).
License CC BY-NC-SA 4.0: no commercial use. About 13 GB, most of it depth.

Layout, as unpacked: `<category>/{train,validation,test}/<defect>/{rgb,gt,xyz}/NNN.{png,png,tiff}`. Images come from
`rgb/`, masks from `gt/`; `xyz/` is not read. The masks of good images, which are black, are not used. `validation/`
(294 images) is not used; a warning states it.
"""

from pathlib import Path

from bench.dataset import Sample

from .parts.files import image_files
from .parts.layout import Counts, Folders, list_official, warn_unused_split

TITLE = "MVTec 3D-AD (color)"
SYNTHETIC = False
ABOUT = (
    "MVTec 3D-AD, CC BY-NC-SA 4.0, about 13 GB, from https://www.mvtec.com/company/research/datasets/mvtec-3d-ad; "
    "unpacked it has the folders tire/train/good/rgb/, tire/test/<defect>/rgb/, tire/test/<defect>/gt/ and so on"
)

# Training, good test, defective test images. The counts per category were not verified against the data; their sums
# 2656, 249 and 948 are those in the paper.
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
    """List the categories in `root`, or `root` itself if it is a category.

    Logs a warning if categories are missing, if counts differ from the official ones, and if there is a `validation/`.
    Raises BenchError if there is no category.
    """
    hint = f"Unpack it there or pass its folder with --data DIR ({ABOUT})."
    samples = list_official(root, TITLE, COUNTS, hint, Folders(images="rgb", masks=_find_masks))
    warn_unused_split(samples, TITLE, "validation")
    return samples


def _find_masks(folder: Path, defect: str) -> dict[str, tuple[Path, ...]]:
    return {path.stem: (path,) for path in image_files(folder / "test" / defect / "gt")}
