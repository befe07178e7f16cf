"""Tables of measured means: of one benchmark, the leaderboard of a store, calibrated thresholds, speed and memory."""

import math
import shlex
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.stats import betabinom, binomtest

from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.summary import (
    LATENCY,
    MEAN,
    METRICS,
    Group,
    caveats,
    format_significant,
    timed_devices,
)
from bench.record import Record
from bench.report_format import Table, TableCell
from bench.store import Store

from .tables import NO_VALUE, divide_caveats, rank_cells, rank_comparable, ranking_key, value_cell

NOT_COMPARABLE = (
    "Best and second best are marked within each part of the table: only methods with the same images, limit, "
    "calibration, resolution and selection of the epoch are compared."
)
OTHER_DEVICES = "Latencies are compared only if they were measured on the same device with the same number of threads."

ALPHA = 0.01
"""Level of the test whether a reached rate differs from the target."""

_CALIBRATION_REMARK = (
    "Target and reached are false positive rates, of the good test images with a score above the threshold. p: "
    "two-sided exact binomial test of the reached rate against the target, which has a note below "
    f"{ALPHA:.0%}. Expected: the central 95 % of the reached rates over draws of the calibration images, if these and "
    "the test images come from the same distribution (beta-binomial distribution)."
)

_SIZES = {"trainable_parameters": "trainable parameters", "bank_rows": "rows in the memory bank"}
"""Entries of `method_info` that give the size of a method."""

LEADERBOARD_FILTERS = (0, 1, 2, 3)
"""The columns with a filter: dataset, protocol, selection and method."""

N_LEADERBOARD_TEXTS = 5

_LEADERBOARD_REMARK = (
    "Sorted by image AUROC within each dataset, protocol and selection of the epoch. Only rows with the same values of "
    "these three, the same images and the same caveats are comparable."
)
_COMMANDS_REMARK = (
    "The command repeats the records of the row and compares the numbers; `runs` is the folder of records. It "
    "is made from the path of the records, and not from the command that they contain."
)


# --- Means ------------------------------------------------------------------------------------------------------------


def overview_table(members: Sequence[Group]) -> Table:
    """Return one row per method of a benchmark, in one part of the table for each set of comparable methods.

    A caveat of all methods is a remark; one of some methods is a note that names the method.
    """
    names = {id(group): name for name, group in groups_by_unique_name(members).items()}
    shared_caveats, notes_by_name = divide_caveats({names[id(group)]: caveats(group) for group in members})
    parts: dict[Hashable, list[Group]] = {}
    for group in sorted(members, key=lambda group: group.selection):
        parts.setdefault(ranking_key(group, group.categories), []).append(group)
    rows: list[tuple[TableCell, ...]] = []
    rules_after = []
    for groups in parts.values():
        columns = [rank_cells([value_cell(group, MEAN, metric) for group in groups]) for metric in METRICS]
        latencies = [value_cell(group, MEAN, LATENCY) for group in groups]
        columns.append(rank_comparable(latencies, [timed_devices(group) for group in groups], lowest=True))
        for index, group in enumerate(groups):
            name = names[id(group)]
            cells = [_without_caveats(column[index], name, group) for column in columns]
            rows.append((TableCell.from_text(name, *notes_by_name[name]), *cells))
        rules_after.append(len(rows) - 1)
    devices = {timed_devices(group) for group in members if group.mean_std(MEAN, LATENCY)}
    remarks = [
        *shared_caveats,
        *([NOT_COMPARABLE] if len(parts) > 1 else []),
        *([OTHER_DEVICES] if len(devices) > 1 else []),
        *calibration_warnings({names[id(group)]: group for group in members}),
    ]
    header = ("method", *METRICS.values(), LATENCY)
    return Table.from_rows("", header, rows, rules_after=rules_after, remarks=remarks)


def _without_caveats(cell: TableCell, name: str, group: Group) -> TableCell:
    """Return the cell with the notes that explain its value only, which then name the method."""
    return TableCell(cell.runs, tuple(f"{name}: {note}" for note in cell.notes if note not in caveats(group)))


# --- Leaderboard ------------------------------------------------------------------------------------------------------


def leaderboard_table(members: Sequence[tuple[str, Group]]) -> Table:
    """Return one row per group: dataset, protocol, selection, name, seeds, means, latency, command.

    Args:
        members: name within its benchmark, and group.
    """
    paths = {id(group): [_path(record) for record in group.records.values()] for _, group in members}
    rows: list[tuple[str | TableCell, ...]] = []
    for name, group in sorted(members, key=lambda member: _leaderboard_order(member[1])):
        run, notes = group.first.run, caveats(group)
        protocol = f"{run.protocol} k={run.k}" if run.k else run.protocol
        cells = [value_cell(group, MEAN, metric) for metric in (*METRICS, LATENCY)]
        cells = [TableCell(cell.runs, tuple(note for note in cell.notes if note not in notes)) for cell in cells]
        seeds = ", ".join(map(str, group.seeds))
        others = [path for _, other in members if other is not group for path in paths[id(other)]]
        text = (group.dataset, protocol, group.selection, TableCell.from_text(name, *notes), seeds)
        rows.append((*text, *cells, _command(paths[id(group)], others)))
    header = ("dataset", "protocol", "selection", "method", "seeds", *METRICS.values(), LATENCY, "repeat with")
    return Table.from_rows("", header, rows, remarks=(_LEADERBOARD_REMARK, _COMMANDS_REMARK))


