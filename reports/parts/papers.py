"""The tables of the AMI-Net paper as published, with their known slips, and how near a reproduction should come.

The numbers stand in `reports/published/` only; what is wrong with them is told beside them, never corrected.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.record import Record, Run

PUBLISHED = Path(__file__).resolve().parent.parent / "published"

LEVELS = {"image": "image_auroc", "pixel": "pixel_auroc"}
"""What the paper's tables print of each method, side by side."""

AVERAGES = {"average_texture": "texture average", "average_object": "object average", "average_all": "average of all"}

Values = dict[tuple[str, int, str], dict[str, str]]
"""By method, k (0 for all images) and category: the values as printed, in percent, by level; "" where none is."""


@dataclass(frozen=True, slots=True)
class Paper:
    """A table of the paper.

    Attributes:
        name: as `--table` takes it. title: what it shows. file: in reports/published/.
        campaign: of bench.toml, that fills it. methods: of the campaign, as bench.toml calls them.
        remarks: what a reader must know of the whole table.
    """

    name: str
    title: str
    file: str
    campaign: str
    dataset: str
    protocol: str
    methods: tuple[str, ...]
    ks: tuple[int, ...] = (0,)
    remarks: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        """As the paper counts: "Table I"."""
        return self.title.partition(": ")[0]

    @property
    def about(self) -> str:
        """What it shows."""
        return self.title.partition(": ")[2]

    @property
    def file_of_rows(self) -> str:
        """Where the names of its categories stand: Table IV prints averages only."""
        return TABLES["1"].file if self.ks != (0,) else self.file

    def holds(self, run: Run) -> bool:
        """Whether a run belongs into this table: a variant of a sweep does not."""
        return not run.sweep_keys and self.could_hold(run)

    def could_hold(self, run: Run) -> bool:
        """Whether it is at least of this data set and protocol."""
        return (run.dataset, run.protocol) == (self.dataset, self.protocol) and run.k in self.ks


ALL = ("aminet", "aminet_jitter", "patchcore")
OWN = (
    "AMI-Net's values are the best of 30 looks at the test set (the authors' code); the paper tells no seeds, repeats "
    "or deviations."
)
TABLES = {
    paper.name: paper
    for paper in (
        Paper(
            "1", "Table I: MVTec AD, one model a category", "table1_mvtec_one_for_one.csv", "table1", "mvtec",
            "one-for-one", ALL,
            remarks=(OWN, "The PatchCore column is its variant that keeps 25 % of the patches."),
        ),
        Paper(
            "2", "Table II: BTAD, one model a category", "table2_btad_one_for_one.csv", "table2", "btad",
            "one-for-one", ALL,
            remarks=(OWN, "The paper quotes the other methods from other papers (its references 41 and 42)."),
        ),
        Paper(
            "3", "Table III: MVTec AD, one model for all categories", "table3_mvtec_unified.csv", "table3", "mvtec",
            "unified", ALL,
            remarks=(OWN, "The paper quotes the other methods from UniAD's paper and from HVQ-Trans."),
        ),
        Paper(
            "4", "Table IV: MVTec AD, few-shot", "table4_mvtec_fewshot.csv", "table4", "mvtec", "kshot", ALL[:2],
            ks=(2, 4, 8),
            remarks=(OWN, "AMI-Net's is one draw of the images; ours is the mean of the draws of several seeds."),
        ),
    )
}  # fmt: skip

OURS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("aminet", {"jitter": False}, "AMI-Net"),
    ("aminet", {"jitter": True}, "AMI-Net‡"),
    ("patchcore", {}, "PatchCore"),
    ("riad", {}, "RIAD"),
    ("autoencoder", {"loss": "ssim"}, "AE-SSIM"),
)
"""Which published method ours is: its file in methods/, settings by which variants differ, the published name."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a reproduction may lie from the published value of its method, in points.

    Attributes:
        methods: published names. tables: of the paper, for which it is taken. selection: of the epoch.
        category: for one category. mean: for the mean over 15. source: why so much.
    """

    methods: tuple[str, ...]
    tables: tuple[str, ...]
    selection: str
    category: float
    mean: float
    source: str

    def of(self, categories: int) -> float:
        """For the mean over so many categories: their errors are taken as independent."""
        return min(self.category, self.mean * sqrt(15 / categories)) if categories > 1 else self.category


TOLERANCES = (
    Tolerance(
        ("AMI-Net", "AMI-Net‡"), ("1", "2", "3"), "oracle", 0.5, 0.1,
        "the authors' released weights, another run that also chose its epoch on the test set, lie up to 0.6 points "
        "from Table I in a category and 0.02 in the mean (ami_net_released_checkpoints.csv)",
    ),
    Tolerance(
        ("PatchCore",), ("1",), "last", 0.8, 0.1,
        "the authors' own results with 10 % of the patches lie up to 0.8 points from Table I, which keeps 25 %, in a "
        "category and 0.06 in the mean (other_reported_results.csv)",
    ),
)  # fmt: skip


