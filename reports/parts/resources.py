"""Speed and memory of the methods, and Fig. 8 of the paper as a table."""

from collections.abc import Iterable, Sequence

import numpy as np

from bench.evaluation.summary import (
    LATENCY,
    MEAN,
    Group,
    caveats,
    format_latency,
    format_percent,
    groups_by_unique_name,
    latency_note,
    missing_summary,
    timed_devices,
)
from bench.record import Record
from bench.report import Section, Table, TableCell

from .published import TABLES, averaged_categories, published_name, published_timings
from .tables import NO_VALUE, rank_cells, value_cell

_SIZES = {"trainable_parameters": "trainable parameters", "bank_rows": "rows in the memory bank"}
"""Entries of `method_info` that give the size of a method."""

_FIGURE8 = "Fig. 8: speed against image AUROC, MVTec AD"


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
    latencies = rank_cells([value_cell(group, MEAN, LATENCY) for group in groups_by_name.values()], lowest=True)
    rows = []
    for (name, group), latency in zip(groups_by_name.items(), latencies, strict=True):
        records = list(group.records.values())
        low, high = (_mean(record.latency.get(name) for record in records) for name in ("p5_ms", "p95_ms"))
        rows.append(
            (
                name,
                latency,
                NO_VALUE if low is None or high is None else f"{low:.3g} to {high:.3g} ms",
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
    columns = [
        rank_cells([_peak(members, place) for members in records.values()], lowest=True) for place in ("host", "device")
    ]
    if all(cell.text == NO_VALUE for column in columns for cell in column):
        return None
    rows = [(name, *peaks, _size(members)) for (name, members), *peaks in zip(records.items(), *columns, strict=True)]
    remark = "Highest peak of all categories, during fit and test. Host: memory of the whole process."
    return Table.from_rows("Memory", ("method", "host", "device", "size"), rows, remarks=[remark])


def _peak(records: Iterable[Record], place: str) -> TableCell:
    peak = max((record.memory.get(place, 0) for record in records), default=0)
    return TableCell.from_text(f"{peak / 1e6:.0f} MB" if peak else NO_VALUE)


def _size(records: Iterable[Record]) -> str:
    """Return the largest sizes that the method reports in `method_info`."""
    infos = [record.method_info for record in records]
    sizes = []
    for key, label in _SIZES.items():
        values = [info[key] for info in infos if isinstance(info.get(key), int)]
        sizes += [f"{max(values):,} {label}"] if values else []
    return ", ".join(sizes) or NO_VALUE


def figure8_section(groups: Iterable[Group]) -> Section:
    """Return the two points that the text of the paper gives for Fig. 8, with the measured methods."""
    published = TABLES["1"]
    timings = published_timings()
    fastest = min(timing.latency_ms for timing in timings)
    rows: list[Sequence[str | TableCell]] = []
    for timing in timings:
        note = f"{timing.conditions}; the authors' script times the network only, untrained, on a random image."
        latency = TableCell.from_text(f"{timing.latency_ms:.2f} ms", note)
        ratio = f"{timing.latency_ms / fastest:.1f}"
        rows.append((timing.method, "published", latency, ratio, f"{timing.image_auroc:.1f}"))
    members = [group for group in groups if published.contains(group.first.run) and group.records]
    references = [
        group for group in members if published_name(group.first.run) == "AMI-Net‡" and group.selection == "last"
    ]
    reference = references[0] if references else None
    rows += [_figure8_row(name, group, reference) for name, group in groups_by_unique_name(members).items()]
    header = ("method", "source", "latency", "relative to AMI-Net‡", "image AUROC")
    remark = "Times on different machines are not comparable; the ratio of two methods on one machine is."
    table = Table.from_rows("", header, rows, rules_after=[len(timings) - 1], remarks=[remark])
    hint = "Missing runs. Add the `--data` and `--runs` of your other commands to this: `bench run figure8`"
    return Section(_FIGURE8, (table,) if members else (table, hint))


def _figure8_row(name: str, group: Group, reference: Group | None) -> Sequence[str | TableCell]:
    latency = group.mean_std(MEAN, LATENCY)
    reference_latency = reference.mean_std(MEAN, LATENCY) if reference else None
    ratio = NO_VALUE
    if latency and reference and reference_latency and timed_devices(reference) == timed_devices(group):
        ratio = f"{latency.mean / reference_latency.mean:.1f}"
    categories = averaged_categories("average_all", TABLES["1"].file)
    auroc = group.mean_std_over(categories, "image_auroc")
    reasons = [] if auroc else missing_summary(group, categories, "image_auroc")
    latency_cell = TableCell.from_text(format_latency(latency), *caveats(group), latency_note(group))
    return name, "measured", latency_cell, ratio, TableCell.from_text(format_percent(auroc), *reasons)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _seconds_per_image(record: Record) -> float | None:
    if "predict" not in record.seconds or not record.test_files:
        return None
    return record.seconds["predict"] / len(record.test_files)


def _seconds(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.3g} s"
