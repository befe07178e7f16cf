"""BTAD, the beanTech Anomaly Detection dataset: three industrial products with body and surface defects.

Owner: beanTech and the University of Udine (Mishra et al., VT-ADL, ISIE 2021), https://github.com/pankajmishra000/VT-ADL.
License CC BY-NC-SA 4.0. 2540 images of 1600 x 1600 (01), 600 x 600 (02) and 800 x 600 (03) pixels.

Layout, as unpacked from `BTech_Dataset_transformed`: `<01|02|03>/train/ok/`, `<..>/test/{ok,ko}/` and
`<..>/ground_truth/ko/`. Images are .bmp or .png; masks are .png in 01 and 02 and .bmp in 03, with the stem of the
image (the AMI-Net authors' code). `ok` becomes "good"; the only defect type is "ko".
"""

from pathlib import Path

from bench.dataset import Download, Sample

from .parts.layout import Counts, Folders, list_official

TITLE = "BTAD"
SYNTHETIC = False
ABOUT = (
    "BTAD, CC BY-NC-SA 4.0, from https://github.com/pankajmishra000/VT-ADL; unpacked, BTech_Dataset_transformed/ has "
    "the folders 01/train/ok/, 01/test/ko/, 01/ground_truth/ko/ and so on"
)

DOWNLOAD = Download(
    page="https://github.com/pankajmishra000/VT-ADL",
    license="CC BY-NC-SA 4.0",
    license_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
    url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
    file="btad.zip",
    sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
    source="anomalib 2.7.0, anomalib/data/datamodules/image/btech.py; not verified with the archive",
    max_bytes=8_000_000_000,
    max_unpacked_bytes=16_000_000_000,
)

# Training, good test, defective test images. The counts per category were not verified against the data; their sums
# 1799, 451 and 290 are those in the AMI-Net paper.
COUNTS = {"01": Counts(400, 21, 49), "02": Counts(399, 30, 200), "03": Counts(1000, 400, 41)}


def samples(root: Path) -> list[Sample]:
    """List the categories in `root`, or `root` itself if it is a category.

    Logs a warning if categories are missing or counts differ from the official ones. Raises BenchError if there is no
    category.
    """
    return list_official(
        root, TITLE, COUNTS, f"Unpack it there or pass its folder with --data DIR ({ABOUT}).", Folders(good=("ok",))
    )
