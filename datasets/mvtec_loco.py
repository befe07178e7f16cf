"""MVTec LOCO AD: five products with structural and logical anomalies, such as an extra or a misplaced part.

Owner: MVTec Software GmbH, https://www.mvtec.com/company/research/datasets/mvtec-loco (Bergmann et al., IJCV 2022).
License CC BY-NC-SA 4.0: no commercial use. About 6 GB, PNG, 800 to 1700 pixels a side.

Layout, as unpacked: `<category>/{train,validation,test}/good/NNN.png`, `<category>/test/logical_anomalies/NNN.png`,
`.../structural_anomalies/NNN.png`, and for each defective image a folder with one mask per defect,
`<category>/ground_truth/<defect>/NNN/{000,001,...}.png`. The pixel value of a mask is the type of its defect, for which
`<category>/defects_config.json` has the saturation area of sPRO: pixels of the original image, or a fraction of the
region (source: a public re-implementation). Without that file, sPRO is undefined. The other pixel metrics use the union
of the masks. `validation/` (305 images) is not used; a warning states it.
"""

import json
from dataclasses import replace
from pathlib import Path

from bench.dataset import Sample
from bench.errors import BenchError

from .parts.files import log
from .parts.layout import Counts, Folders, list_official, warn_unused_split
from .parts.masks import folder_per_image

TITLE = "MVTec LOCO AD"
SYNTHETIC = False
ABOUT = (
    "MVTec LOCO AD, CC BY-NC-SA 4.0, about 6 GB, from https://www.mvtec.com/company/research/datasets/mvtec-loco; "
    "unpacked it has the folders pushpins/train/good/, pushpins/test/logical_anomalies/, "
    "pushpins/ground_truth/logical_anomalies/000/ and so on"
)

# Training, good test, defective test images. The counts per category were not verified against the data; their sums
# 1778, 575 and 993 are those of the unpacked archive (the paper has 1772 training images).
COUNTS = {
    "breakfast_box": Counts(351, 102, 173),
    "juice_bottle": Counts(335, 94, 236),
    "pushpins": Counts(372, 138, 172),
    "screw_bag": Counts(360, 122, 219),
    "splicing_connectors": Counts(360, 119, 193),
}


def samples(root: Path) -> list[Sample]:
    """List the categories in `root`, or `root` itself if it is a category.

    Logs a warning if categories are missing, if counts differ from the official ones, and if there is a `validation/`.
    Raises BenchError if there is no category.
    """
    hint = f"Unpack it there or pass its folder with --data DIR ({ABOUT})."
    samples = list_official(root, TITLE, COUNTS, hint, Folders(masks=folder_per_image))
    warn_unused_split(samples, TITLE, "validation")
    folders = {
        sample.category: next(parent for parent in sample.image.parents if (parent / "train").is_dir())
        for sample in samples
    }
    saturations = {category: _read_saturations(folder) for category, folder in folders.items()}
    return [
        replace(sample, saturations=saturations[sample.category]) if sample.is_anomalous else sample
        for sample in samples
    ]


def _read_saturations(folder: Path) -> tuple[tuple[int, float, bool], ...]:
    """Return `Sample.saturations` of a category; empty, with a warning, if its configuration is missing."""
    path = folder / "defects_config.json"
    if not path.is_file():
        log.warning("%s: %s is missing, so sPRO is undefined. Unpack the dataset again.", folder.name, path.name)
        return ()
    try:
        return tuple(
            (int(entry["pixel_value"]), float(entry["saturation_threshold"]), bool(entry["relative_saturation"]))
            for entry in json.loads(path.read_text(encoding="utf-8"))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} must be a list of defects with pixel_value, saturation_threshold and relative_saturation "
            f"({type(error).__name__}: {error}). Unpack the dataset again."
        ) from error
