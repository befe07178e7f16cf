"""Your own images: any folder of categories, each with good images to train on and any images to test on.

Layout: `<category>/train/good/`, `<category>/test/good/`, `<category>/test/<defect>/`, and masks where there are any in
`<category>/ground_truth/<defect>/`, named `<stem>_mask.*` or `<stem>.*` after their image. Every usual extension in any
case. The root may be one category's folder, or hold the categories up to three levels down. Other splits, such as
`validation/`, are left out.
"""

from pathlib import Path

from bench.dataset import Sample
from bench.errors import BenchError

from .parts.layout import categories, check_root, folders

TITLE = "Own images"
SYNTHETIC = False
ABOUT = (
    "your own images: folders as <category>/train/good/, <category>/test/<defect>/ and, for masks, "
    "<category>/ground_truth/<defect>/<stem>_mask.png"
)

LEVELS = 3


def samples(root: Path) -> list[Sample]:
    """The categories found in `root`, by name; BenchError where there is none or two share a name."""
    mend = f"Lay them out so, or say where they lie with --data DIR ({ABOUT})."
    check_root(root, TITLE, mend)
    found = _categories(root.resolve(), LEVELS, set())
    if not found:
        raise BenchError(f"A category is a folder with train/ and test/ in it; there is none in {root}. {mend}")
    named: dict[str, Path] = {}
    for path in found:
        if path.name in named:
            raise BenchError(
                f"Categories must differ in name; '{path.name}' is in {named[path.name].parent} and in {path.parent}. "
                "Rename one, or point --data at one of the two."
            )
        named[path.name] = path
    return categories(found, TITLE, mend)


def _categories(folder: Path, levels: int, seen: set[Path]) -> list[Path]:
    """Folders with train/ or test/ in them, not searched any deeper. A link to where the search has been is skipped."""
    place = folder.resolve()
    if place in seen:
        return []
    seen.add(place)
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return [folder]
    return [path for below in folders(folder) if levels for path in _categories(below, levels - 1, seen)]
