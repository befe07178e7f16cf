"""The layout that most inspection datasets share: `<category>/{train,test,ground_truth}/<defect>/<image>`.

No image is opened. Subfolders of the folder of a defect are read as well. Files of the three folders that are not
used are counted and named in a warning.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError

from .files import (
    MAX_DEPTH,
    absolute,
    all_files,
    check_root,
    deeper_images,
    describe_folder,
    image_files,
    is_image,
    join_names,
    log,
    nfc,
    relative_stem,
    special_files,
    subfolders,
)
from .labels import lower_name, warn_resembles_good
from .masks import FindMasks, MatchedMasks, match_masks, split_adjacent_masks


class Counts(NamedTuple):
    """Number of images of a category: training, good test and defective test images."""

    train: int
    good: int
    defective: int

    def __str__(self) -> str:
        return f"{self.train} training, {self.good} good test and {self.defective} defective test images"


class Folders(NamedTuple):
    """How a dataset names its folders.

    Attributes:
        good: names of the folders of good images, in lower case.
        images: folder of the images within the folder of each defect; "" if they are directly in it or in subfolders.
        masks: function that finds the masks; None if they are in `ground_truth/<defect>/` or next to their images.
        requires_test_images: whether a category without test images is skipped.
    """

    good: tuple[str, ...] = (GOOD,)
    images: str = ""
    masks: FindMasks | None = None
    requires_test_images: bool = True


MVTEC_AD = Folders()
"""The folders of MVTec AD."""


def list_official(
    root: Path, title: str, counts: Mapping[str, Counts], hint: str, folders: Folders = MVTEC_AD
) -> list[Sample]:
    """List a published dataset. Logs a warning if categories are missing or counts differ from the official ones.

    Args:
        root: folder of the categories, or of a single category.
        title: name of the dataset in messages.
        counts: the official counts by category.
        hint: how to get the dataset; the end of every error.
        folders: folder names of the dataset.

    Raises:
        BenchError: no category exists, or none has training and test images.
    """
    check_root(root, title, hint)
    root = absolute(root)
    # A link may have any name, so the name of the folder that it leads to counts as well.
    is_category = {root.name, root.resolve().name} & counts.keys() and (root / "train").is_dir()
    single = root if root.name in counts else root.resolve()
    present = [single] if is_category else [path for path in subfolders(root) if path.name in counts]
    if not present:
        raise BenchError(
            f"{title} needs a folder per category ({join_names(sorted(counts))}); {root} has none of them, it has "
            f"{describe_folder(root)}. {hint}"
        )
    samples = list_categories(present, title, hint, folders)
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
    """Log a warning if categories have the folder `split` next to train/ and test/, which is not used."""
    images = {sample.category: sample.image for sample in samples}
    unused = [
        category
        for category, image in sorted(images.items())
        if any(parent.name == category and (parent / split).is_dir() for parent in image.parents)
    ]
    if unused:
        log.warning("%s: %s/ is not used (%s); methods are fitted on train/ only.", title, split, join_names(unused))


def list_categories(categories: Iterable[Path], title: str, hint: str, folders: Folders) -> list[Sample]:
    """List several categories, sorted by name. One without training or test images is skipped with a warning.

    Raises:
        BenchError: no category has the images that it needs.
    """
    samples: list[Sample] = []
    incomplete: list[str] = []
    for folder in sorted(categories, key=lambda path: path.name):
        members = list_category(folder, folders)
        needed = {"train", "test"} if folders.requires_test_images else {"train"}
        missing = needed - {sample.split for sample in members}
        if not missing:
            samples += members
        else:
            patterns = {"train": f"train/{folders.good[0]}/", "test": "test/*/"}
            names = " and ".join(patterns[split] for split in sorted(missing))
            incomplete.append(f"{folder.name} (none in {names})")
    if not samples:
        raise BenchError(f"{title} needs training and test images; missing in {join_names(incomplete)}. {hint}")
    if incomplete:
        log.warning("%s: categories without images are skipped: %s.", title, join_names(incomplete))
    return samples


def list_category(folder: Path, folders: Folders = MVTEC_AD) -> list[Sample]:
    """List one category: training before test images, each sorted by defect and file name.

    Logs a warning for defective images in train/, for names that may state another label, for masks without image, for
    images without mask, and for other files that are not used.

    Args:
        folder: folder with `train/` and `test/`; its name is the category.
        folders: how the dataset names its folders.
    """
    train, test = (_DefectFolders(folder, split, folders) for split in ("train", "test"))
    if train.defective:
        names = [path.name for path in train.defective]
        log.warning("%s: images of train/ outside '%s' are not used, because methods are fitted on good images only: "
                    "%s.", folder.name, folders.good[0], join_names(names))  # fmt: skip
    warn_resembles_good(folder.name, (path.name for path in test.defective), folders.good)
    if len(test.good) > 1:
        log.warning("%s: the images of several folders of test/ are good ones: %s. Rename a folder of another kind.",
                    folder.name, join_names(path.name for path in test.good))  # fmt: skip
    samples = [
        _sample(folder, "train", image, defect_folder / folders.images)
        for defect_folder in train.good
        for image in train.images[defect_folder]
    ]
    samples += [
        _sample(folder, "test", image, defect_folder / folders.images)
        for defect_folder in test.good
        for image in test.images[defect_folder]
    ]
    unused: list[Path] = []
    defective: list[Sample] = []
    for defect_folder in test.defective:
        matched = _find_masks(folder, defect_folder, test, folders)
        unused += matched.unused
        for image in test.images[defect_folder]:
            masks = matched.by_image.get(relative_stem(image, defect_folder / folders.images), ())
            defective.append(_sample(folder, "test", image, defect_folder / folders.images, defect_folder.name, masks))
    with_images = {path.name.strip() for path in test.defective}
    for path in subfolders(folder / "ground_truth"):
        if path.name.strip() not in with_images and lower_name(path.name) not in folders.good:
            unused += split_adjacent_masks(path)[0]  # masks of a defect without images
    if unused:
        paths = [path.relative_to(folder).as_posix() for path in unused]
        log.warning("%s: %d masks have no image and are not used: %s.", folder.name, len(paths), join_names(paths))
    unmasked = [sample.id for sample in defective if not sample.masks]
    if 0 < len(unmasked) < len(defective):
        log.warning("%s: %d of %d defective images have no mask and count for the image metrics only: %s.",
                    folder.name, len(unmasked), len(defective), join_names(unmasked))  # fmt: skip
    samples += defective
    if not folders.images and folders.masks is None:
        reported = {*unused, *(image for defect_folder in train.defective for image in train.images[defect_folder])}
        _warn_unused_files(folder, samples, reported)
    check_unique(samples)
    return sorted(samples, key=lambda sample: (sample.split == "test", sample.defect, sample.folder, sample.image.name))


def check_unique(samples: Iterable[Sample]) -> None:
    """Raise BenchError if two samples have one id."""
    by_id: dict[str, Sample] = {}
    for sample in samples:
        other = by_id.setdefault(sample.id, sample)
        if other is not sample:
            raise BenchError(
                f"Images of one category and label must have different paths; {other.image} and {sample.image} "
                f"are both {sample.id}. Rename one of them."
            )


class _DefectFolders:
    """The folders of defect types of one split that have images, their images, and the masks next to these."""

    def __init__(self, folder: Path, split: str, folders: Folders) -> None:
        self.images: dict[Path, list[Path]] = {}
        self.adjacent_masks: dict[Path, list[Path]] = {}
        for path in subfolders(folder / split):
            images, masks = (image_files(path / folders.images), []) if folders.images else split_adjacent_masks(path)
            if images:
                self.images[path], self.adjacent_masks[path] = images, masks
        self.good = [path for path in self.images if lower_name(path.name) in folders.good]
        self.defective = [path for path in self.images if lower_name(path.name) not in folders.good]


def _find_masks(folder: Path, defect_folder: Path, test: _DefectFolders, folders: Folders) -> MatchedMasks:
    """Return the masks of the images of one defect: by the rule of the dataset, in ground_truth/, or next to them."""
    images = test.images[defect_folder]
    if folders.masks is not None:
        by_image = folders.masks(folder, defect_folder.name)
        stems = {relative_stem(image, defect_folder / folders.images) for image in images}
        unused = [path for stem, paths in by_image.items() if stem not in stems for path in paths]
        return MatchedMasks(by_image, unused)
    mask_folder = next(
        (
            path
            for path in subfolders(folder / "ground_truth")
            if nfc(path.name.strip()) == nfc(defect_folder.name.strip())
        ),
        None,
    )
    matched = MatchedMasks({}, [])
    if mask_folder is not None:
        masks = [path for path in all_files(mask_folder) if is_image(path)]
        for path in (*{path.parent for path in masks}, mask_folder):
            image_files(path)  # raises if two masks have one stem
        matched = match_masks(defect_folder, images, mask_folder, masks)
    adjacent = match_masks(defect_folder, images, defect_folder, test.adjacent_masks[defect_folder])
    unused = [*matched.unused, *adjacent.unused]
    # An image with masks in ground_truth/ needs none next to it.
    unused += [path for key in adjacent.by_image.keys() & matched.by_image.keys() for path in adjacent.by_image[key]]
    return MatchedMasks({**adjacent.by_image, **matched.by_image}, unused)


def _warn_unused_files(folder: Path, samples: list[Sample], reported: set[Path]) -> None:
    """Log a warning with the files below train/, test/ and ground_truth/, and the other folders, that are not used."""
    used = {path for sample in samples for path in (sample.image, *sample.masks)} | reported
    tops = [folder / name for name in ("train", "test", "ground_truth")]
    unused = [path for top in tops for path in all_files(top) if path not in used]
    others = [path for path in unused if not is_image(path)]
    images = [path for path in unused if is_image(path)]
    parts = []
    if images:
        parts.append(f"{len(images)} images: {join_names(path.relative_to(folder).as_posix() for path in images)}")
    if others:
        extensions = Counter(path.suffix.lower() or "no extension" for path in others)
        counted = ", ".join(f"{count} {extension}" for extension, count in sorted(extensions.items()))
        names = join_names(path.relative_to(folder).as_posix() for path in others)
        parts.append(f"{len(others)} files without the extension of an image ({counted}): {names}")
    deeper = [path for top in tops for path in deeper_images(top, MAX_DEPTH + 1)]  # below test/<defect>/
    if deeper:
        example = deeper[0].relative_to(folder).as_posix()
        parts.append(f"{len(deeper)} images in more than {MAX_DEPTH} levels of subfolders, for example {example}")
    special = [path.relative_to(folder).as_posix() for top in tops for path in special_files(top)]
    if special:
        parts.append(f"{len(special)} pipes or devices: {join_names(special)}")
    top_images = image_files(folder)
    if top_images:
        parts.append(
            f"{len(top_images)} images next to train/ and test/: {join_names(path.name for path in top_images)}"
        )
    splits = {path.name: sum(map(is_image, all_files(path))) for path in subfolders(folder) if path not in tops}
    if any(splits.values()):
        parts.append("folders: " + join_names(f"{name}/ ({count} images)" for name, count in splits.items() if count))
    if parts:
        log.warning("%s: not used are %s.", folder.name, "; ".join(parts))


def _sample(  # noqa: PLR0917  as the fields of Sample
    folder: Path, split: Split, image: Path, defect_folder: Path, defect: str = GOOD, masks: tuple[Path, ...] = ()
) -> Sample:
    """Return a sample. `defect_folder` contains the images of its defect type."""
    subfolder = image.parent.relative_to(defect_folder).as_posix()
    return Sample(image, nfc(folder.name), split, nfc(defect), masks, nfc(subfolder.removeprefix(".")))
