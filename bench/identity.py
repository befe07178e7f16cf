"""What makes two runs or records the same, the same group of a table, the same sweep, or comparable.

Each key function hashes all fields of `Run` except an explicit exclusion list. So a new field or option is part of
every key, unless it is excluded here. In the same way `number_differences` compares all fields of `Record` except some.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

from bench.record import Record, Run

_LABELS = {"synthetic", "data_fingerprints", "title", "profile", "profile_note", "group_hash", "sweep_keys"}
"""Fields that describe a run but do not affect its metrics."""

_FOLDER = {"dataset", "protocol", "k", "name", "seed"}
"""Fields that are folders in the path of a record."""

_METHOD = {"name", "method", "settings", "preprocessing", "file_hashes"}
"""Fields that identify the method and its settings."""

_NOT_RESULTS = {
    "run", "category", "data_hash", "selection", "failure", "seconds", "resumed_after", "latency", "memory",
    "method_info", "data_report", "environment", "artifacts", "origin", "command", "source_hash", "commit", "started",
    "sequence", "warnings",
}  # fmt: skip
"""Fields of a record that are equal in all records at its path, or depend on the machine, the clock or the command."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A value in which two records differ.

    Attributes:
        name: for example "metrics.image_auroc".
        recorded: value of the first record; None if it is missing.
        other: value of the second record; None if it is missing.
    """

    name: str
    recorded: Any
    other: Any


def run_hash(run: Run, data_hash: str) -> str:
    """Return the short hash in the path of a run's records: of all that affects the metrics and is not in the path."""
    return _short_hash([_fields_except(run, _LABELS | _FOLDER), data_hash])


def retry_key(run: Run, category: str) -> str:
    """Return what a failed record and a repeated run share: everything except data and weights, which may be fixed."""
    return _short_hash([_fields_except(run, _LABELS | {"file_hashes"}), run.is_released_checkpoint, category])


def cost_key(run: Run) -> str:
    """Return what runs share that take the same time and memory per image on the same machine."""
    return _short_hash(_fields_except(run, _LABELS | _FOLDER | {"file_hashes"}, options={"limit", "calibrate"}))


def sweep_key(run: Run) -> str:
    """Return a key that is equal for the runs of one sweep.

    It hashes everything except seed, names, swept settings and the hashes of weights.
    """
    values = _fields_except(run, _LABELS | {"seed", "name", "file_hashes"})
    values["settings"] = {key: value for key, value in run.settings.items() if key not in run.sweep_keys}
    return _short_hash(values)


def comparison_key(run: Run) -> str:
    """Return a key that is equal for runs whose metrics may be compared.

    It hashes protocol, images and evaluation, but not the method.

    It hashes only the name of the dataset; `dataset_numbers` distinguishes datasets of the same name.
    """
    return _short_hash(_fields_except(run, _LABELS | _METHOD | {"seed"}, groups={"compute", "execution"}))


def saving_order(record: Record) -> tuple[int, str]:
    """Return the key that sorts records in the order in which a store saved them, whatever its clock was."""
    return record.sequence, record.started


def dataset_numbers(records: Iterable[Record]) -> list[int]:
    """Return, for each record, the number of its dataset among those of the same name, from 0 in the saving order.

    Two records belong to one dataset if at least one category has the same fingerprint in both, directly or through
    other records. So a category may be added and images of another one may change, but two folders of the same name
    with different images are two datasets.
    """
    records = list(records)
    parents: dict[tuple[str, ...], tuple[str, ...]] = {}  # union-find: (dataset, category, fingerprint) -> parent

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
    for index in sorted(range(len(records)), key=lambda index: saving_order(records[index])):
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


def number_differences(first: Record, second: Record) -> list[Difference]:
    """Return the results in which two records of the same computation differ.

    Times, memory, environment and texts may differ. The hash of the predictions is compared if both stored them with
    the same precision.
    """
    differences = list(differing_values(_results(first), _results(second)))
    precisions = [record.artifacts.get("map_precision") for record in (first, second)]
    hashes = [record.artifacts.get("sha256") for record in (first, second)]
    if precisions[0] == precisions[1] and hashes[0] != hashes[1]:
        differences.append(Difference("sha256 of the predictions", *hashes))
    return differences


def differing_values(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    """Yield the values of two nested tables that differ, named as "table.key"."""
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differing_values(one, other, f"{prefix}{name}.")
        elif one != other:
            yield Difference(prefix + name, one, other)


def _results(record: Record) -> dict[str, Any]:
    return {entry.name: getattr(record, entry.name) for entry in fields(record) if entry.name not in _NOT_RESULTS}


def _fields_except(
    run: Run, without: set[str], *, options: Iterable[str] = (), groups: Iterable[str] = ()
) -> dict[str, Any]:
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
