"""Your own images: a folder of categories, each with good training images and any test images.

Layout: `<category>/train/good/`, `<category>/test/good/`, `<category>/test/<defect>/` and, if there are masks,
`<category>/ground_truth/<defect>/` with files named `<stem>_mask.*` or `<stem>.*`, where `<stem>` is the
image's name without extension, or a folder `<stem>/` with several masks. Masks may also be next to their images.
Subfolders are read. The root may be the folder of one category, or contain the categories up to three levels below. A
category may have only good images: in `train/good/`, or directly in its folder. For any other layout, see
`parts/mapping.py`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench.dataset import Sample
from bench.errors import BenchError

from .parts.files import (
    absolute,
    check_root,
    deeper_images,
    image_files,
    image_tree,
    is_image,
    is_loop,
    is_regular,
    is_system_file,
    join_names,
    log,
    nfc,
    subfolders,
)
from .parts.labels import GOOD_NAMES
from .parts.layout import Folders, list_categories
from .parts.mapping import list_by_layout, propose_layout
from .parts.masks import image_stem, masks_by_name

TITLE = "Own images"
SYNTHETIC = False
ABOUT = (
    "your own images in the folders <category>/train/good/, <category>/test/<defect>/ and, for masks, "
    "<category>/ground_truth/<defect>/<stem>_mask.png; or any layout with --layout"
)

MAX_DEPTH = 3
"""Number of levels below the root that are searched for categories."""

FOLDERS = Folders(good=GOOD_NAMES, requires_test_images=False)


class SortedFiles(NamedTuple):
    """Files of a folder without a layout, each in the order in which it was given."""

    images: list[Path]
    masks: list[Path]
    others: list[Path]


def samples(root: Path, layout: str = "") -> list[Sample]:
    """List the categories below `root`, sorted by name, in the MVTec AD layout or by `layout`.

    Raises:
        BenchError: there is no category, two share a name, or the layout is invalid.
    """
    hint = f"Use this layout, or pass the folder with --data DIR ({ABOUT})."
    check_root(root, TITLE, hint)
    root = absolute(root)
    if layout:
        return list_by_layout(root, layout, TITLE)
    visited: dict[Path, list[Path]] = {}
    folders = _category_folders(root, MAX_DEPTH, visited)
    if not folders:
        return _list_good_only(root, hint)
    by_name: dict[str, Path] = {}
    for path in folders:
        other = by_name.setdefault(nfc(path.name), path)
        if other is not path:
            raise BenchError(
                f"Categories must have different names; '{path.name}' is in {other.parent} and in {path.parent}. "
                f"Rename one, or pass one of the two with --data."
            )
    _warn_other_folders(root, folders)
    _warn_second_names(root, folders, visited)
    return list_categories(folders, TITLE, hint, FOLDERS)


def propose_layout_if_needed(root: Path) -> str:
    """Return the layout that fits the folders below `root` if the MVTec AD layout does not, or ""."""
    return "" if _category_folders(absolute(root), MAX_DEPTH, {}) else propose_layout(root)


def sort_files(root: Path, paths: Iterable[Path]) -> SortedFiles:
    """Sort files below `root` into images, masks and others by their names; no layout is needed.

    Masks are paired as those of a dataset: they are in a folder called ground_truth, masks, gt or labels, or next to
    their images. Others have no extension of an image or are pipes or devices. Hidden files and those of operating
    systems are dropped.
    """
    visible = [path for path in paths if not any(map(is_system_file, path.relative_to(root).parts))]
    candidates = [path for path in visible if is_image(path) and is_regular(path)]
    masks = masks_by_name(root, candidates)
    return SortedFiles(
        [path for path in candidates if path not in masks],
        [path for path in candidates if path in masks],
        [path for path in visible if not (is_image(path) and is_regular(path))],
    )


def _category_folders(folder: Path, depth: int, visited: dict[Path, list[Path]]) -> list[Path]:
    """Return the folders with train/ or test/, which are not searched further.

    A folder that several links lead to is listed once, by its own name if it is below the root. All its names are
    added to `visited`, the used one first.
    """
    names = visited.setdefault(folder.resolve(), [])
    names.append(folder)
    if len(names) > 1:
        return []
    if any((folder / split).is_dir() for split in ("train", "test")):
        return [folder]
    if not depth:
        return []
    children = sorted(subfolders(folder), key=lambda path: path.is_symlink())
    return [path for child in children for path in _category_folders(child, depth - 1, visited)]


def _list_good_only(root: Path, hint: str) -> list[Sample]:
    """List images directly in category folders as good training images.

    Raises:
        BenchError: the folders seem to have another layout.
    """
    layout = propose_layout(root)
    if layout:
        raise BenchError(
            f"A category must be a folder with train/ and test/; {root} has folders of good and of other images. "
            f"Pass --layout '{layout}', or use <category>/train/good/ and <category>/test/<defect>/."
        )
    folders = [path for path in (root, *subfolders(root)) if image_files(path)]
    deeper = [path.relative_to(root).as_posix() for path in deeper_images(root, 1)]
    if not folders:
        below = f", but {len(deeper)} images in deeper folders, for example {deeper[0]}" if deeper else ""
        raise BenchError(
            f"A category must be a folder with train/ and test/, or with images; none in {root}{below}. {hint}"
        )
    samples: list[Sample] = []
    for path in folders:
        stems = {nfc(image.stem) for image in image_files(path)}
        images = [image for image in image_files(path) if image_stem(image.stem) not in stems]
        log.warning("%s: there is no train/ or test/; its %d images are used as good training images.",
                    path.name, len(images))  # fmt: skip
        samples += [Sample(image, nfc(path.name), "train") for image in images]
    if deeper:
        log.warning("%s: %d images in subfolders of these folders are not used: %s. Move them to "
                    "<category>/train/good/.",
                    root.name, len(deeper), join_names(deeper))  # fmt: skip
    return samples


def _warn_other_folders(root: Path, categories: list[Path]) -> None:
    """Log a warning about folders and images directly in the root that belong to no category."""
    if root in categories:
        return
    used = {folder.resolve() for folder in categories}
    parents = {parent for folder in (*used, *categories) for parent in (folder, *folder.parents)}
    others = [f"{path.name}/" for path in subfolders(root) if not {path, path.resolve()} & parents and image_tree(path)]
    others += [path.name for path in image_files(root)]
    if others:
        log.warning(
            "%s: not used, because they are in no folder with train/ or test/: %s.", root.name, join_names(others)
        )
    root = root.resolve()  # a category may be a link to a folder at any depth
    deeper = [path for path in deeper_images(root, MAX_DEPTH + 2) if used.isdisjoint(path.parents)]
    if deeper:
        log.warning("%s: %d images are not used, because their categories are more than %d levels below, for example "
                    "%s. Pass a folder nearer to them with --data.",
                    root.name, len(deeper), MAX_DEPTH, deeper[0].relative_to(root).as_posix())  # fmt: skip


def _warn_second_names(root: Path, categories: list[Path], visited: dict[Path, list[Path]]) -> None:
    """Log a warning about links to categories, or to folders of categories, that are used by another name."""
    texts = [
        f"{other.relative_to(root).as_posix()} (the same as {names[0].relative_to(root).as_posix()})"
        for names in visited.values()
        for other in names[1:]
        if not is_loop(other) and any(names[0] in {folder, *folder.parents} for folder in categories)
    ]
    if texts:
        log.warning("%s: not used, because they are other names of folders that are used: %s.",
                    root.name, join_names(sorted(texts)))  # fmt: skip
