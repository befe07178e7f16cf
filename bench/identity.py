"""What makes two runs or records the same, the same group of a table, the same sweep, or comparable.

Every projection contains all fields of `Run` except those that it names. So a new field or option is part of each of
them, unless it is excluded here.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from hashlib import sha256
from typing import Any

from bench.record import Record, Run

_LABELS = {"synthetic", "data_fingerprints", "title", "profile", "profile_note", "group_hash", "sweep_keys"}
"""Fields that describe a run but do not affect its metrics."""

_FOLDER = {"dataset", "protocol", "k", "name", "seed"}
"""Fields that are folders in the path of a record."""

_METHOD = {"name", "method", "settings", "preprocessing", "file_hashes"}
"""Fields that identify the method and its settings."""


def run_hash(run: Run, data_digest: str) -> str:
    """Return the short hash in the path of a run's records: of all that affects the metrics and is not in the path."""
    return _short_hash([_project(run, _LABELS | _FOLDER), data_digest])


def retry_key(run: Run, category: str) -> str:
    """Return what a failed record and a repeated run share: everything except data and weights, which may be fixed."""
    return _short_hash([_project(run, _LABELS | {"file_hashes"}), run.is_released_checkpoint, category])


def cost_key(run: Run) -> str:
    """Return what runs share that take the same time and memory per image on the same machine."""
    return _short_hash(_project(run, _LABELS | _FOLDER | {"file_hashes"}, options={"limit", "calibrate"}))


def sweep_key(run: Run) -> str:
    """Return a key that is equal for the runs of one sweep.

    It has everything except seed, names, swept settings and the hashes of weights.
    """
    values = _project(run, _LABELS | {"seed", "name", "file_hashes"})
    values["settings"] = {key: value for key, value in run.settings.items() if key not in run.sweep_keys}
    return _short_hash(values)


def comparison_key(run: Run) -> str:
    """Return a key that is equal for runs whose metrics may be compared.

    It has protocol, images and evaluation, but not the method.

    It has only the name of the data set; `dataset_numbers` distinguishes data sets of the same name.
    """
    return _short_hash(_project(run, _LABELS | _METHOD | {"seed"}, groups={"compute", "execution"}))


def dataset_numbers(records: Iterable[Record]) -> list[int]:
    """Return, for each record, the number of its data set among those of the same name, from 0 in order of `started`.

    Two records belong to one data set if at least one category has the same fingerprint in both, directly or through
    other records. So a category may be added and images of another one may change, but two folders of the same name
    with different images are two data sets.
    """
    records = list(records)
    parents: dict[tuple[str, ...], tuple[str, ...]] = {}  # union-find: (data set, category, fingerprint) -> parent

    def root(node: tuple[str, ...]) -> tuple[str, ...]:
        while parents.setdefault(node, node) != node:
            node = parents[node]
        return node

    nodes = [
        [(record.run.dataset, *pair) for pair in sorted(record.run.data_fingerprints.items()) or [("", "")]]
        for record in records
    ]
    for first, *others in nodes:
        for other in others:
            parents[root(other)] = root(first)
    numbers: dict[tuple[str, ...], int] = {}
    counts: dict[str, int] = {}
    for index in sorted(range(len(records)), key=lambda index: records[index].started):
        dataset = records[index].run.dataset
        if root(nodes[index][0]) not in numbers:
            numbers[root(nodes[index][0])] = counts.get(dataset, 0)
            counts[dataset] = counts.get(dataset, 0) + 1
    return [numbers[root(node[0])] for node in nodes]


def group_key(record: Record, dataset_number: int) -> tuple[str, ...]:
    """Return the key of a record's group, a row of a table; sorting by it gives the order of tables."""
    run = record.run
    sweep = "/".join(_sortable(run.settings.get(name)) for name in run.sweep_keys)
    dataset = f"{run.dataset}#{dataset_number:03d}"
    return (dataset, run.protocol, f"{run.k:06d}", run.title, run.name, sweep, run.group_hash, record.selection)


def _project(run: Run, without: set[str], *, options: Iterable[str] = (), groups: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields of a run except some, and its options except those of some names or groups."""
    values = {entry.name: getattr(run, entry.name) for entry in fields(run) if entry.name not in without}
    if "options" in values:
        values["options"] = {
            group: {name: value for name, value in members.items() if name not in set(options)}
            for group, members in run.options.items()
            if group not in set(groups)
        }
    return values


def _sortable(value: Any) -> str:
    return f"{value:024.9f}" if isinstance(value, int | float) else str(value)


def _short_hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:12]
