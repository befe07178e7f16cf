"""Two groups of records side by side: settings, metrics per category, times, and images on which they disagree."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import rankdata

from bench.errors import BenchError
from bench.evaluation.bootstrap import BootstrapSamples, differences
from bench.evaluation.group_names import heading
from bench.evaluation.summary import LATENCY, METRICS, Group, MeanStd, format_latency, groups, latency_conditions
from bench.identity import differing_values, run_hash
from bench.record import Record
from bench.report_format import Block, Report, Section, Table
from bench.store import Store, to_row

from .prediction_data import bootstrap_by_category, load_predictions
from .statistics_tables import images_key
from .tables import NO_VALUE, format_points

MAX_IMAGES = 10
"""Number of images on which two methods disagree most that a comparison names."""

_MAIN_METRICS = ("image_auroc", "pixel_auroc", "aupro_30")


def comparison(records: Sequence[Record], store: Store, first: str, second: str) -> Report:
    """Build the comparison of two groups of records.

    Args:
        records: all records of the store.
        store: the store with their predictions.
        first: DATASET/PROTOCOL[-K]/NAME as `bench list runs` prints it, with /HASH if several groups have the name.
        second: the same for the other group.

    Raises:
        BenchError: a text does not name exactly one group.
    """
    one, other = _find_both(records, first, second)
    titles = _titles(one, other)
    sections = [
        Section("", (f"First: {heading(one)}. Second: {heading(other)}. Differences are first minus second.",)),
        Section("Settings that differ", (_settings_table(one, other, titles),)),
        Section("Metrics", _metrics_table(one, other, store)),
        Section("Latency", (_latency_table(one, other, titles),)),
        Section("Images on which they disagree most", (_disagreements_table(one, other, store, titles),)),
    ]
    return Report("comparison", f"{titles[0]} and {titles[1]}", tuple(sections), ())


def comparison_values(records: Sequence[Record], store: Store, first: str, second: str) -> dict[str, Any]:
    """Return the numbers of `comparison` as plain values; its arguments and errors are the same."""
    one, other = _find_both(records, first, second)
    return {
        "runs": [
            {
                "name": group.first.run.store_name,
                "group_hash": group.first.run.group_hash,
                "title": group.first.run.title,
                "selection": group.selection,
                "latency_ms": mean.mean if (mean := _latency(group)) else None,
                "latency_conditions": latency_conditions(group),
            }
            for group in (one, other)
        ],
        "is_comparable": images_key(one) == images_key(other),
        "settings": {name: list(values) for name, values in _settings(one, other).items()},
        "metrics": _metrics(one, other, store),
        "disagreements": _disagreements(one, other, store)[:MAX_IMAGES],
    }


def _find_both(records: Sequence[Record], first: str, second: str) -> tuple[Group, Group]:
    members = groups(records)
    one, other = _find(members, first), _find(members, second)
    if one is other:
        raise BenchError(f"Two different runs must be compared; {first} and {second} are the same. Name another one.")
    return one, other


def _find(members: Sequence[Group], text: str) -> Group:
    """Return the group that a text names. Raises BenchError if there is none, or if there are several."""
    text = text.replace(":", "-")
    matching = [group for group in members if text in _names(group)]
    matching = [group for group in matching if group.selection == "last"] or matching
    if len(matching) == 1:
        return matching[0]
    names = sorted(f"{group.first.run.store_name}/{group.first.run.group_hash}" for group in matching or members)
    problem = f"names {len(matching)} runs; add the hash" if matching else "is not in the store"
    raise BenchError(f"A run must be one of the store; {text} {problem}. Known: {', '.join(names) or 'none'}.")


def _names(group: Group) -> set[str]:
    """Return the names of a group: with the hash that the message states, or with the folder of one of its records."""
    records = [*group.records.values(), *group.failed]
    hashes = {group.first.run.group_hash, *(run_hash(record.run, record.data_hash) for record in records)}
    return {group.first.run.store_name, *(f"{group.first.run.store_name}/{each}" for each in hashes)}


def _titles(one: Group, other: Group) -> tuple[str, str]:
    first, second = one.first.run.title, other.first.run.title
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _settings(one: Group, other: Group) -> dict[str, tuple[Any, Any]]:
    """Return both values of each setting, option or file that differs; None if a run has no such setting."""
    pairs = sorted(differing_values(_identity(one), _identity(other)), key=lambda each: each.name)
    return {each.name: (each.recorded, each.other) for each in pairs}


def _settings_table(one: Group, other: Group, titles: tuple[str, str]) -> Block:
    rows = [
        (name, *(NO_VALUE if value is None else str(value) for value in values))
        for name, values in _settings(one, other).items()
    ]
    return Table.from_rows("", ("setting", *titles), rows) if rows else "None."


def _identity(group: Group) -> dict[str, Any]:
    """Return the values that define a run, by the column names of the CSV format."""
    names = ("settings.", "preprocessing.", "options.", "file_hashes.")
    single = {"dataset", "protocol", "k", "method", "profile", "commit"}
    values = {
        name: value[:12] if name.startswith("file_hashes.") else value for name, value in to_row(group.first).items()
    }
    return {name: value for name, value in values.items() if name in single or name.startswith(names)}


def _metrics(one: Group, other: Group, store: Store) -> list[dict[str, Any]]:
    """Return the fractions of both runs per category and metric, with an interval if both have the same images.

    "low" and "high" are the 95 % interval of the difference over test images; None without one.
    """
    samples = [bootstrap_by_category(group, store) for group in (one, other)]
    rows = []
    for category in sorted({*one.categories} & {*other.categories}):
        intervals = _difference_intervals(samples, category) if _same_images(one, other, category) else {}
        for metric in _MAIN_METRICS:
            first, second = one.mean_std(category, metric), other.mean_std(category, metric)
            if first and second:
                interval = intervals.get(metric)
                row = {"category": category, "metric": metric, "first": first.mean, "second": second.mean}
                low, high = (interval.low, interval.high) if interval else (None, None)
                rows.append(row | {"difference": first.mean - second.mean, "low": low, "high": high})
    return rows


def _metrics_table(one: Group, other: Group, store: Store) -> tuple[Block, ...]:
    rows = []
    for row in _metrics(one, other, store):
        has_interval = row["low"] is not None
        interval = f"{format_points(row['low'])} to {format_points(row['high'])}" if has_interval else NO_VALUE
        values = f"{100 * row['first']:.1f}", f"{100 * row['second']:.1f}", format_points(row["difference"])
        rows.append((row["category"], METRICS[row["metric"]], *values, interval))
    if not rows:
        return ("They have no category with the same metric.",)
    notes = []
    if images_key(one) != images_key(other):
        notes.append("Not comparable as a whole: protocol, categories, seeds, images, evaluation or selection differ.")
    header = ("category", "metric", "first", "second", "difference", "95 % over test images")
    return (Table.from_rows("", header, rows, remarks=notes),)


def _same_images(one: Group, other: Group, category: str) -> bool:
    """Return whether both groups have records of the same seeds and the same test images in a category."""
    first, second = ({key: each for key, each in group.records.items() if key[0] == category} for group in (one, other))
    return first.keys() == second.keys() and all(_has_same_images(first[key], second[key]) for key in first)


def _has_same_images(first: Record, second: Record) -> bool:
    """Return whether two records have the same names and contents of their test images."""
    contents = {record.run.data_fingerprints.get(record.category) for record in (first, second)}
    return len(contents) == 1 and first.test_files == second.test_files


def _difference_intervals(samples: Sequence[Mapping[str, BootstrapSamples]], category: str) -> Mapping[str, Any]:
    first, second = (each.get(category) for each in samples)
    return differences(first, second) if first and second else {}


def _latency(group: Group) -> MeanStd | None:
    return group.mean_std_over(sorted({name for name, _ in group.records}), LATENCY)


def _latency_table(one: Group, other: Group, titles: tuple[str, str]) -> Block:
    rows = [
        (title, format_latency(_latency(group)), latency_conditions(group))
        for title, group in zip(titles, (one, other), strict=True)
    ]
    return Table.from_rows("", ("method", "latency", "measured on"), rows)


def _disagreements(one: Group, other: Group, store: Store) -> list[dict[str, Any]]:
    """Return the test images by decreasing difference of their ranks, in percent of the category's images."""
    rows: list[dict[str, Any]] = []
    for key in sorted({*one.records} & {*other.records}):
        predictions = [load_predictions(store, group.records[key], maps=False) for group in (one, other)]
        first, second = predictions
        if first is None or second is None or not _has_same_images(one.records[key], other.records[key]):
            continue
        ranks = [100 * (rankdata(each.scores) - 1) / max(len(each.files) - 1, 1) for each in (first, second)]
        rows += [
            {"image": file, "seed": key[1], "defect": defect, "first_rank": float(a), "second_rank": float(b)}
            for file, defect, a, b in zip(first.files, first.defects, *ranks, strict=True)
        ]
    rows.sort(key=lambda row: (-abs(row["first_rank"] - row["second_rank"]), row["image"], row["seed"]))
    return rows


def _disagreements_table(one: Group, other: Group, store: Store, titles: tuple[str, str]) -> Block:
    rows = _disagreements(one, other, store)[:MAX_IMAGES]
    if not rows:
        return "They have no predictions of the same images."
    has_seeds = len(one.seeds) > 1
    cells = [
        (
            f"{row['image']}, seed {row['seed']}" if has_seeds else row["image"],
            row["defect"],
            f"{row['first_rank']:.0f}",
            f"{row['second_rank']:.0f}",
        )
        for row in rows
    ]
    remark = "A rank is the percentage of the other test images of the category with a lower score: 100 is the highest."
    return Table.from_rows("", ("image", "defect", *(f"rank, {title}" for title in titles)), cells, remarks=[remark])
