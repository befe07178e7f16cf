"""MVTec LOCO AD: five products with structural and logical anomalies, as a part too many or in the wrong place.

Owner: MVTec Software GmbH, https://www.mvtec.com/company/research/datasets/mvtec-loco (Bergmann et al., IJCV 2022).
Licence CC BY-NC-SA 4.0: no commercial use. About 6 GB, PNG, 800 to 1700 pixels a side.

Layout, as unpacked: `<category>/{train,validation,test}/good/NNN.png`, `<category>/test/logical_anomalies/NNN.png`,
`.../structural_anomalies/NNN.png`, and for each of these a folder of masks, one a defect, as
`<category>/ground_truth/<kind>/NNN/{000,001,...}.png`. They are united here: the data set's own metric, sPRO, which
saturates on the single regions, is not what maskbench computes. `validation/` (305 images) is left out, and said so.
"""

from pathlib import Path

from bench.dataset import Sample

from .parts.layout import Counts, folders, images, left_out, official

TITLE = "MVTec LOCO AD"
SYNTHETIC = False
ABOUT = (
    "MVTec LOCO AD, CC BY-NC-SA 4.0, about 6 GB, from https://www.mvtec.com/company/research/datasets/mvtec-loco; "
    "unpacked it has folders as pushpins/train/good/, pushpins/test/logical_anomalies/ and "
    "pushpins/ground_truth/logical_anomalies/000/"
)

# Train, test good, test defective. [M] By category from recollection; the sums 1778, 575 and 993 are those of the
# unpacked archive (the paper's text says 1772 to train on).
COUNTS = {
    "breakfast_box": Counts(351, 102, 173),
    "juice_bottle": Counts(335, 94, 236),
    "pushpins": Counts(372, 138, 172),
    "screw_bag": Counts(360, 122, 219),
    "splicing_connectors": Counts(360, 119, 193),
}


def samples(root: Path) -> list[Sample]:
    """The categories found in `root`, or the one that `root` is; BenchError where there is none.

    Warns where categories are absent, where counts differ from the official ones, and of `validation/`.
    """
    found = official(root, TITLE, COUNTS, f"Unpack it there or say where with --data DIR ({ABOUT}).", masks=_masks)
    left_out(found, TITLE, "validation")
    return found


def _masks(folder: Path, defect: str) -> dict[str, tuple[Path, ...]]:
    found = {path.name: tuple(images(path)) for path in folders(folder / "ground_truth" / defect)}
    return {stem: paths for stem, paths in found.items() if paths}
