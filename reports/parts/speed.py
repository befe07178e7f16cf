"""Speed and memory: the benchmark's own tables, and Fig. 8 of the paper as one."""

from collections.abc import Iterable, Sequence

import numpy as np

from bench.evaluation.summary import LATENCY, MEAN, Group, caveats, latency_device, milliseconds, percent, unique_names
from bench.record import Record

from .columns import lacking
from .measured import measured
from .papers import TABLES, members, published_name, rows
from .tables import NONE, Entry, Section, Table, ranked

SIZES = {"trainable_parameters": "trainable parameters", "bank_rows": "rows in the bank"}
"""The facts that tell how large a method is."""

FIGURE8 = "Fig. 8: speed against image AUROC, MVTec AD"


def resources(groups: Sequence[Group]) -> list[Table]:
    """What the methods of one data set and protocol cost: time, then memory."""
    names = {name: group for name, group in unique_names(groups).items() if group.selection == "last" and group.records}
    return [table for table in (_speed(names), _memory(names)) if table]


def _speed(names: dict[str, Group]) -> Table | None:
    if not names:
        return None
    latency = ranked([measured(group, MEAN, LATENCY) for group in names.values()], lowest=True)
    lines = []
    for (name, group), entry in zip(names.items(), latency, strict=True):
        records = list(group.records.values())
        spread = [_mean(record.latency.get(end) for record in records) for end in ("p5_ms", "p95_ms")]
        low, high = spread
        lines.append(
            (
                name,
                entry,
                NONE if low is None or high is None else f"{low:.3g} to {high:.3g} ms",
                _seconds(_mean(record.seconds.get("fit") for record in records)),
                _seconds(_mean(_each(record) for record in records)),
                latency_device(group).removeprefix("latency: batch 1, network to map and score, "),
            )
        )
    head = ("method", "latency", "p5 to p95", "fit", "predict, an image", "latency measured on")
    remark = (
        "Latency: one image, from the prepared tensor on the device to map and score on the device. Predict: the same "
        "for the whole test set in batches, without decoding, divided by its images. Means over categories and seeds. "
        "Rows from different machines do not compare."
    )
    return Table.of("Speed", head, lines, remarks=[remark])


def _memory(names: dict[str, Group]) -> Table | None:
    own = {name: list(group.records.values()) for name, group in names.items()}
    peaks = [ranked([_peak(records, place) for records in own.values()], lowest=True) for place in ("host", "device")]
    lines = [(name, *pair, _size(records)) for (name, records), *pair in zip(own.items(), *peaks, strict=True)]
    if all(entry.text == NONE for column in peaks for entry in column):
        return None
    remark = "The highest peak of a fit and its test in any category: of the whole process, and of the device."
    return Table.of("Memory", ("method", "host", "device", "size"), lines, remarks=[remark])


def _peak(records: Iterable[Record], place: str) -> Entry:
    peak = max((record.memory.get(place, 0) for record in records), default=0)
    return Entry.of(f"{peak / 1e6:.0f} MB" if peak else NONE)


def _size(records: Iterable[Record]) -> str:
    """How large the methods say that they are, at most."""
    told = []
    for key, what in SIZES.items():
        found = [record.method_info[key] for record in records if isinstance(record.method_info.get(key), int)]
        told += [f"{max(found):,} {what}"] if found else []
    return ", ".join(told) or NONE


def figure8(groups: Iterable[Group]) -> Section:
    """The two points that the paper's text gives, ours beside them."""
    paper = TABLES["1"]
    lines: list[Sequence[str | Entry]] = []
    told = rows("fig8_timing.csv")
    fastest = min(float(row["inference_ms"]) for row in told)
    for row in told:
        times = f"{float(row['inference_ms']) / fastest:.1f}"
        note = f"{row['protocol']}; the authors' script times the network alone, untrained, on a random image."
        entry = Entry.of(f"{float(row['inference_ms']):.2f} ms", note)
        lines.append((row["method"], "published", entry, times, row["image_auroc"]))
    own = [group for group in groups if paper.holds(group.first.run) and group.records]
    reference = next((g for g in own if published_name(g.first.run) == "AMI-Net‡" and g.selection == "last"), None)
    every = members("average_all", paper.file)
    for name, group in unique_names(own).items():
        cell, base = group.cell(MEAN, LATENCY), reference.cell(MEAN, LATENCY) if reference else None
        same = reference is not None and latency_device(reference) == latency_device(group)
        times = f"{cell.mean / base.mean:.1f}" if cell and base and same else NONE
        area = group.mean("image_auroc", every)
        lacks = [] if area else lacking(group, every, "image_auroc")
        speed = Entry.of(milliseconds(cell), *caveats(group), latency_device(group))
        lines.append((name, "measured", speed, times, Entry.of(percent(area), *lacks)))
    head = ("method", "from", "latency", "times AMI-Net‡", "image AUROC")
    remark = "Times from different machines do not compare; the ratio of two methods on one machine does."
    table = Table.of("", head, lines, ruled=[len(told) - 1], remarks=[remark])
    command = "Missing here: `bench run figure8`, with the `--data` and `--runs` of your other calls, fills it."
    return Section(FIGURE8, (table,) if own else (table, command))


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _each(record: Record) -> float | None:
    """Seconds of a test image."""
    return (
        record.seconds["predict"] / len(record.test_files)
        if "predict" in record.seconds and record.test_files
        else None
    )


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g} s"