def _leaderboard_order(group: Group) -> tuple[str, str, int, str, float]:
    value = group.mean_std(MEAN, "image_auroc")
    run = group.first.run
    return group.dataset, run.protocol, run.k, group.selection, -value.mean if value else 1.0


def _path(record: Record) -> PurePosixPath:
    return PurePosixPath(Store(Path("runs")).path_of(record).as_posix())


def _command(paths: Sequence[PurePosixPath], others: Sequence[PurePosixPath]) -> str:
    """Return the command for the smallest folder with all records of a row and none of another; else for the first."""
    if not paths:
        return "–"
    target = paths[0]
    if len(paths) > 1:
        common = next(parent for parent in paths[0].parents if all(path.is_relative_to(parent) for path in paths))
        target = paths[0] if any(other.is_relative_to(common) for other in others) else common
    return shlex.join(["bench", "run", "--reproduce", str(target)])


# --- Calibrated thresholds --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReachedRate:
    """The false positive rate of one record at its calibrated threshold.

    Attributes:
        target: false positive rate that the threshold was set for.
        n_above: number of good test images above the threshold.
        n_good: number of good test images.
        n_calibration: number of good images that set the threshold.
    """

    target: float
    n_above: int
    n_good: int
    n_calibration: int

    @property
    def p(self) -> float:
        """The p value of the two-sided exact binomial test of the reached rate against the target."""
        return float(binomtest(self.n_above, self.n_good, self.target).pvalue)

    @property
    def expected(self) -> tuple[float, float] | None:
        """The central 95 % of the reached rate over draws of the calibration images; None if their number is unknown.

        The fraction of good images above the r-th lowest of n scores is Beta(n + 1 - r, r).
        """
        if not self.n_calibration:
            return None
        rank = math.ceil((self.n_calibration + 1) * (1 - self.target) - 1e-9)  # as `metrics.threshold_at`
        counts = betabinom(self.n_good, self.n_calibration + 1 - rank, rank)
        return float(counts.ppf(0.025)) / self.n_good, float(counts.ppf(0.975)) / self.n_good

    def __str__(self) -> str:
        """Return the rate in percent and as a count: "19.2 (5 of 26)"."""
        return f"{100 * self.n_above / self.n_good:.1f} ({self.n_above} of {self.n_good})"


def reached_rate(record: Record) -> ReachedRate | None:
    """Return the false positive rate of a record; None if it is not calibrated or has no good test images."""
    n_good = record.data_report.get("good_scores", {}).get("images", 0)
    if record.threshold is None or "image_fpr" not in record.metrics or not n_good or not record.run.calibrate:
        return None
    n_above = round(record.metrics["image_fpr"] * n_good)
    return ReachedRate(record.run.calibrate, n_above, n_good, len(record.calibration_files))


def calibration_table(groups_by_name: Mapping[str, Group]) -> list[Table]:
    """Return one row per method, category and seed with a calibrated threshold; empty without any."""
    header = (
        *("method", "category", "seed", "threshold", "pixel threshold", "target", "reached", "p", "expected"),
        "recall",
    )
    rows: list[tuple[str | TableCell, ...]] = []
    for name, record in _calibrated(groups_by_name):
        rate = reached_rate(record)
        recall = record.metrics.get("image_recall")
        rows.append((
            name,
            record.category,
            str(record.run.seed),
            _threshold(record.threshold),
            _threshold(record.pixel_threshold),
            f"{100 * record.run.calibrate:g}" if record.run.calibrate else NO_VALUE,
            str(rate) if rate else NO_VALUE,
            _p_cell(rate),
            _expected(rate),
            NO_VALUE if recall is None else f"{100 * recall:.1f}",
        ))  # fmt: skip
    return [Table.from_rows("Calibrated thresholds", header, rows, remarks=[_CALIBRATION_REMARK])] if rows else []


def calibration_warnings(groups_by_name: Mapping[str, Group]) -> list[str]:
    """Return a sentence per record whose reached rate differs from the target by more than chance allows."""
    sentences = []
    for name, record in _calibrated(groups_by_name):
        rate = reached_rate(record)
        if rate and rate.p < ALPHA:
            sentences.append(
                f"Warning: {name} reached a false positive rate of {100 * rate.n_above / rate.n_good:.1f} % "
                f"({rate.n_above} of {rate.n_good}) on {record.category}, seed {record.run.seed}, for a target of "
                f"{100 * rate.target:g} %: more than chance allows (binomial test, p = {rate.p:.2g})."
            )
    return sentences


