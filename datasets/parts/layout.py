"""The layout that most inspection data sets share: `<category>/{train,test,ground_truth}/<defect>/<image>`.

No image is opened. Folders are searched to a fixed depth, so links to a parent folder are harmless. Hidden files and
files without an image extension are skipped.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    (".bmp", ".dib", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif")
) | {".tiff", ".webp"}


FindMasks = Callable[[Path, str], dict[str, tuple[Path, ...]]]
"""Function of (folder of a category, defect): the mask files by the stem of their image, with or without "_mask"."""


class Counts(NamedTuple):
    """Number of images of a category: training, good test and defective test images."""

    train: int
    good: int
    defective: int

    def __str__(self) -> str:
        return f"{self.train} training, {self.good} good test and {self.defective} defective test images"


def check_root(root: Path, title: str, hint: str) -> None:
    """Raise BenchError, ending with `hint`, unless `root` is a folder."""
    if not root.exists():
        raise BenchError(f"{title} needs its folder; {root} does not exist. {hint}")
    if not root.is_dir():
        raise BenchError(f"{title} needs a folder; {root} is a file. {hint}")


def mvtec_masks(folder: Path, defect: str) -> dict[str, tuple[Path, ...]]:
    """Return the masks in the layout of MVTec AD: `ground_truth/<defect>/<stem>_mask.*` or `<stem>.*`."""
    return {path.stem: (path,) for path in image_files(folder / "ground_truth" / defect)}


def list_official(
    root: Path,
    title: str,
    counts: Mapping[str, Counts],
    hint: str,
    *,
    good: str = GOOD,
    image_folder: str = "",
    masks: FindMasks = mvtec_masks,
) -> list[Sample]:
    """List a published data set. Logs a warning if categories are missing or counts differ from the official ones.

    Args:
        root: folder of the categories, or of a single category.
        title: name of the data set in messages.
        counts: the official counts by category.
        hint: how to get the data set; the end of every error.
        good: name of the folders of good images.
        image_folder: folder of the images within the folder of each defect; "" if they are directly in it.
        masks: finds the masks.

    Raises:
        BenchError: no category exists, or none has training and test images.
    """
    check_root(root, title, hint)
    is_category = root.resolve().name in counts and (root / "train").is_dir()
    present = [root.resolve()] if is_category else [path for path in subfolders(root) if path.name in counts]
    if not present:
        raise BenchError(
            f"{title} needs a folder per category ({join_names(sorted(counts))}); {root} has none of them, it has "
            f"{describe_folder(root)}. {hint}"
        )
    samples = list_categories(present, title, hint, good=good, image_folder=image_folder, masks=masks)
    warn_count_mismatch(samples, title, counts)
    return samples


def warn_count_mismatch(samples: list[Sample], title: str, counts: Mapping[str, Counts]) -> None:
    """Log a warning for each category whose counts differ from the official ones, and one for missing categories."""
    for name in sorted({sample.category for sample in samples}):
        members = [sample for sample in samples if sample.category == name]
        actual = Counts(
            sum(sample.split == "train" for sample in members),
            sum(sample.split == "test" and not sample.is_anomalous for sample in members),
            sum(sample.is_anomalous for sample in members),
        )
        if actual != counts[name]:
            log.warning("%s: expected %s; the folder has %s.", name, counts[name], actual)
    missing = sorted(set(counts) - {sample.category for sample in samples})
    if missing:
        log.warning("%s: %d of %d categories are missing: %s.", title, len(missing), len(counts), join_names(missing))


def warn_unused_split(samples: list[Sample], title: str, split: str) -> None:
    """Log a warning if categories have the folder `split` beside train/ and test/, which is not used."""
    images = {sample.category: sample.image for sample in samples}
    unused = [
        category
        for category, image in sorted(images.items())
        if any(parent.name == category and (parent / split).is_dir() for parent in image.parents)
    ]
    if unused:
        log.warning("%s: %s/ is not used (%s); methods are fitted on train/ only.", title, split, join_names(unused))


def list_categories(
    folders: Iterable[Path],
    title: str,
    hint: str,
    *,
    good: str = GOOD,
    image_folder: str = "",
    masks: FindMasks = mvtec_masks,
) -> list[Sample]:
    """List several categories, sorted by name. One without training or test images is skipped with a warning.

    Raises:
        BenchError: no category has training and test images.
    """
    samples: list[Sample] = []
    incomplete: list[str] = []
    for folder in sorted(folders, key=lambda path: path.name):
        members = list_category(folder, good=good, image_folder=image_folder, masks=masks)
        missing = {"train", "test"} - {sample.split for sample in members}
        if not missing:
            samples += members
        else:
            places = " and ".join({"train": f"train/{good}/", "test": "test/*/"}[split] for split in sorted(missing))
            incomplete.append(f"{folder.name} (none in {places})")
    if not samples:
        raise BenchError(f"{title} needs training and test images; missing in {join_names(incomplete)}. {hint}")
    if incomplete:
        log.warning("%s: categories without images are skipped: %s.", title, join_names(incomplete))
    return samples


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders, sorted by name, without hidden ones; none if the folder does not exist."""
    return [path for path in _entries(folder) if path.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name; none if the folder does not exist.

    Raises:
        BenchError: two images have the same stem, so their masks would be ambiguous.
    """
    # A broken link is listed, so that reading it fails with an error instead of silently dropping an image.
    candidates = [path for path in _entries(folder) if path.suffix.lower() in EXTENSIONS]
    images = [path for path in candidates if path.is_file() or (path.is_symlink() and not path.is_dir())]
    by_stem: dict[str, Path] = {}
    for path in images:
        if path.stem in by_stem:
            raise BenchError(
                f"Images in one folder must have different names without extension; {folder} has both "
                f"{by_stem[path.stem].name} and {path.name}. Rename or remove one of them."
            )
        by_stem[path.stem] = path
    return images


def list_category(
    folder: Path, *, good: str = GOOD, image_folder: str = "", masks: FindMasks = mvtec_masks
) -> list[Sample]:
    """List one category: training before test images, each sorted by defect and file name.

    Logs a warning for defective images in train/, for masks without image and for images without mask.

    Args:
        folder: folder with `train/` and `test/`; its name is the category.
        good: name of the folders of good images.
        image_folder: folder of the images within the folder of each defect; "" if they are directly in it.
        masks: finds the masks.
    """
    defective = [
        path.name
        for path in subfolders(folder / "train")
        if path.name.lower() != good and image_files(path / image_folder)
    ]
    if defective:
        log.warning("%s: images of train/ outside '%s' are not used, because methods are fitted on good images only: "
                    "%s.", folder.name, good, join_names(defective))  # fmt: skip
    train = [_sample(folder, "train", path) for path in _good_images(folder / "train", good, image_folder)]
    test: list[Sample] = []
    unused_masks: list[str] = []
    defects = {path.name for top in ("test", "ground_truth") for path in subfolders(folder / top)}
    for defect in sorted(defect for defect in defects if defect.lower() != good):
        remaining = masks(folder, defect)
        for image in image_files(folder / "test" / defect / image_folder):
            image_masks = remaining.pop(f"{image.stem}_mask", ()) or remaining.pop(image.stem, ())
            test.append(_sample(folder, "test", image, defect, image_masks))
        unused_masks += [f"{defect}/{path.name}" for paths in remaining.values() for path in paths]
    if unused_masks:
        log.warning("%s: %d masks have no image and are not used: %s.",
                    folder.name, len(unused_masks), join_names(unused_masks))  # fmt: skip
    unmasked = [f"{sample.defect}/{sample.image.name}" for sample in test if not sample.masks]
    if 0 < len(unmasked) < len(test):
        log.warning("%s: %d of %d defective images have no mask and count for the image metrics only: %s.",
                    folder.name, len(unmasked), len(test), join_names(unmasked))  # fmt: skip
    good_test = [_sample(folder, "test", path) for path in _good_images(folder / "test", good, image_folder)]
    samples = train + good_test + test
    return sorted(samples, key=lambda sample: (sample.split == "test", sample.defect, sample.image.name))


def _good_images(split_folder: Path, good: str, image_folder: str) -> list[Path]:
    """Return the good images of a split; the name of their folder may be in upper case."""
    folders = [path for path in subfolders(split_folder) if path.name.lower() == good]
    return [image for path in folders for image in image_files(path / image_folder)]


def _sample(folder: Path, split: Split, image: Path, defect: str = GOOD, masks: tuple[Path, ...] = ()) -> Sample:
    return Sample(image, folder.name, split, defect, masks)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name, without hidden ones; none if the folder does not exist."""
    try:
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise BenchError(
            f"The folders of a data set must be readable; {folder} is not ({error.strerror}). Change its permissions."
        ) from error


def describe_folder(folder: Path) -> str:
    """Return the names in a folder for a message."""
    names = [path.name + "/" * path.is_dir() for path in _entries(folder)]
    return join_names(names) if names else "no files"


def join_names(names: list[str], maximum: int = 6) -> str:
    """Join names with commas; beyond the maximum, only their number is given."""
    rest = f" and {len(names) - maximum} more" if len(names) > maximum else ""
    return ", ".join(names[:maximum]) + rest
