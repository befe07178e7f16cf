"""The layout that most inspection data sets share: `<category>/{train,test,ground_truth}/<type>/<image>`.

Listing opens no image and goes to a fixed depth, so a link that leads back upwards does no harm. Hidden files and
files that are no images are passed over.
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


Masks = Callable[[Path, str], dict[str, tuple[Path, ...]]]
"""Called as `masks(category's folder, defect)`: the files of each mask, by the image's stem or that with "_mask"."""


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


def flat(folder: Path, defect: str) -> dict[str, tuple[Path, ...]]:
    """The masks of MVTec AD's layout: `ground_truth/<defect>/<stem>_mask.*` or `<stem>.*`."""
    return {path.stem: (path,) for path in images(folder / "ground_truth" / defect)}


def official(
    root: Path,
    title: str,
    counts: Mapping[str, Counts],
    mend: str,
    *,
    good: str = GOOD,
    inner: str = "",
    masks: Masks = flat,
) -> list[Sample]:
    """The samples of a published data set whose categories lie in `root`, or of the one category that `root` is.

    Args:
        root: folder named by the user.
        title: of the data set, for messages.
        counts: the official ones by category. Categories that are absent, and counts that differ, are warned of.
        mend: how to get the data set right, the end of every error.
        good: how the folders of good images are called.
        inner: the folder of the images within that of each kind, "" for none.
        masks: finds them.

    Raises BenchError where no category is there, or none has images to train and to test on.
    """
    check_root(root, title, mend)
    alone = root.resolve().name in counts and (root / "train").is_dir()
    present = [root.resolve()] if alone else [path for path in folders(root) if path.name in counts]
    if not present:
        raise BenchError(
            f"{title} has the folders {listed(sorted(counts))}; {root} has none of them, but {contents(root)}. {mend}"
        )
    samples = categories(present, title, mend, good=good, inner=inner, masks=masks)
    compare(samples, title, counts)
    return samples


def compare(samples: list[Sample], title: str, counts: Mapping[str, Counts]) -> None:
    """Warns where the samples of a category are not as many as the official `counts` say, and of absent categories."""
    for name in sorted({sample.category for sample in samples}):
        here = [sample for sample in samples if sample.category == name]
        found = Counts(
            sum(sample.split == "train" for sample in here),
            sum(sample.split == "test" and not sample.is_anomalous for sample in here),
            sum(sample.is_anomalous for sample in here),
        )
        if found != counts[name]:
            log.warning("%s: officially %s; here are %s.", name, counts[name], found)
    absent = sorted(set(counts) - {sample.category for sample in samples})
    if absent:
        log.warning("%s: %d of %d categories are absent: %s.", title, len(absent), len(counts), listed(absent))


def left_out(samples: list[Sample], title: str, folder: str) -> None:
    """Warns of a split that is there and not used, so that every record tells it: `folder` beside train/ and test/."""
    places = {sample.category: sample.image for sample in samples}
    used = {name for name, image in places.items() for above in image.parents if above.name == name
            and (above / folder).is_dir()}  # fmt: skip
    if used:
        log.warning("%s: %s/ is left out in %s, as methods learn from train/.", title, folder, listed(sorted(used)))


def categories(
    present: Iterable[Path], title: str, mend: str, *, good: str = GOOD, inner: str = "", masks: Masks = flat
) -> list[Sample]:
    """The samples of several categories, by name. One that lacks train or test images is left out with a warning.

    Raises BenchError where none is left.
    """
    samples: list[Sample] = []
    empty: list[str] = []
    for folder in sorted(present, key=lambda path: path.name):
        here = category(folder, good=good, inner=inner, masks=masks)
        lacking = {"train", "test"} - {sample.split for sample in here}
        if not lacking:
            samples += here
        else:
            where = " and ".join({"train": f"train/{good}/", "test": "test/*/"}[split] for split in sorted(lacking))
            empty.append(f"{folder.name} (none in {where})")
    if not samples:
        raise BenchError(f"{title} needs images to train and to test on; missing in {listed(empty)}. {mend}")
    if empty:
        log.warning("%s: left out for want of images: %s.", title, listed(empty))
    return samples