RELEASED = "ami_net_released_checkpoints.csv"
"""What the authors' README tells of their released weights of AMI-Net‡ in the setting of Table I."""

SAME_WEIGHTS = Tolerance(
    ("AMI-Net‡",), ("1",), "last", 0.2, 0.1,
    "the same weights: what is left is how files are decoded and resized, and rounding to a tenth",
)  # fmt: skip


def published_name(run: Run) -> str:
    """The published method that a run is; "" where no table has it."""
    for method, settings, name in OURS:
        if run.method == method and all(run.settings.get(key) == value for key, value in settings.items()):
            return name
    return ""


def tolerance(method: str, table: str, selection: str) -> Tolerance | None:
    """How near a published method's reproduction should come; None where nobody knows."""
    for each in TOLERANCES:
        if method in each.methods and table in each.tables and selection == each.selection:
            return each
    return None


def asked(table: str) -> Paper:
    """The table of that name. Raises BenchError where there is none."""
    if table not in TABLES:
        raise BenchError(f"--table takes {', '.join(TABLES)}, fig8 or fig9; '{table}' is none of them. Name one.")
    return TABLES[table]


def narrowed(records: Sequence[Record], table: str) -> list[Record]:
    """The records that belong into that table or figure of the paper; all where none is named."""
    if not table:
        return list(records)
    if table == "fig9":
        return [record for record in records if TABLES["1"].could_hold(record.run)]
    paper = TABLES["1"] if table == "fig8" else asked(table)
    return [record for record in records if paper.holds(record.run)]


@cache
def values(file: str) -> Values:
    """What the table prints, in its order."""
    found: Values = {}
    for row in rows(file):
        key = (row["method"], int(row["k"] or 0), row["category"].removeprefix("class_"))
        found[key] = {level: row[metric] for level, metric in LEVELS.items()}
    return found


@cache
def categories(file: str) -> tuple[str, ...]:
    """The rows of a table in its order, averages among them."""
    return tuple(dict.fromkeys(category for _, _, category in values(file)))


def members(average: str, file: str) -> tuple[str, ...]:
    """The categories of which a row is the average; a category is its own."""
    names = categories(file)
    if average not in AVERAGES:
        return (average,)
    plain = [name for name in names if name not in AVERAGES]
    if average == "average_all":
        return tuple(plain)
    textures = names[: names.index("average_texture")]
    return tuple(name for name in plain if (name in textures) == (average == "average_texture"))


def rows(file: str) -> list[dict[str, str]]:
    """The rows of a file in reports/published/."""
    with (PUBLISHED / file).open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def timing() -> list[tuple[str, float, float]]:
    """Method, milliseconds an image and image AUROC in percent, as the text on Fig. 8 has them."""
    return [(row["method"], float(row["inference_ms"]), float(row["image_auroc"])) for row in rows("fig8_timing.csv")]


def few_shot() -> dict[str, list[tuple[int, float]]]:
    """Of each method in Table IV: k and mean image AUROC in percent."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows(TABLES["4"].file):
        found.setdefault(row["method"], []).append((int(row["k"]), float(row["image_auroc"])))
    return found


@cache
def _checks() -> dict[tuple[str, str, str, str], dict[str, str]]:
    """What is known of the printed averages: by table, method, average and level."""
    return {(row["table"], row["method"], row["average"], row["level"]): row for row in rows("average_checks.csv")}


def slips(table: str, method: str, category: str) -> Iterable[str]:
    """What is known to be wrong with a published entry, in sentences. `table` is as the paper counts: "Table I"."""
    if (table, method) == ("Table I", "AE-SSIM"):
        yield (
            "AE-SSIM's image values are no AUROC: each equals the rounded mean of its true negative and true positive "
            "rates in the classification table of the MVTec AD paper."
        )
    if (table, method) == ("Table I", "RIAD") and category in {"carpet", "grid"}:
        own = {"carpet": "96.3", "grid": "98.8"}[category]
        yield f"RIAD's paper has {own} pixel AUROC for {category}, with which the printed averages are right."
    for level in LEVELS:
        found = _checks().get((table, method, category, level), {"status": "ok"})
        told = f"{level} {AVERAGES.get(category, category)}"
        if found["status"] == "MISMATCH" or found["status"].startswith("rounding"):
            mean = float(found["mean_of_printed_rows"])
            yield f"The {told} is given as printed; the mean of {method}'s own rows is {mean:.2f}."
        elif found["status"] == "printed_missing":
            yield (
                f"The {told} is lost in the text from which the table was taken; the mean of {method}'s rows is "
                f"{float(found['mean_of_printed_rows']):.2f}."
            )
        elif found["status"] == "rows_missing" and found["printed"]:
            yield f"The {told} of {method} is printed without its rows."
