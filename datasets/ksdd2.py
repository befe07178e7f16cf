"""KolektorSDD2: one surface, seen by a line of cameras, with scratches, spots and pores from barely visible to large.

Owner: ViCoS lab, University of Ljubljana, and Kolektor Group (Bozic et al., Computers in Industry 2021),
https://www.vicos.si/resources/kolektorsdd2/. Licence CC BY-NC-SA 4.0: no commercial use. 3335 images of about
230 x 630 pixels, PNG, 0.9 GB.

Layout, as unpacked: `train/NNNNN.png` with its mask `train/NNNNN_GT.png`, and the same in `test/`. The mask of a good
image is all black: what an image shows is known from its mask alone, so these are opened when the samples are listed.
The 246 defective images in `train/` are left out, as methods learn from good images only. The archive's stray copies
`train/10301 (copy).png` and `train/10301_GT (copy).png` are passed over.
"""

from pathlib import Path

from PIL import Image

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError

from .parts.layout import Counts, check_root, compare, images, listed, log

TITLE = "KolektorSDD2"
SYNTHETIC = False
ABOUT = (
    "KolektorSDD2, CC BY-NC-SA 4.0, 0.9 GB, from https://www.vicos.si/resources/kolektorsdd2/; unpacked it has "
    "train/10000.png, train/10000_GT.png and the same in test/"
)

CATEGORY = "kolektorsdd2"
COUNTS = {CATEGORY: Counts(2085, 894, 110)}  # the paper; 246 defective images of train/ are not among them
DEFECT = "defect"


def samples(root: Path) -> list[Sample]:
    """The good images of train/ and all of test/; BenchError where `root` does not hold both, or a mask is unreadable.

    Warns where counts differ from the official ones, and of images without a mask.
    """
    mend = f"Unpack it there or say where with --data DIR ({ABOUT})."
    check_root(root, TITLE, mend)
    train, test = _split(root, "train"), _split(root, "test")
    good = [sample for sample in train if not sample.is_anomalous]
    if not good or not test:
        lacking = "train/ has no good image with a mask" if not good else "test/ has no image with a mask"
        raise BenchError(f"{TITLE} needs images to train and to test on; in {root}, {lacking}. {mend}")
    if len(train) > len(good):
        log.warning("%s: %d defective images of train/ are left out, as methods learn from good images only.",
                    TITLE, len(train) - len(good))  # fmt: skip
    found = sorted(good + test, key=lambda sample: (sample.split == "test", sample.defect, sample.image.name))
    compare(found, TITLE, COUNTS)
    return found


def _split(root: Path, split: Split) -> list[Sample]:
    files = {path.stem: path for path in images(root / split) if "(copy)" not in path.name}
    masks = {stem.removesuffix("_GT"): path for stem, path in files.items() if stem.endswith("_GT")}
    shown = {stem: path for stem, path in files.items() if not stem.endswith("_GT")}
    bare = [path.name for stem, path in shown.items() if stem not in masks]
    if bare:
        log.warning("%s: %d images of %s/ have no mask, which alone would say whether they are good; left out: %s.",
                    TITLE, len(bare), split, listed(bare))  # fmt: skip
    found = []
    for stem, path in shown.items():
        if stem in masks:
            defective = _any(masks[stem])
            masked = (masks[stem],) if defective else ()
            found.append(Sample(path, CATEGORY, split, DEFECT if defective else GOOD, masked))
    return found


def _any(mask: Path) -> bool:
    """Whether any pixel of the mask is not black."""
    try:
        with Image.open(mask) as opened:
            return opened.convert("L").getbbox() is not None
    except Exception as error:  # Pillow may raise anything
        raise BenchError(f"A mask must be a whole image; {mask} is not: {error}. Mend or remove it.") from error
