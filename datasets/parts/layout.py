"""The layout that most inspection data sets share: `<category>/{train,test,ground_truth}/<type>/<image>`.

Listing opens no image and goes to a fixed depth, so a link that leads back upwards does no harm. Hidden files and
files that are no images are passed over.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    (".bmp", ".dib", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif")
) | {".tiff", ".webp"}


class Counts(NamedTuple):
    """How many images a category has: to train on, good ones to test on, and defective ones."""

    train: int
    good: int
    defective: int

    def __str__(self) -> str:
        return f"{self.train} train, {self.good} good test and {self.defective} defective images"


def check_root(root: Path, title: str, mend: str) -> None:
    """Raises BenchError with the `mend` unless `root` is a folder."""
    if not root.exists():
        raise BenchError(f"{title} is looked for in {root}, which does not exist. {mend}")
    if not root.is_dir():
        raise BenchError(f"{title} is looked for in a folder; {root} is a file. {mend}")


def official(root: Path, title: str, counts: Mapping[str, Counts], mend: str, *, good: str = GOOD) -> list[Sample]:
    """The samples of a published data set whose categories lie in `root`, or of the one category that `root` is.

    Args:
        root: folder named by the user.
        title: of the data set, for messages.
        counts: the official ones by category. Categories that are absent, and counts that differ, are warned of.
        mend: how to get the data set right, the end of every error.
        good: how the folders of good images are called.

    Raises BenchError where no category is there, or none has images to train and to test on.
    """
    check_root(root, title, mend)
    alone = root.resolve().name in counts and (root / "train").is_dir()
    present = [root.resolve()] if alone else [path for path in folders(root) if path.name in counts]
    if not present:
        raise BenchError(
            f"{title} has the folders {_listed(sorted(counts))}; {root} has none of them, but {_contents(root)}. {mend}"
        )
    samples = categories(present, title, mend, good=good)
    for path in present:
        here = [sample for sample in samples if sample.category == path.name]
        found = Counts(
            sum(sample.split == "train" for sample in here),
            sum(sample.split == "test" and not sample.anomalous for sample in here),
            sum(sample.anomalous for sample in here),
        )
        if here and found != counts[path.name]:
            log.warning("%s: officially %s; here are %s.", path.name, counts[path.name], found)
    absent = sorted(set(counts) - {path.name for path in present})
    if absent:
        log.warning("%s: %d of %d categories are absent: %s.", title, len(absent), len(counts), _listed(absent))
    return samples


def categories(present: Iterable[Path], title: str, mend: str, *, good: str = GOOD) -> list[Sample]:
    """The samples of several categories, by name. One that lacks train or test images is left out with a warning.

    Raises BenchError where none is left.
    """
    samples: list[Sample] = []
    empty: list[str] = []
    for folder in sorted(present, key=lambda path: path.name):
        here = category(folder, good=good)
        lacking = {"train", "test"} - {sample.split for sample in here}
        if not lacking:
            samples += here
        else:
            where = " and ".join({"train": f"train/{good}/", "test": "test/*/"}[split] for split in sorted(lacking))
            empty.append(f"{folder.name} (none in {where})")
    if not samples:
        raise BenchError(f"{title} needs images to train and to test on; missing in {_listed(empty)}. {mend}")
    if empty:
        log.warning("%s: left out for want of images: %s.", title, _listed(empty))
    return samples


def folders(folder: Path) -> list[Path]:
    """The sub-folders by name, hidden ones left out; none where there is no such folder."""
    return [path for path in _entries(folder) if path.is_dir()]


def images(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, by name; none where there is no such folder.

    Raises BenchError where two have the same stem: their masks could not be told apart.
    """
    found = [path for path in _entries(folder) if path.suffix.lower() in EXTENSIONS and path.is_file()]
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem in stems:
            raise BenchError(
                f"Images in one folder must differ in more than their extension; {folder} holds both "
                f"{stems[path.stem].name} and {path.name}. Rename or remove one of them."
            )
        stems[path.stem] = path
    return found


def category(folder: Path, *, good: str = GOOD) -> list[Sample]:
    """The samples of one category: first train, then test, each by defect and file name.

    Args:
        folder: holds `train/` and `test/`; its name is the category's.
        good: how the folders of good images are called.

    A mask is `ground_truth/<defect>/<stem>_mask.*` or `<stem>.*`. Masks that are missing or left over are warned of.
    """
    others = [path.name for path in folders(folder / "train") if path.name.lower() != good and images(path)]
    if others:
        log.warning("%s: train/ holds %s besides '%s'; left out, as methods learn from good images only.",
                    folder.name, _listed(others), good)  # fmt: skip
    train = [_sample(folder, "train", path) for path in _good(folder / "train", good)]
    test: list[Sample] = []
    unused: list[str] = []
    kinds = {path.name for top in ("test", "ground_truth") for path in folders(folder / top)}
    for kind in sorted(kind for kind in kinds if kind.lower() != good):
        masks = {path.stem: path for path in images(folder / "ground_truth" / kind)}
        for image in images(folder / "test" / kind):
            mask = masks.pop(f"{image.stem}_mask", None) or masks.pop(image.stem, None)
            test.append(_sample(folder, "test", image, kind, mask))
        unused += [f"{kind}/{path.name}" for path in masks.values()]
    if unused:
        log.warning("%s: %d masks belong to no image and are left out: %s.", folder.name, len(unused), _listed(unused))
    bare = [f"{sample.defect}/{sample.image.name}" for sample in test if not sample.masks]
    if 0 < len(bare) < len(test):
        log.warning("%s: %d of %d defective images have no mask, so they count for the image metrics only: %s.",
                    folder.name, len(bare), len(test), _listed(bare))  # fmt: skip
    fine = [_sample(folder, "test", path) for path in _good(folder / "test", good)]
    return sorted(train + fine + test, key=lambda sample: (sample.split == "test", sample.defect, sample.image.name))


def _good(folder: Path, good: str) -> list[Path]:
    """The good images of a split; `Good/` is not mistaken for a kind of defect."""
    return [image for path in folders(folder) if path.name.lower() == good for image in images(path)]


def _sample(folder: Path, split: Split, image: Path, defect: str = GOOD, mask: Path | None = None) -> Sample:
    return Sample(image, folder.name, split, defect, (mask,) if mask else ())


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name and without hidden files; nothing where there is no such folder."""
    try:
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise BenchError(f"A data set's folders must be readable; {folder} is not ({error.strerror}).") from error


def _contents(folder: Path) -> str:
    """What lies in a folder, for a message."""
    names = [path.name + "/" * path.is_dir() for path in _entries(folder)]
    return _listed(names) if names else "nothing"


def _listed(names: list[str], most: int = 6) -> str:
    """Names as words, the first few of many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