def _calibrated(groups_by_name: Mapping[str, Group]) -> Iterator[tuple[str, Record]]:
    for name, group in groups_by_name.items():
        for _, record in sorted(group.records.items(), key=lambda item: item[0]):
            if record.threshold is not None:
                yield name, record


def _threshold(value: float | None) -> str:
    return NO_VALUE if value is None else format_significant(value, 4)


def _p_cell(rate: ReachedRate | None) -> TableCell:
    if rate is None:
        return TableCell.from_text(NO_VALUE)
    cell = TableCell.from_text(f"{rate.p:.3f}" if rate.p >= 0.001 else "< 0.001")
    return cell if rate.p >= ALPHA else TableCell.from_text(cell, "differs from the target by more than chance allows")


def _expected(rate: ReachedRate | None) -> str:
    if rate is None or rate.expected is None:
        return NO_VALUE
    low, high = rate.expected
    return f"{100 * low:.1f} to {100 * high:.1f}"


# --- Speed and memory -------------------------------------------------------------------------------------------------


def resource_tables(groups: Sequence[Group]) -> list[Table]:
    """Return the tables of time and memory of one benchmark."""
    groups_by_name = {
        name: group
        for name, group in groups_by_unique_name(groups).items()
        if group.selection == "last" and group.records
    }
    return [table for table in (_speed_table(groups_by_name), _memory_table(groups_by_name)) if table]


def _speed_table(groups_by_name: dict[str, Group]) -> Table | None:
    if not groups_by_name:
        return None
    keys = [(ranking_key(group, group.categories), timed_devices(group)) for group in groups_by_name.values()]
    latencies = [value_cell(group, MEAN, LATENCY) for group in groups_by_name.values()]
    latencies = rank_comparable(latencies, keys, lowest=True)
    rows = []
    for (name, group), latency in zip(groups_by_name.items(), latencies, strict=True):
        records = list(group.records.values())
        low, high = (_mean(record.latency.get(name) for record in records) for name in ("p5_ms", "p95_ms"))
        rows.append(
            (
                name,
                latency,
                NO_VALUE
                if low is None or high is None
                else f"{format_significant(low)} to {format_significant(high)} ms",
                _seconds(_mean(record.seconds.get("fit") for record in records)),
                _seconds(_mean(_seconds_per_image(record) for record in records)),
                timed_devices(group),
            )
        )
    header = ("method", "latency", "p5 to p95", "fit", "predict, per image", "latency measured on")
    remark = (
        "Latency: one image, from the preprocessed tensor on the device to map and score on the device. Predict: the "
        "whole test set in batches, without image decoding, divided by the number of images. Means over categories and "
        "seeds. Times on different machines are not comparable."
    )
    return Table.from_rows("Speed", header, rows, remarks=[remark])


def _memory_table(groups_by_name: dict[str, Group]) -> Table | None:
    records = {name: list(group.records.values()) for name, group in groups_by_name.items()}
    keys = [(ranking_key(group, group.categories), timed_devices(group)) for group in groups_by_name.values()]
    columns = [
        rank_comparable([_peak(members, location) for members in records.values()], keys, lowest=True)
        for location in ("host", "device")
    ]
    if all(cell.text == NO_VALUE for column in columns for cell in column):
        return None
    rows = [(name, *peaks, _size(members)) for (name, members), *peaks in zip(records.items(), *columns, strict=True)]
    remark = "Highest peak of all categories, during fit and test. Host: memory of the whole process."
    return Table.from_rows("Memory", ("method", "host", "device", "size"), rows, remarks=[remark])


def _peak(records: Iterable[Record], location: str) -> TableCell:
    peak = max((record.memory.get(location, 0) for record in records), default=0)
    return TableCell.from_text(f"{peak / 1e6:.0f} MB" if peak else NO_VALUE)


def _size(records: Iterable[Record]) -> str:
    """Return the largest sizes that the method reports in `method_info`."""
    infos = [record.method_info for record in records]
    sizes = []
    for key, label in _SIZES.items():
        values = [info[key] for info in infos if isinstance(info.get(key), int)]
        sizes += [f"{max(values):,} {label}"] if values else []
    return ", ".join(sizes) or NO_VALUE


def _mean(values: Iterable[float | None]) -> float | None:
    measured_values = [value for value in values if value is not None]
    return float(np.mean(measured_values)) if measured_values else None


def _seconds_per_image(record: Record) -> float | None:
    if "predict" not in record.seconds or not record.test_files:
        return None
    return record.seconds["predict"] / len(record.test_files)


def _seconds(value: float | None) -> str:
    return NO_VALUE if value is None else f"{format_significant(value)} s"
