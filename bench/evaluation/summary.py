"""Records grouped for tables: a group is a method in one setting, a cell the mean and spread of a metric over seeds."""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.record import Record, Run, Selection

METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro_30": "AUPRO@0.3",
    "aupro_05": "AUPRO@0.05",
}
"""The metrics that every table shows, in order, with their headings."""

CALIBRATED = {
    "image_precision": "precision",
    "image_recall": "recall",
    "image_f1": "F1",
    "image_fpr": "false positive rate",
}
"""Those at the threshold of a calibrated run, which its tables show as well."""

HEADINGS = METRICS | {"image_f1max": "image F1-max", "pixel_f1max": "pixel F1-max"} | CALIBRATED
"""All that is recorded."""

MEAN = "mean"
LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean over seeds, standard deviation (n - 1) over them or None where there is one seed, and how many there are."""

    mean: float
    std: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class Group:
    """The records of one method under one protocol with one set of settings and one selection rule.

    Where several are of one category and seed, because its images have changed, only the latest is here.

    Attributes:
        records: unfailed, by (category, seed). failed: the others.
        selection: "oracle" chose the epoch on the test set.
    """

    records: dict[tuple[str, int], Record]
    failed: tuple[Record, ...]
    selection: Selection

    @property
    def first(self) -> Record:
        """Any record of the group, for what they share."""
        return next(iter(self.records.values()), *self.failed[:1])

    @property
    def categories(self) -> list[str]:
        """The categories asked for, sorted; those that failed are among them."""
        return sorted({category for category, _ in self.records} | {record.category for record in self.failed})

    @property
    def seeds(self) -> list[int]:
        """The seeds asked for, sorted; those that failed are among them."""
        return sorted({seed for _, seed in self.records} | {record.run.seed for record in self.failed})

    def cell(self, category: str, metric: str) -> Cell | None:
        """A metric (a fraction; LATENCY in milliseconds) of a category, or of MEAN; None where no record has it.

        The mean over categories is taken a seed first, over the seeds that have all categories.
        """
        return self.mean(metric, self.categories) if category == MEAN else self.mean(metric, [category])

    def mean(self, metric: str, categories: Sequence[str]) -> Cell | None:
        """The same of the mean over these categories; None where no seed has all of them."""
        values = self._means(metric, categories)
        if not values:
            return None
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Cell(float(np.mean(values)), std, len(values))

    def _means(self, metric: str, categories: Sequence[str]) -> list[float]:
        means = []
        for seed in sorted({seed for _, seed in self.records}):
            own = [self.records[category, seed] for category in categories if (category, seed) in self.records]
            values = [value for value in (_value(record, metric) for record in own) if value is not None]
            if values and len(values) == len(categories):
                means.append(float(np.mean(values)))
        return means


def groups(records: Iterable[Record]) -> list[Group]:
    """The records, grouped; sorted by data set, protocol, k, title, settings and selection."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        run = record.run
        over = "/".join(_sortable(run.settings.get(name)) for name in run.sweep_keys)
        key = (run.dataset, run.protocol, f"{run.k:06d}", run.title, run.name, over, run.group_hash, record.selection)
        found.setdefault(key, []).append(record)
    return [_group(members) for _, members in sorted(found.items())]


def to_dict(record: Record) -> dict[str, Any]:
    """What a script wants to know of a record: what it is, its metrics (fractions), its times; or why it failed."""
    run = record.run
    return {
        "dataset": run.dataset,
        "protocol": run.protocol,
        "k": run.k,
        "name": run.name,
        "title": run.title,
        "over": {name: run.settings[name] for name in run.sweep_keys},
        "seed": run.seed,
        "category": record.category,
        "selection": record.selection,
        "failure": record.failure,
        "metrics": record.metrics,
        "latency_ms": record.latency.get("median_ms"),
        "seconds": record.seconds,
    }


def rows(found: Iterable[Group]) -> list[dict[str, Any]]:
    """The cells of all tables for a script: a row a group and category, one for its mean; with marks."""
    return [_row(group, category) for group in found for category in (*group.categories, MEAN)]


def _row(group: Group, category: str) -> dict[str, Any]:
    run = group.first.run
    cells = {name: group.cell(category, name) for name in (*METRICS, LATENCY)}
    return {
        "dataset": run.dataset,
        "protocol": run.protocol,
        "k": run.k,
        "name": run.name,
        "title": run.title,
        "variant": run.group_hash,
        "selection": group.selection,
        "category": category,
        "cells": {name: asdict(cell) for name, cell in cells.items() if cell is not None},
        "marks": table_notes(group),
    }


def count_label(records: Sized) -> str:
    """How many records there are: "1 record", "2 records"."""
    return f"{len(records)} record{'' if len(records) == 1 else 's'}"


def percent(cell: Cell | None) -> str:
    """A fraction in percent with one decimal, ± its spread over seeds where there are several; "–" for none."""
    if cell is None:
        return "–"
    return f"{100 * cell.mean:.1f}" + (f" ± {100 * cell.std:.1f}" if cell.std is not None else "")


def milliseconds(cell: Cell | None) -> str:
    """A latency with three significant digits; "–" for none."""
    return "–" if cell is None else f"{cell.mean:.3g} ms"


def topic(group: Group) -> str:
    """What methods can be compared on: data set and protocol, as a table's title says them."""
    run = group.first.run
    return f"{run.dataset} · {run.protocol}{f' k={run.k}' if run.k else ''}"


def topics(found: Iterable[Group]) -> dict[str, list[Group]]:
    """The groups by their topic, as "mvtec · kshot k=4"."""
    by_topic: dict[str, list[Group]] = {}
    for group in found:
        by_topic.setdefault(topic(group), []).append(group)
    return by_topic


