"""Find the mask files of images: in a separate folder or next to their images, one or several per image."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .files import image_files, image_tree, nfc, relative_stem, subfolders

FindMasks = Callable[[Path, str], dict[str, tuple[Path, ...]]]
"""Function of (folder of a category, defect): the mask files by the stem of their image."""

_SUFFIX = re.compile(
    r"^(?P<stem>.+?)[_-](masks?|gt|groundtruth|labels?|seg|annotation)([_-]?\d+)?$", re.IGNORECASE | re.DOTALL
)
_FOLDERS = frozenset({"mask", "masks", "gt", "ground_truth", "groundtruth", "label", "labels"})
_PRODUCTS = frozenset({"mask", "masks", "label", "labels"})


class MatchedMasks(NamedTuple):
    """The masks of each image, by the image's stem relative to its folder, and the files that belong to no image."""

    by_image: dict[str, tuple[Path, ...]]
    unused: list[Path]


def image_stem(name: str) -> str | None:
    """Return the stem of the image that a mask is named after: "000" for "000_mask" and "000_GT_2"; None if none."""
    match = _SUFFIX.match(nfc(name))
    return match["stem"] if match else None


def split_adjacent_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder, and the masks next to them.

    A mask is named after an image of its folder (`000_mask.png`, `000_GT.png`, `000_label.png`), or is in a subfolder
    called masks, gt or labels. In a folder with such pairs, a file named as a mask is not an image, even if its image
    is missing.
    """
    images: list[Path] = []
    masks: list[Path] = []
    for path in image_tree(folder):
        (masks if in_mask_folder(path.relative_to(folder).parts[:-1]) else images).append(path)
    adjacent = adjacent_masks(images)
    return [path for path in images if path not in adjacent], masks + [path for path in images if path in adjacent]


def in_mask_folder(folders: Iterable[str]) -> bool:
    """Return whether one of the names of folders is masks, gt, labels or the like."""
    return any(name.lower() in _FOLDERS for name in folders)


def masks_by_name(folder: Path, paths: Sequence[Path]) -> set[Path]:
    """Return the files below a folder that are masks: those in a folder of masks, and those next to their image.

    Masks and labels may also be products: a folder of that name with train/<defect>/ or test/<defect>/ is a category.
    If all files are in folders of masks, none of them is a mask.
    """
    in_folders = set()
    for path in paths:
        names = [name.lower() for name in path.relative_to(folder).parts[:-1]]
        categories = {
            index
            for index, name in enumerate(names[:-2])
            if name in _PRODUCTS and names[index + 1] in {"train", "test"}
        }
        if in_mask_folder(name for index, name in enumerate(names) if index not in categories):
            in_folders.add(path)
    if len(in_folders) == len(paths):
        in_folders = set()
    return in_folders | adjacent_masks([path for path in paths if path not in in_folders])


def adjacent_masks(paths: Sequence[Path]) -> set[Path]:
    """Return the files that are named as masks and lie in a folder in which one of them has its image."""
    stems: dict[Path, set[str]] = {}
    for path in paths:
        stems.setdefault(path.parent, set()).add(nfc(path.stem))
    paired = {path.parent for path in paths if image_stem(path.stem) in stems[path.parent]}
    return {path for path in paths if path.parent in paired and image_stem(path.stem) is not None}


def match_masks(folder: Path, images: Sequence[Path], mask_folder: Path, masks: Sequence[Path]) -> MatchedMasks:
    """Return the masks of each image.

    A mask belongs to the image with the same path below its folder, with or without a suffix such as "_mask"; to the
    image that its folder is named after (several masks per image); or, if images or masks alone have subfolders, to
    the only image of that name. If an image has masks with a suffix, files without one are not masks.

    Args:
        folder: folder of the images.
        images: the images below `folder`.
        mask_folder: folder of the masks.
        masks: the masks below `mask_folder`.
    """
    keys = {relative_stem(path, folder): path for path in images}
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(key.rpartition("/")[2], []).append(key)
    by_full_name: dict[str, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    unused: list[Path] = []
    for path in masks:
        subfolder, _, name = relative_stem(path, mask_folder).rpartition("/")
        stem = image_stem(name)
        # Folders called masks are not part of the name: test/crack/masks/000.png belongs to test/crack/000.png.
        subfolder = "/".join(part for part in subfolder.split("/") if not in_mask_folder([part]))
        full_key, stem_key = (f"{subfolder}/{text}".lstrip("/") if text else "" for text in (name, stem))
        if stem_key in keys:
            by_stem.setdefault(stem_key, []).append(path)
        elif full_key in keys:
            by_full_name.setdefault(full_key, []).append(path)
        elif subfolder in keys:
            by_stem.setdefault(subfolder, []).append(path)
        elif stem and (key := _only_key(by_name.get(stem, ()), subfolder)):
            by_stem.setdefault(key, []).append(path)
        elif key := _only_key(by_name.get(name, ()), subfolder):
            by_full_name.setdefault(key, []).append(path)
        else:
            unused.append(path)
    unused += [path for key in by_full_name.keys() & by_stem.keys() for path in by_full_name[key]]
    return MatchedMasks(
        {key: tuple(sorted(paths)) for key, paths in {**by_full_name, **by_stem}.items()}, sorted(unused)
    )


def _only_key(keys: Sequence[str], subfolder: str) -> str:
    """Return the only key, if the mask or that image has no subfolder; else ""."""
    return keys[0] if len(keys) == 1 and (not subfolder or "/" not in keys[0]) else ""


def folder_per_image(folder: Path, defect: str) -> dict[str, tuple[Path, ...]]:
    """Return the masks in the layout of MVTec LOCO: `ground_truth/<defect>/<stem>/*`."""
    masks = {nfc(path.name): tuple(image_files(path)) for path in subfolders(folder / "ground_truth" / defect)}
    return {stem: paths for stem, paths in masks.items() if paths}
