"""Group records for tables: a group is one method with one set of settings; a value is a mean over its seeds."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.errors import check_known
from bench.identity import dataset_numbers, group_key, saving_order
from bench.record import Record, Run, Selection

METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro_30": "AUPRO@0.3",
    "aupro_05": "AUPRO@0.05",
}
"""The metrics of every table, in order, with their headings."""

THRESHOLD_METRICS = {
    "image_precision": "precision",
    "image_recall": "recall",
    "image_f1": "F1",
    "image_fpr": "false positive rate",
}
"""The metrics at the decision threshold, which tables of calibrated runs show as well."""

LOCO_METRICS = {
    "image_auroc_logical": "image AUROC, logical",
    "image_auroc_structural": "image AUROC, structural",
    "spro_05": "sPRO@0.05",
}
"""The metrics that only MVTec LOCO AD has."""

HEADINGS = METRICS | {"image_f1max": "image F1-max", "pixel_f1max": "pixel F1-max"} | THRESHOLD_METRICS | LOCO_METRICS
"""All recorded metrics with their headings."""

MEAN = "mean"
LATENCY = "latency"

SWEEP_NOTE = "sweep: "
"""Start of the note with the swept settings, which a table of a sweep shows as its first column instead."""


@dataclass(frozen=True, slots=True)
class MeanStd:
    """Mean over seeds, standard deviation (n - 1; None for one seed) and number of seeds."""

    mean: float
    std: float | None
    n_seeds: int


@dataclass(frozen=True, slots=True)
class Group:
    """The records of one method on one dataset under one protocol, with one set of settings and one selection rule.

    If a category and seed has several records because its images have changed, the group has the latest one only.

    Attributes:
        records: successful records by (category, seed).
        failed: records of failed fits.
        selection: "last" epoch, or "oracle": the best epoch on the test set.
        dataset: name of the dataset; "parts (2 of 3)" if the records contain several datasets of this name.
    """

    records: dict[tuple[str, int], Record]
    failed: tuple[Record, ...]
    selection: Selection
    dataset: str

    @property
    def first(self) -> Record:
        """Any record of the group, for the fields that all of them share."""
        return next(iter(self.records.values()), *self.failed[:1])

    @property
    def categories(self) -> list[str]:
        """The requested categories, sorted; failed ones included."""
        return sorted({category for category, _ in self.records} | {record.category for record in self.failed})

    @property
    def seeds(self) -> list[int]:
        """The requested seeds, sorted; failed ones included."""
        return sorted({seed for _, seed in self.records} | {record.run.seed for record in self.failed})

    def mean_std(self, category: str, metric: str) -> MeanStd | None:
        """Return a metric of one category, or of `MEAN` over all categories; None if no record has it.

        Metrics are fractions, `LATENCY` is in milliseconds. The mean over categories is computed per seed, for the
        seeds that have all categories, and then averaged over seeds.
        """
        return self.mean_std_over(self.categories if category == MEAN else [category], metric)

    def mean_std_over(self, categories: Sequence[str], metric: str) -> MeanStd | None:
        """Return the mean of a metric over these categories; None if no seed has all of them."""
        means = self.seed_means(categories, metric)
        if not means:
            return None
        std = float(np.std(means, ddof=1)) if len(means) > 1 else None
        return MeanStd(float(np.mean(means)), std, len(means))

    def seed_means(self, categories: Sequence[str], metric: str) -> list[float]:
        """Return the mean over these categories for each seed that has all of them, by increasing seed."""
        means = []
        for seed in sorted({seed for _, seed in self.records}):
            records = [self.records[category, seed] for category in categories if (category, seed) in self.records]
            values = [value for value in (_value(record, metric) for record in records) if value is not None]
            if values and len(values) == len(categories):
                means.append(float(np.mean(values)))
        return means


def select_records(records: Sequence[Record], criteria: Mapping[str, Sequence[str]]) -> list[Record]:
    """Return the records that match all criteria.

    Args:
        records: all records.
        criteria: allowed values by name: "method" (of the alias or the file), "dataset", "protocol", "category", "seed"
            and "k"; no values allow all.

    Raises:
        BenchError: a value matches no record.
    """
    selected = list(records)
    for name, values in criteria.items():
        available = {value for record in records for value in _criterion(record, name)}
        check_known(values, sorted(available), f"a {name} of these records")
        selected = [record for record in selected if not values or _criterion(record, name) & {*values}]
    return selected


def _criterion(record: Record, name: str) -> set[str]:
    run = record.run
    if name == "method":
        return {run.name, run.method}
    return {record.category if name == "category" else str(getattr(run, name))}


def groups(records: Iterable[Record]) -> list[Group]:
    """Group records by `identity.group_key`; sort by dataset, protocol, k, title, settings and selection."""
    records = list(records)
    by_key: dict[tuple[str, ...], list[Record]] = {}
    numbers: dict[tuple[str, ...], int] = {}
    counts: dict[str, int] = {}
    for record, number in zip(records, dataset_numbers(records), strict=True):
        key = group_key(record, number)
        by_key.setdefault(key, []).append(record)
        numbers[key] = number
        counts[record.run.dataset] = max(counts.get(record.run.dataset, 0), number + 1)
    return [
        _make_group(members, _dataset_label(members[0].run.dataset, numbers[key], counts))
        for key, members in sorted(by_key.items())
    ]


def _dataset_label(name: str, number: int, counts: dict[str, int]) -> str:
    return name if counts[name] == 1 else f"{name} ({number + 1} of {counts[name]})"


def to_dict(record: Record) -> dict[str, Any]:
    """Return the main fields of a record as plain values: names, metrics (fractions), times, or the failure."""
    run = record.run
    return {
        "dataset": run.dataset,
        "protocol": run.protocol,
        "k": run.k,
        "name": run.name,
        "title": run.title,
        "sweep": {name: run.settings[name] for name in run.sweep_keys},
        "seed": run.seed,
        "category": record.category,
        "selection": record.selection,
        "failure": record.failure,
        "metrics": record.metrics,
        "latency_ms": record.latency.get("median_ms"),
        "seconds": record.seconds,
    }


def rows(members: Iterable[Group]) -> list[dict[str, Any]]:
    """Return the values of all tables as plain dicts: one per group and category, and one for the group's mean."""
    return [_row(group, category) for group in members for category in (*group.categories, MEAN)]


