"""VisA, the Visual Anomaly dataset: twelve products, some with several objects per image, among them printed boards.

Owner: Amazon (Zou et al., SPot-the-Difference, ECCV 2022), https://github.com/amazon-science/spot-diff. License
CC BY 4.0. 1.9 GB, 10821 images, JPEG, about 1000 x 1500 pixels.

Layout, as unpacked from `VisA_20220922.tar`: `<category>/Data/Images/{Normal,Anomaly}/NNN.JPG`,
`<category>/Data/Masks/Anomaly/NNN.png`, and the splits in `split_csv/`, of which `1cls.csv` is the common benchmark,
with the columns `object,split,label,image,mask`. Masks contain the class index of a defect, so every pixel above zero
is defective; all defective images have the defect "anomaly".
"""

import csv
from pathlib import Path

from bench.dataset import GOOD, Download, Sample, Split
from bench.errors import BenchError

from .parts.files import check_root, describe_folder, join_names, log
from .parts.layout import Counts, warn_count_mismatch

TITLE = "VisA"
SYNTHETIC = False
ABOUT = (
    "VisA, CC BY 4.0, 1.9 GB, from https://github.com/amazon-science/spot-diff; unpacked it has split_csv/1cls.csv and "
    "the folders candle/Data/Images/Normal/, candle/Data/Masks/Anomaly/ and so on"
)

DOWNLOAD = Download(
    page="https://github.com/amazon-science/spot-diff",
    license="CC BY 4.0",
    license_url="https://creativecommons.org/licenses/by/4.0/",
    url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
    file="VisA_20220922.tar",
    sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
    source="anomalib 2.7.0, anomalib/data/datamodules/image/visa.py; not verified with the archive",
    max_bytes=4_000_000_000,
    max_unpacked_bytes=8_000_000_000,
)

# Training, good test, defective test images. The counts per category were not verified against the data; their sums
# 8659, 962 and 1200 are those of the unpacked 1cls.csv.
COUNTS = {
    "candle": Counts(900, 100, 100),
    "capsules": Counts(542, 60, 100),
    "cashew": Counts(450, 50, 100),
    "chewinggum": Counts(453, 50, 100),
    "fryum": Counts(450, 50, 100),
    "macaroni1": Counts(900, 100, 100),
    "macaroni2": Counts(900, 100, 100),
    "pcb1": Counts(904, 100, 100),
    "pcb2": Counts(901, 100, 100),
    "pcb3": Counts(905, 101, 100),
    "pcb4": Counts(904, 101, 100),
    "pipe_fryum": Counts(450, 50, 100),
}

COLUMNS = ("object", "split", "label", "image", "mask")
SPLITS: dict[str, Split] = {"train": "train", "test": "test"}
LABELS = {"normal": GOOD, "anomaly": "anomaly"}


def samples(root: Path) -> list[Sample]:
    """List the rows of split_csv/1cls.csv whose images exist.

    Logs a warning if categories or images are missing or counts differ from the official ones. Raises BenchError if
    the table is missing or invalid.
    """
    hint = f"Unpack it there or pass its folder with --data DIR ({ABOUT})."
    check_root(root, TITLE, hint)
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise BenchError(f"{TITLE} needs split_csv/1cls.csv; {root} has {describe_folder(root)}. {hint}")
    rows = [_sample(root, table, row) for row in _read_rows(table)]
    present = [sample for sample in rows if sample.image.is_file()]
    if {sample.split for sample in present} != set(SPLITS):
        raise BenchError(f"{TITLE} needs training and test images; {root} lacks those of {table.name}. {hint}")
    categories = {sample.category for sample in present}
    missing = [str(sample.image.relative_to(root)) for sample in rows
               if sample.category in categories and not sample.image.is_file()]  # fmt: skip
    if missing:
        log.warning("%s: %d images of %s are missing: %s.", TITLE, len(missing), table.name, join_names(missing))
    warn_count_mismatch(present, TITLE, COUNTS)
    return sorted(
        present, key=lambda sample: (sample.category, sample.split == "test", sample.defect, sample.image.name)
    )


def _read_rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise BenchError(f"{table} must be a readable CSV file: {error}. Unpack it again.") from error
    for number, row in enumerate(rows, start=2):
        if any(row.get(column) is None for column in COLUMNS):
            raise BenchError(
                f"{table} must have the columns {', '.join(COLUMNS)}; line {number} lacks one. Unpack it again."
            )
        if row["object"] not in COUNTS or row["split"] not in SPLITS or row["label"] not in LABELS:
            values = f"{row['object']}, {row['split']}, {row['label']}"
            raise BenchError(
                f"{table} must have a category of {TITLE}, train or test, and normal or anomaly; line {number} has "
                f"{values}. Unpack it again."
            )
        if row["split"] == "train" and row["label"] != "normal":
            raise BenchError(
                f"{table} must have normal training images only; line {number} has an anomaly. Unpack it again."
            )
    return rows


def _sample(root: Path, table: Path, row: dict[str, str]) -> Sample:
    masks = (_file(root, table, row["mask"]),) if row["mask"] and row["label"] == "anomaly" else ()
    return Sample(_file(root, table, row["image"]), row["object"], SPLITS[row["split"]], LABELS[row["label"]], masks)


def _file(root: Path, table: Path, name: str) -> Path:
    """Return a file that the table names. Raises BenchError if it is outside the dataset."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BenchError(f"{table} must name files inside {root}, got {name}. Unpack it again.")
    return root / name
