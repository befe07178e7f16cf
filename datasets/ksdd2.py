"""KolektorSDD2: one kind of surface from a line-scan camera, with scratches, spots and pores of all sizes.

Owner: ViCoS lab, University of Ljubljana, and Kolektor Group (Bozic et al., Computers in Industry 2021),
https://www.vicos.si/resources/kolektorsdd2/. License CC BY-NC-SA 4.0: no commercial use. 3335 images of about
230 x 630 pixels, PNG, 0.9 GB.

Layout, as unpacked: `train/NNNNN.png` with its mask `train/NNNNN_GT.png`, and the same in `test/`. The mask of a good
image is black. Only the mask gives the label of an image, so the masks are opened when the samples are
listed. The 246 defective images in `train/` are not used, because methods are fitted on good images only. The
duplicates `train/10301 (copy).png` and `train/10301_GT (copy).png` in the archive are skipped.
"""

from pathlib import Path

from PIL import Image

from bench.dataset import GOOD, Download, Sample, Split
from bench.errors import BenchError

from .parts.files import check_root, image_files, join_names, log
from .parts.layout import Counts, warn_count_mismatch

TITLE = "KolektorSDD2"
SYNTHETIC = False
ABOUT = (
    "KolektorSDD2, CC BY-NC-SA 4.0, 0.9 GB, from https://www.vicos.si/resources/kolektorsdd2/; unpacked it has "
    "train/10000.png, train/10000_GT.png and the same in test/"
)

DOWNLOAD = Download(
    page="https://www.vicos.si/resources/kolektorsdd2/",
    license="CC BY-NC-SA 4.0",
    license_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
    url="https://go.vicos.si/kolektorsdd2",
    file="KolektorSDD2.zip",
    sha256="",
    source="public download scripts; neither the address nor a checksum was verified",
    max_bytes=3_000_000_000,
    max_unpacked_bytes=6_000_000_000,
)

CATEGORY = "kolektorsdd2"
COUNTS = {CATEGORY: Counts(2085, 894, 110)}  # from the paper; without the 246 defective images of train/
DEFECT = "defect"


def samples(root: Path) -> list[Sample]:
    """List the good images of train/ and all images of test/.

    Logs a warning if counts differ from the official ones and for images without a mask. Raises BenchError if train/
    or test/ has no usable image, or a mask is unreadable.
    """
    hint = f"Unpack it there or pass its folder with --data DIR ({ABOUT})."
    check_root(root, TITLE, hint)
    train, test = _list_split(root, "train"), _list_split(root, "test")
    good = [sample for sample in train if not sample.is_anomalous]
    if not good or not test:
        missing = "train/ has no good image with a mask" if not good else "test/ has no image with a mask"
        raise BenchError(f"{TITLE} needs training and test images; in {root}, {missing}. {hint}")
    if len(train) > len(good):
        log.warning("%s: %d defective images of train/ are not used, because methods are fitted on good images only.",
                    TITLE, len(train) - len(good))  # fmt: skip
    used = sorted(good + test, key=lambda sample: (sample.split == "test", sample.defect, sample.image.name))
    warn_count_mismatch(used, TITLE, COUNTS)
    return used


def _list_split(root: Path, split: Split) -> list[Sample]:
    files = {path.stem: path for path in image_files(root / split) if "(copy)" not in path.name}
    masks = {stem.removesuffix("_GT"): path for stem, path in files.items() if stem.endswith("_GT")}
    images = {stem: path for stem, path in files.items() if not stem.endswith("_GT")}
    unmasked = [path.name for stem, path in images.items() if stem not in masks]
    if unmasked:
        log.warning("%s: %d images of %s/ have no mask, which is needed for their label, and are not used: %s.",
                    TITLE, len(unmasked), split, join_names(unmasked))  # fmt: skip
    split_samples = []
    for stem, path in images.items():
        if stem in masks:
            is_anomalous = _has_defect(masks[stem])
            image_masks = (masks[stem],) if is_anomalous else ()
            split_samples.append(Sample(path, CATEGORY, split, DEFECT if is_anomalous else GOOD, image_masks))
    return split_samples


def _has_defect(mask: Path) -> bool:
    """Return whether any pixel of the mask is not black."""
    try:
        with Image.open(mask, formats=["PNG"]) as image:
            return image.convert("L").getbbox() is not None
    except Exception as error:  # Pillow may raise any type
        raise BenchError(f"A mask must be a readable image; {mask} is not: {error}. Fix or remove it.") from error