def _row(group: Group, category: str) -> dict[str, Any]:
    run = group.first.run
    values = {name: group.mean_std(category, name) for name in (*table_metrics(group), LATENCY)}
    return {
        "dataset": run.dataset,
        "dataset_label": group.dataset,
        "protocol": run.protocol,
        "k": run.k,
        "name": run.name,
        "title": run.title,
        "group_hash": run.group_hash,
        "selection": group.selection,
        "category": category,
        "values": {name: asdict(value) for name, value in values.items() if value is not None},
        "notes": table_notes(group),
    }


def count_label(records: Sized) -> str:
    """Return the number of records as text: "1 record", "2 records"."""
    return f"{len(records)} record{'' if len(records) == 1 else 's'}"


def format_percent(value: MeanStd | None) -> str:
    """Format a fraction in percent with one decimal, with ± standard deviation if there are several seeds."""
    if value is None:
        return "–"
    return f"{100 * value.mean:.1f}" + (f" ± {100 * value.std:.1f}" if value.std is not None else "")


def format_latency(value: MeanStd | None) -> str:
    """Format a latency with three significant digits; "–" for None."""
    return "–" if value is None else f"{format_significant(value.mean)} ms"


def format_significant(value: float, digits: int = 3) -> str:
    """Format a number with this many significant digits, without an exponent from 1e-6 to 1e12: "1450", "0.00012"."""
    if not 1e-6 <= abs(value) < 1e12:
        return f"{value:.{digits}g}"
    return np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")


def latency_note(group: Group) -> str:
    """Return how and on which devices the latency was measured, as the note of a value."""
    return f"latency: {latency_conditions(group)}"


def latency_conditions(group: Group) -> str:
    """Return how and on which devices the latency was measured."""
    return f"batch size 1, network to map and score, {timed_devices(group)}"


def timed_devices(group: Group) -> str:
    """Return the devices on which the latency was measured: "H100 and Xeon, 2 threads"; or "not measured"."""
    timed = [record for record in group.records.values() if "median_ms" in record.latency]
    return " and ".join(sorted({_device_label(record) for record in timed})) or "not measured"


def table_notes(group: Group) -> list[str]:
    """Return the notes of a group's table: its caveats and the metrics that some categories do not have."""
    return [*caveats(group), *_undefined_metrics(group)]


def caveats(group: Group) -> list[str]:
    """Return the caveats of every value of the group."""
    run = group.first.run
    notes = ["synthetic data"] if run.synthetic else []
    notes += [f"one of several datasets named {run.dataset}"] if group.dataset != run.dataset else []
    notes += [run.profile_note] if run.profile_note else []
    notes += [_limit_note(run.limit)] if run.limit else []
    notes += [_calibration_note(run)] if run.calibrate else []
    notes += ["pixel metrics at original resolution"] if run.resolution == "original" else []
    notes += _error_bound_note(group)
    notes += ["oracle: epoch chosen on the test set"] if group.selection == "oracle" else []
    notes += [f"in {run.precision}"] if run.precision != "float32" else []
    notes += ["compiled"] if run.compile else []
    notes += [f"{SWEEP_NOTE}{run.sweep_label}"] if run.sweep_keys else []
    notes += ["released checkpoint, not trained here"] if run.is_released_checkpoint else []
    notes += [_preprocessing_note(run)] if group.first.origin.get("preprocessing") == "--preprocessing" else []
    changed = [name for name in run.settings if group.first.origin.get(f"settings.{name}") == "--set"]
    notes += [f"set: {', '.join(f'{name}={run.settings[name]}' for name in changed)}"] if changed else []
    network = run.settings.get("backbone", "the network")
    notes += [f"random weights in {network}"] if "random" in run.file_hashes.values() else []
    return notes


