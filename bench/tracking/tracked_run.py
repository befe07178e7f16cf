"""A stored record as experiment trackers show it: parameters, metrics, curves over epochs, and files."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from bench.record import Record
from bench.store import Store

PROJECT = "maskbench"


@dataclass(frozen=True, slots=True)
class Point:
    """A value of a curve at an epoch."""

    name: str
    epoch: int
    value: float


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A record for a tracker.

    Attributes:
        id: 16 hexadecimal digits that identify the content of the record: one that is computed or timed again has
            another id, a copy in another store has not.
        experiment: dataset and protocol: "demo kshot-4".
        name: method, category, seed and selection.
        path: path of the record below the store. It and the other texts have escapes for bytes that are not UTF-8.
        params: settings, preprocessing, options, hashes and versions, by name.
        metrics: metrics as fractions, thresholds, seconds, latency and memory, by name.
        curves: losses, and metrics at the evaluations of the oracle.
        caveats: what a reader of the numbers must know.
        started: UNIX time in seconds; 0 if unknown. duration: in seconds.
        failure: why there are no metrics; "" if there are.
        read_files: returns the content of the record and of its files by name, verified.
    """

    id: str
    experiment: str
    name: str
    path: str
    params: dict[str, str]
    metrics: dict[str, float]
    curves: list[Point]
    caveats: list[str]
    started: float
    duration: float
    failure: str
    read_files: Callable[[], dict[str, bytes]]


class Tracker(Protocol):
    """A tracker that runs are written to."""

    def has(self, run: TrackedRun) -> bool:
        """Return whether the run was written before."""

    def write(self, run: TrackedRun) -> None:
        """Write the run."""


def tracked_runs(store: Store, records: Iterable[Record], caveats: Callable[[Record], list[str]]) -> list[TrackedRun]:
    """Return the records of a store as runs of a tracker."""
    return [_tracked_run(store, record, caveats(record)) for record in records]


def _tracked_run(store: Store, record: Record, caveats: list[str]) -> TrackedRun:
    run = record.run
    path = store.path_of(record).relative_to(store.root).as_posix()
    label = run.label(record.category)
    return TrackedRun(
        id=hashlib.sha256(record.to_json().encode()).hexdigest()[:16],
        experiment=_utf8(f"{run.dataset} {run.protocol}{f'-{run.k}' if run.k else ''}"),
        name=_utf8(label if record.selection == "last" else f"{label}, best epoch on the test set (oracle)"),
        path=_utf8(path),
        params={_utf8(name): _utf8(value) for name, value in _flatten(_params(record))},
        metrics=_metrics(record),
        curves=_curves(record),
        caveats=[_utf8(caveat) for caveat in caveats],
        started=_seconds(record.started),
        duration=float(sum(record.seconds.values())),
        failure=_utf8(record.failure),
        read_files=lambda: _files(store, record),
    )


def _params(record: Record) -> dict[str, Any]:
    run = record.run
    return {
        **{
            name: getattr(run, name)
            for name in ("dataset", "protocol", "k", "seed", "name", "method", "title", "profile")
        },
        "category": record.category,
        "selection": record.selection,
        "synthetic": run.synthetic,
        "settings": run.settings,
        "preprocessing": run.preprocessing,
        "options": {name: value for group in run.options.values() for name, value in group.items()},
        "weights": run.file_hashes,
        "data_hash": record.data_hash,
        "commit": record.commit,
        "environment": record.environment,
        "n_train": len(record.train_files),
        "n_test": len(record.test_files),
    }


def _metrics(record: Record) -> dict[str, float]:
    thresholds = {"threshold": record.threshold, "pixel_threshold": record.pixel_threshold}
    latency = {name: record.latency.get(name) for name in ("median_ms", "p5_ms", "p95_ms")}
    values = {
        **record.metrics,
        **thresholds,
        **{f"seconds.{name}": value for name, value in record.seconds.items()},
        **{f"latency.{name}": value for name, value in latency.items()},
        **{f"memory.{name}": value for name, value in record.memory.items()},
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _curves(record: Record) -> list[Point]:
    points = [Point("loss", epoch, value) for epoch, value in enumerate(record.losses, start=1)]
    for evaluation in record.metrics_by_epoch:
        epoch = int(evaluation.get("epoch", 0))
        points += [Point(f"epoch.{name}", epoch, value) for name, value in evaluation.items() if name != "epoch"]
    return points


def _files(store: Store, record: Record) -> dict[str, bytes]:
    files = {path.name: content for path, content in store.files(record).items()}
    return {store.path_of(record).name: record.to_json().encode(), **files}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def _utf8(text: str) -> str:
    r"""Return the text with bytes that are not UTF-8 as escapes, "\udcfc": trackers refuse them."""
    return text.encode(errors="backslashreplace").decode()


def _seconds(started: str) -> float:
    try:
        return datetime.fromisoformat(started).timestamp()
    except ValueError:
        return 0.0


def file_name(name: str) -> str:
    """Return the name of a file without the characters that trackers do not permit."""
    return "".join(character if character.isalnum() or character in "._-" else "_" for character in Path(name).name)
