"""MPDD, Metal Parts Defect Detection: six painted metal parts, often several per image, rotated or out of focus.

Owner: Brno University of Technology (Jezek et al., ICUMT 2021), https://github.com/stepanje/MPDD. License
CC BY-NC-SA 4.0: no commercial use. 1346 images of 1024 x 1024 pixels, PNG.

Layout, as unpacked: `<category>/train/good/NNN.png`, `<category>/test/<defect>/NNN.png` and
`<category>/ground_truth/<defect>/NNN_mask.png`, as in MVTec AD.
"""

from pathlib import Path

from bench.dataset import Download, Sample

from .parts.layout import Counts, list_official

TITLE = "MPDD"
SYNTHETIC = False
ABOUT = (
    "MPDD, CC BY-NC-SA 4.0, 1346 images of 1024 x 1024 pixels, from https://github.com/stepanje/MPDD; unpacked it has "
    "the folders connector/train/good/, connector/test/<defect>/, connector/ground_truth/<defect>/ and so on"
)

DOWNLOAD = Download(
    page="https://github.com/stepanje/MPDD",
    license="CC BY-NC-SA 4.0",
    license_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
    url="",
    file="MPDD.zip",
    sha256="",
    source="the owner's page links to a shared folder, which has no direct address of an archive",
    max_bytes=8_000_000_000,
    max_unpacked_bytes=16_000_000_000,
)

# Training, good test, defective test images. The counts per category were not verified against the data; their sums
# 888, 176 and 282 are those in the paper.
COUNTS = {
    "bracket_black": Counts(289, 32, 47),
    "bracket_brown": Counts(185, 26, 51),
    "bracket_white": Counts(110, 30, 30),
    "connector": Counts(128, 30, 14),
    "metal_plate": Counts(54, 26, 71),
    "tubes": Counts(122, 32, 69),
}


def samples(root: Path) -> list[Sample]:
    """List the categories in `root`, or `root` itself if it is a category.

    Logs a warning if categories are missing or counts differ from the official ones. Raises BenchError if there is no
    category.
    """
    return list_official(root, TITLE, COUNTS, f"Unpack it there or pass its folder with --data DIR ({ABOUT}).")
