"""Your own images: a folder of categories, each with good training images and any test images.

Layout: `<category>/train/good/`, `<category>/test/good/`, `<category>/test/<defect>/` and, if there are masks,
`<category>/ground_truth/<defect>/` with files named `<stem>_mask.*` or `<stem>.*` after their image. All common image
formats are read. The root may be the folder of one category, or contain the categories up to three levels below.
Other splits, such as `validation/`, are not used.
"""

from pathlib import Path

from bench.dataset import Sample
from bench.errors import BenchError

from .parts.layout import check_root, list_categories, subfolders

TITLE = "Own images"
SYNTHETIC = False
ABOUT = (
    "your own images in the folders <category>/train/good/, <category>/test/<defect>/ and, for masks, "
    "<category>/ground_truth/<defect>/<stem>_mask.png"
)

MAX_DEPTH = 3
"""Number of levels below the root that are searched for categories."""


def samples(root: Path) -> list[Sample]:
    """List the categories below `root`, sorted by name. Raises BenchError if there is none or two share a name."""
    hint = f"Use this layout, or pass the folder with --data DIR ({ABOUT})."
    check_root(root, TITLE, hint)
    folders = _category_folders(root.resolve(), MAX_DEPTH, set())
    if not folders:
        raise BenchError(f"A category must be a folder with train/ and test/; none in {root}. {hint}")
    by_name: dict[str, Path] = {}
    for path in folders:
        if path.name in by_name:
            raise BenchError(
                f"Categories must have different names; '{path.name}' is in {by_name[path.name].parent} and in "
                f"{path.parent}. Rename one, or pass one of the two with --data."
            )
        by_name[path.name] = path
    return list_categories(folders, TITLE, hint)


def _category_folders(folder: Path, depth: int, visited: set[Path]) -> list[Path]:
    """Return the folders with train/ or test/, which are not searched further. A visited folder is skipped."""
    resolved = folder.resolve()
    if resolved in visited:
        return []
    visited.add(resolved)
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return [folder]
    if not depth:
        return []
    return [path for child in subfolders(folder) for path in _category_folders(child, depth - 1, visited)]