def unique_names(members: Sequence[Group]) -> dict[str, Group]:
    """Each group by a name of its own: the title, with what a sweep varied, or, where needed, its name and variant."""
    found: dict[str, Group] = {}
    for group in members:
        run = group.first.run
        twins = [each.first.run for each in members if each is not group and each.selection == group.selection]
        same = [twin for twin in twins if twin.title == run.title]
        title = _title(group)
        if run.sweep_label and all(twin.sweep_label != run.sweep_label for twin in same):
            title += f" [{run.sweep_label}]"
        elif any(twin.name == run.name for twin in same):
            title += f" [{run.name} {run.group_hash}]"
        elif same:
            title += f" [{run.name}]"
        found[title] = group
    return found


def heading(group: Group) -> str:
    """Method, data set and protocol, as a table's title says them."""
    return f"{_title(group)} · {topic(group)}"


def _title(group: Group) -> str:
    return group.first.run.title + (" (oracle)" if group.selection == "oracle" else "")


def latency_device(group: Group) -> str:
    """What the latency was measured on."""
    places = {_place(record) for record in group.records.values() if record.latency}
    where = " and ".join(sorted(places)) or "not measured"
    return f"latency: batch 1, network to map and score, {where}"


def table_notes(group: Group) -> list[str]:
    """What a reader must know of the group: its caveats, and the metrics that it lacks."""
    return [*caveats(group), *_missing(group)]


def caveats(group: Group) -> list[str]:
    """What a reader must know beside every number of the group."""
    run = group.first.run
    found = ["synthetic data"] if run.synthetic else []
    found += [run.profile_note] if run.profile_note else []
    found += [f"limited to {run.limit} images a kind"] if run.limit else []
    found += [_calibrated(run)] if run.calibrate else []
    found += ["pixel metrics at original resolution"] if run.resolution == "original" else []
    found += _error(group)
    found += ["oracle: epoch chosen on the test set"] if group.selection == "oracle" else []
    found += [f"in {run.precision}"] if run.precision != "float32" else []
    found += ["compiled"] if run.compile else []
    found += [f"over: {run.sweep_label}"] if run.sweep_keys else []
    found += ["released checkpoint, not trained here"] if run.is_released_checkpoint else []
    found += [_own_preprocessing(run)] if group.first.origin.get("preprocessing") == "--preprocessing" else []
    changed = [name for name in run.settings if group.first.origin.get(f"settings.{name}") == "--set"]
    found += [f"set: {', '.join(f'{name}={run.settings[name]}' for name in changed)}"] if changed else []
    found += [f"random weights in {run.settings.get('backbone', 'it')}"] if "random" in run.file_hashes.values() else []
    return found


def table_metrics(group: Group) -> dict[str, str]:
    """The metrics that a table of the group shows, with their headings."""
    return METRICS | (CALIBRATED if group.first.run.calibrate else {})


def _calibrated(run: Run) -> str:
    return f"threshold for a false positive rate of {run.calibrate:g}, set by good images held out of training"


def _error(group: Group) -> list[str]:
    """What counting the pixels of a huge set in groups may cost."""
    error = max((record.metric_error_bound for record in group.records.values()), default=0.0)
    return [f"pixel metrics exact to {error:.0e}"] if error else []


def _sortable(value: Any) -> str:
    return f"{value:024.9f}" if isinstance(value, int | float) else str(value)


def _own_preprocessing(run: Run) -> str:
    told = run.preprocessing
    crop = f", centre {told['crop']}" if told.get("crop") else ""
    return f"prepared to {told.get('height')} x {told.get('width')}, {told.get('resample')}{crop}"


def missing_reasons(group: Group, categories: Sequence[str], metric: str) -> list[str]:
    """Why there is no such mean, in sentences: categories failed, are not done, or lack the metric for some reason."""
    found: list[str] = []
    lacking: dict[str, list[str]] = {}  # by reason
    for own in categories:
        failures = [record for record in group.failed if record.category == own]
        records = [record for (name, _), record in group.records.items() if name == own]
        if not records:
            seeds = ", ".join(str(record.run.seed) for record in failures)
            told = f"failed in {own}, seed {seeds}: {failures[0].failure.splitlines()[0]}" if failures else ""
            found.append(told or f"{own} is not done")
        elif all(_value(record, metric) is None for record in records):
            lacking.setdefault(records[0].undefined_metrics.get(metric, "not measured"), []).append(own)
    found += [f"no {HEADINGS.get(metric, metric)} in {', '.join(own)}: {reason}" for reason, own in lacking.items()]
    return found or ["no seed has all categories"]


def _missing(group: Group) -> list[str]:
    """The metrics that some categories lack, with the reason: their mean can't be had."""
    found = []
    for (category, _), record in sorted(group.records.items()):
        for name in (name for name in METRICS if name in record.undefined_metrics):
            level = "image" if name.startswith("image_") else "pixel"
            found.append(f"no {level} metrics in {category} ({record.undefined_metrics[name]})")
    return list(dict.fromkeys(found))


def _place(record: Record) -> str:
    count = record.environment.get("threads")
    threads = "" if "cuda" in record.environment else f", {count} thread{'' if count == 1 else 's'}"
    return f"{record.environment.get('device')}{threads}"


def _group(members: list[Record]) -> Group:
    latest: dict[tuple[str, int], Record] = {}
    for record in sorted(members, key=lambda record: (record.started, not record.failure)):
        latest[record.category, record.run.seed] = record
    good = {place: record for place, record in latest.items() if not record.failure}
    return Group(good, tuple(record for record in latest.values() if record.failure), members[0].selection)


def _value(record: Record, metric: str) -> float | None:
    return record.latency.get("median_ms") if metric == LATENCY else record.metrics.get(metric)
