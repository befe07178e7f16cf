"""MPDD, metal parts defect detection: six painted metal parts, several at once, turned and out of focus.

Owner: Brno University of Technology (Jezek et al., ICUMT 2021), https://github.com/stepanje/MPDD. Licence
CC BY-NC-SA 4.0: no commercial use. 1346 images of 1024 x 1024 pixels, PNG.

Layout, as unpacked: `<category>/train/good/NNN.png`, `<category>/test/<defect>/NNN.png` and
`<category>/ground_truth/<defect>/NNN_mask.png`, as MVTec AD.
"""

from pathlib import Path

from bench.dataset import Sample

from .parts.layout import Counts, official

TITLE = "MPDD"
SYNTHETIC = False
ABOUT = (
    "MPDD, CC BY-NC-SA 4.0, 1346 images of 1024 x 1024 pixels, from https://github.com/stepanje/MPDD; unpacked it has "
    "folders as connector/train/good/, connector/test/<defect>/ and connector/ground_truth/<defect>/"
)

# Train, test good, test defective. [M] By category from recollection; their sums 888, 176 and 282 are the paper's.
COUNTS = {
    "bracket_black": Counts(289, 32, 47),
    "bracket_brown": Counts(185, 26, 51),
    "bracket_white": Counts(110, 30, 30),
    "connector": Counts(128, 30, 14),
    "metal_plate": Counts(54, 26, 71),
    "tubes": Counts(122, 32, 69),
}


def samples(root: Path) -> list[Sample]:
    """The categories found in `root`, or the one that `root` is; BenchError where there is none.

    Warns where categories are absent and where counts differ from the official ones.
    """
    return official(root, TITLE, COUNTS, f"Unpack it there or say where with --data DIR ({ABOUT}).")
