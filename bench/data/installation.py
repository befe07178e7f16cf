"""Install the archive of a dataset: unpack it, find the dataset in it, and move that to its folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from bench.data.archives import unpack
from bench.dataset import Download
from bench.errors import BenchError
from bench.files import temporary_folder

MAX_DEPTH = 3
"""Number of levels of folders of an archive in which the dataset is searched."""


def install(
    archive: Path,
    module: ModuleType,
    folder: Path,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Unpack the archive of a dataset and move the dataset to a folder, which must not exist.

    The archive may have the dataset at its top or in a folder; what is outside of that folder is not kept.

    Args:
        archive: the file.
        module: the plug-in of the dataset, with DOWNLOAD.
        folder: the folder of the dataset; it appears only when it is complete.
        progress: called with the number of bytes that are written and at most written.

    Raises:
        BenchError: the archive is damaged or unsafe, or does not contain the dataset.
    """
    details: Download = module.DOWNLOAD
    with temporary_folder(folder) as temporary:
        unpack(archive, temporary, max_bytes=details.max_unpacked_bytes, progress=progress)
        root = _find_root(temporary, module)
        if root is None:
            raise BenchError(f"{archive.name} does not contain {module.TITLE}. Expected: {module.ABOUT}.")
        try:
            root.rename(folder)
        except OSError as error:
            raise BenchError(f"{folder} must not exist or be empty ({error.strerror}). Remove it.") from error


def _find_root(folder: Path, module: ModuleType) -> Path | None:
    """Return the folder nearest to the top in which the plug-in lists samples."""
    for candidate in _folders(folder):
        try:
            if module.samples(candidate):
                return candidate
        except BenchError:
            continue
    return None


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the folder and those below it, level by level."""
    level = [folder]
    for _ in range(MAX_DEPTH):
        yield from level
        level = sorted(path for parent in level for path in parent.iterdir() if path.is_dir())