def folders(folder: Path) -> list[Path]:
    """The sub-folders by name, hidden ones left out; none where there is no such folder."""
    return [path for path in _entries(folder) if path.is_dir()]


def images(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, by name; none where there is no such folder.

    Raises BenchError where two have the same stem: their masks could not be told apart.
    """
    # A link to a file that is gone is an image that can't be read, and must not go missing without a word.
    named = [path for path in _entries(folder) if path.suffix.lower() in EXTENSIONS]
    found = [path for path in named if path.is_file() or (path.is_symlink() and not path.is_dir())]
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem in stems:
            raise BenchError(
                f"Images in one folder must differ in more than their extension; {folder} holds both "
                f"{stems[path.stem].name} and {path.name}. Rename or remove one of them."
            )
        stems[path.stem] = path
    return found


def category(folder: Path, *, good: str = GOOD, inner: str = "", masks: Masks = flat) -> list[Sample]:
    """The samples of one category: first train, then test, each by defect and file name.

    Args:
        folder: holds `train/` and `test/`; its name is the category's.
        good: how the folders of good images are called.
        inner: the folder of the images within that of each kind, "" for none.
        masks: finds them. Masks that are missing or left over are warned of.
    """
    others = [path.name for path in folders(folder / "train") if path.name.lower() != good and images(path / inner)]
    if others:
        log.warning("%s: train/ holds %s besides '%s'; left out, as methods learn from good images only.",
                    folder.name, listed(others), good)  # fmt: skip
    train = [_sample(folder, "train", path) for path in _good(folder / "train", good, inner)]
    test: list[Sample] = []
    unused: list[str] = []
    kinds = {path.name for top in ("test", "ground_truth") for path in folders(folder / top)}
    for kind in sorted(kind for kind in kinds if kind.lower() != good):
        found = masks(folder, kind)
        for image in images(folder / "test" / kind / inner):
            own = found.pop(f"{image.stem}_mask", ()) or found.pop(image.stem, ())
            test.append(_sample(folder, "test", image, kind, own))
        unused += [f"{kind}/{path.name}" for paths in found.values() for path in paths]
    if unused:
        log.warning("%s: %d masks belong to no image and are left out: %s.", folder.name, len(unused), listed(unused))
    bare = [f"{sample.defect}/{sample.image.name}" for sample in test if not sample.masks]
    if 0 < len(bare) < len(test):
        log.warning("%s: %d of %d defective images have no mask, so they count for the image metrics only: %s.",
                    folder.name, len(bare), len(test), listed(bare))  # fmt: skip
    fine = [_sample(folder, "test", path) for path in _good(folder / "test", good, inner)]
    return sorted(train + fine + test, key=lambda sample: (sample.split == "test", sample.defect, sample.image.name))


def _good(folder: Path, good: str, inner: str) -> list[Path]:
    """The good images of a split; `Good/` is not mistaken for a kind of defect."""
    return [image for path in folders(folder) if path.name.lower() == good for image in images(path / inner)]


def _sample(folder: Path, split: Split, image: Path, defect: str = GOOD, masks: tuple[Path, ...] = ()) -> Sample:
    return Sample(image, folder.name, split, defect, masks)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name and without hidden files; nothing where there is no such folder."""
    try:
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise BenchError(f"A data set's folders must be readable; {folder} is not ({error.strerror}).") from error


def contents(folder: Path) -> str:
    """What lies in a folder, for a message."""
    names = [path.name + "/" * path.is_dir() for path in _entries(folder)]
    return listed(names) if names else "nothing"


def listed(names: list[str], most: int = 6) -> str:
    """Names as words, the first few of many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
