"""List the files of a dataset's folders. No image is opened.

Hidden files and the files and folders that operating systems add (`__MACOSX`, `Thumbs.db`) are never listed. Folders
are searched to a fixed depth, so links to a parent folder are harmless. Names are compared in composed Unicode (NFC),
because macOS stores some of them decomposed.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from unicodedata import normalize

from bench.dataset import EXTENSIONS
from bench.errors import BenchError

log = logging.getLogger(__name__)

MAX_DEPTH = 4
"""Number of levels of subfolders that are searched for files."""

MAX_NAMES = 6
"""Number of names that a message lists."""

_SYSTEM = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found",
    "system volume information",
})  # fmt: skip


def check_root(root: Path, title: str, hint: str) -> None:
    """Raise BenchError, ending with `hint`, unless `root` is a folder."""
    if not root.exists():
        raise BenchError(f"{title} needs its folder; {root} does not exist. {hint}")
    if not root.is_dir():
        raise BenchError(f"{title} needs a folder; {root} is a file. {hint}")


def absolute(root: Path) -> Path:
    """Return the absolute path without following links: a linked category has the name of its link."""
    return Path(os.path.abspath(root))  # noqa: PTH100  resolve() would follow links


def nfc(text: str) -> str:
    """Return the text in composed Unicode (NFC)."""
    return normalize("NFC", text)


def entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name; none if the folder does not exist."""
    try:
        if not folder.is_dir():
            return []
        visible = (path for path in folder.iterdir() if not is_system_file(path.name))
        return sorted(visible, key=lambda path: path.name)
    except OSError as error:
        raise BenchError(
            f"The folders of a dataset must be readable; {folder} is not ({error.strerror}). Change its permissions."
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders, sorted by name; none if the folder does not exist."""
    return [path for path in entries(folder) if path.is_dir()]


def is_image(path: Path) -> bool:
    """Return whether a file has the extension of an image."""
    return path.suffix.lower() in EXTENSIONS


def image_files(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name; none if the folder does not exist.

    Raises:
        BenchError: two images have the same stem, so their masks would be ambiguous.
    """
    images = [path for path in entries(folder) if is_image(path) and is_regular(path)]
    by_stem: dict[str, Path] = {}
    for path in images:
        stem = nfc(path.stem)
        if stem in by_stem:
            raise BenchError(
                f"Images in one folder must have different names without extension; {folder} has both "
                f"{by_stem[stem].name} and {path.name}. Rename or remove one of them."
            )
        by_stem[stem] = path
    return images


def image_tree(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, folder by folder; none if the folder does not exist.

    Raises BenchError as `image_files`.
    """
    return [image for path in _tree(folder, MAX_DEPTH, set()) for image in image_files(path)]


def all_files(folder: Path) -> list[Path]:
    """Return the regular files in a folder and its subfolders, folder by folder."""
    return [path for subfolder in _tree(folder, MAX_DEPTH, set()) for path in entries(subfolder) if is_regular(path)]


def special_files(folder: Path) -> list[Path]:
    """Return the pipes, sockets and devices in a folder and its subfolders. Reading one may never end."""
    return [
        path
        for subfolder in _tree(folder, MAX_DEPTH, set())
        for path in entries(subfolder)
        if not path.is_dir() and not is_regular(path)
    ]


def deeper_images(folder: Path, depth: int = MAX_DEPTH) -> list[Path]:
    """Return the images in more than `depth` levels of subfolders, which are not read. Links are not followed."""
    images: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        if len(Path(parent).relative_to(folder).parts) > depth:
            paths = (Path(parent, name) for name in sorted(names) if not is_system_file(name))
            images += [path for path in paths if is_image(path)]
    return images


def second_names(folder: Path) -> list[Path]:
    """Return the subfolders that are not read because another name of the same folder is. Loops are no such names."""
    skipped: list[Path] = []
    for _ in _tree(folder, MAX_DEPTH, set(), skipped):
        pass
    return skipped


def is_loop(folder: Path) -> bool:
    """Return whether a folder is a link to a folder above it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def relative_stem(path: Path, folder: Path) -> str:
    """Return the path of a file below a folder without its extension: "line1/000", in composed Unicode."""
    return nfc(path.relative_to(folder).with_suffix("").as_posix())


def join_names(names: Iterable[str], maximum: int = MAX_NAMES) -> str:
    """Join names with commas; beyond the maximum, only their number is given."""
    names = list(names)
    more = f" and {len(names) - maximum} more" if len(names) > maximum else ""
    return ", ".join(names[:maximum]) + more


def describe_folder(folder: Path) -> str:
    """Return the names in a folder for a message."""
    names = [path.name + "/" * path.is_dir() for path in entries(folder)]
    return join_names(names) if names else "no files"


def _tree(folder: Path, depth: int, visited: set[Path], skipped: list[Path] | None = None) -> Iterator[Path]:
    """Yield a folder and its subfolders, each once, without links to a folder above.

    Further names of a folder are added to `skipped`.
    """
    if is_loop(folder):
        return
    resolved = folder.resolve()
    if resolved in visited:
        if skipped is not None:
            skipped.append(folder)
        return
    visited.add(resolved)
    yield folder
    if depth:
        for path in subfolders(folder):
            yield from _tree(path, depth - 1, visited, skipped)


def is_regular(path: Path) -> bool:
    """Return whether an entry is a regular file, a link to one, or a broken link.

    A broken link is listed, so that reading it fails with an error instead of silently dropping an image.
    """
    return path.is_file() or (path.is_symlink() and not path.exists())


def is_system_file(name: str) -> bool:
    """Return whether a file or folder is hidden or was added by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM
