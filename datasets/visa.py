"""VisA, the visual anomaly data set: twelve products, some of them several at once, printed boards among them.

Owner: Amazon (Zou et al., SPot-the-Difference, ECCV 2022), https://github.com/amazon-science/spot-diff. Licence
CC BY 4.0. 1.9 GB, 10821 images, JPEG, about 1000 x 1500 pixels.

Layout, as unpacked from `VisA_20220922.tar`: `<category>/Data/Images/{Normal,Anomaly}/NNN.JPG`,
`<category>/Data/Masks/Anomaly/NNN.png`, and the splits in `split_csv/`, of which `1cls.csv` is the one that the field
reports: columns `object,split,label,image,mask`. Masks hold the index of a defect's class, so every pixel above zero
is defect; all defective images are one kind here, "anomaly".
"""

import csv
from pathlib import Path

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError

from .parts.layout import Counts, check_root, compare, contents, listed, log

TITLE = "VisA"
SYNTHETIC = False
ABOUT = (
    "VisA, CC BY 4.0, 1.9 GB, from https://github.com/amazon-science/spot-diff; unpacked it has split_csv/1cls.csv and "
    "folders as candle/Data/Images/Normal/ and candle/Data/Masks/Anomaly/"
)

# Train, test good, test defective. [M] By category from recollection; their sums 8659, 962 and 1200 are those of the
# unpacked 1cls.csv.
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
    """The rows of split_csv/1cls.csv whose images are there; BenchError where the file is absent or odd.

    Warns where categories or images are absent and where counts differ from the official ones.
    """
    mend = f"Unpack it there or say where with --data DIR ({ABOUT})."
    check_root(root, TITLE, mend)
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise BenchError(f"{TITLE} has split_csv/1cls.csv; {root} has not, but {contents(root)}. {mend}")
    every = [_sample(root, table, row) for row in _rows(table)]
    found = [sample for sample in every if sample.image.is_file()]
    if {sample.split for sample in found} != set(SPLITS):
        raise BenchError(f"{TITLE} needs images to train and to test on; {root} has not those of {table.name}. {mend}")
    present = {sample.category for sample in found}
    gone = [str(sample.image.relative_to(root)) for sample in every
            if sample.category in present and not sample.image.is_file()]  # fmt: skip
    if gone:
        log.warning("%s: %d images of %s are absent and left out: %s.", TITLE, len(gone), table.name, listed(gone))
    compare(found, TITLE, COUNTS)
    return sorted(found, key=lambda each: (each.category, each.split == "test", each.defect, each.image.name))


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise BenchError(f"{table} must be a readable table; it is not: {error}. Unpack it again.") from error
    for number, row in enumerate(rows, start=2):
        if any(row.get(column) is None for column in COLUMNS):
            raise BenchError(f"{table} has the columns {', '.join(COLUMNS)}; line {number} lacks one. Unpack it again.")
        if row["object"] not in COUNTS or row["split"] not in SPLITS or row["label"] not in LABELS:
            told = f"{row['object']}, {row['split']}, {row['label']}"
            raise BenchError(f"{table} names {TITLE}'s objects, train or test, normal or anomaly; line {number} says "
                             f"{told}. Unpack it again.")  # fmt: skip
        if row["split"] == "train" and row["label"] != "normal":
            raise BenchError(f"{table} trains on normal images only; line {number} does not. Unpack it again.")
    return rows


def _sample(root: Path, table: Path, row: dict[str, str]) -> Sample:
    masks = (_inside(root, table, row["mask"]),) if row["mask"] and row["label"] == "anomaly" else ()
    return Sample(_inside(root, table, row["image"]), row["object"], SPLITS[row["split"]], LABELS[row["label"]], masks)


def _inside(root: Path, table: Path, name: str) -> Path:
    """A file that the table names. Raises BenchError where it would lie outside the data set."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BenchError(f"{table} names files within {root}; {name} is none. Unpack it again.")
    return root / name