def table_metrics(group: Group) -> dict[str, str]:
    """Return the metrics of the group's table with their headings; those of LOCO if a record has them."""
    return METRICS | loco_metrics(group) | (THRESHOLD_METRICS if group.first.run.calibrate else {})


def loco_metrics(group: Group) -> dict[str, str]:
    """Return the metrics that only MVTec LOCO AD has, as far as a record of the group has them."""
    measured = {name for record in group.records.values() for name in record.metrics}
    return {name: heading for name, heading in LOCO_METRICS.items() if name in measured}


def _limit_note(limit: int) -> str:
    return f"limited to {limit} training, {limit} good and {limit} defective test images per category"


def _calibration_note(run: Run) -> str:
    return f"threshold for a false positive rate of {run.calibrate:g}, set on good images excluded from training"


def _error_bound_note(group: Group) -> list[str]:
    """Return how exact the pixel metrics are if the set was too large for exact counting."""
    error_bound = max((record.metric_error_bound for record in group.records.values()), default=0.0)
    return [f"pixel metrics exact to {error_bound:.0e}"] if error_bound else []


def _preprocessing_note(run: Run) -> str:
    values = run.preprocessing
    crop = f", center crop {values['crop']}" if values.get("crop") else ""
    return f"preprocessing: {values.get('height')} x {values.get('width')}, {values.get('resample')}{crop}"


def missing_reasons(group: Group, categories: Sequence[str], metric: str) -> list[str]:
    """Explain why the mean over these categories does not exist: they failed, did not run, or have no such metric."""
    not_run = [f"{category} did not run" for category in _categories_not_run(group, categories)]
    return _reasons(group, categories, metric, not_run)


def missing_summary(group: Group, categories: Sequence[str], metric: str) -> list[str]:
    """Explain as `missing_reasons` does, with the number of the categories that did not run instead of their names."""
    count = len(_categories_not_run(group, categories))
    not_run = [f"{count} of {len(categories)} categories did not run"] if count else []
    return _reasons(group, categories, metric, not_run)


def _categories_not_run(group: Group, categories: Sequence[str]) -> list[str]:
    return [category for category in categories if category not in group.categories]


def _reasons(group: Group, categories: Sequence[str], metric: str, not_run: list[str]) -> list[str]:
    failed: list[str] = []
    by_reason: dict[str, list[str]] = {}
    for category in categories:
        failures = [record for record in group.failed if record.category == category]
        records = [record for (name, _), record in group.records.items() if name == category]
        if failures and not records:
            seeds = ", ".join(str(record.run.seed) for record in failures)
            failed.append(f"failed in {category}, seed {seeds}: {failures[0].failure.splitlines()[0]}")
        elif records and all(_value(record, metric) is None for record in records):
            by_reason.setdefault(records[0].undefined_metrics.get(metric, "not measured"), []).append(category)
    heading_of_metric = HEADINGS.get(metric, metric)
    undefined = [f"no {heading_of_metric} in {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return [*failed, *not_run, *undefined] or ["no seed has all categories"]


def _undefined_metrics(group: Group) -> list[str]:
    """Return the metrics that some categories do not have, with the reason; their mean does not exist."""
    notes = []
    for (category, _), record in sorted(group.records.items()):
        for name in (name for name in (*METRICS, *LOCO_METRICS) if name in record.undefined_metrics):
            level = "image" if name.startswith("image_") else "pixel"
            notes.append(f"no {level} metrics in {category} ({record.undefined_metrics[name]})")
    return list(dict.fromkeys(notes))


def _device_label(record: Record) -> str:
    environment = record.timed_environment
    count = environment.get("threads")
    threads = "" if "cuda" in environment else f", {count} thread{'' if count == 1 else 's'}"
    return f"{environment.get('device')}{threads}"


def _make_group(members: list[Record], dataset: str) -> Group:
    latest: dict[tuple[str, int], Record] = {}
    for record in sorted(members, key=lambda record: (*saving_order(record), not record.failure)):
        latest[record.category, record.run.seed] = record
    successful = {key: record for key, record in latest.items() if not record.failure}
    failed = tuple(record for record in latest.values() if record.failure)
    return Group(successful, failed, members[0].selection, dataset)


def _value(record: Record, metric: str) -> float | None:
    return record.latency.get("median_ms") if metric == LATENCY else record.metrics.get(metric)
