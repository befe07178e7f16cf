"""Names of groups: the heading of a table, and names that are unique among the groups of a report."""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.evaluation.summary import Group
from bench.record import Run

MAX_LABEL_VALUES = 3
"""Number of values that the name of a group shows to distinguish it from another one with its title."""


def benchmark_name(group: Group) -> str:
    """Return dataset and protocol, within which methods are compared: "mvtec · kshot k=4"."""
    run = group.first.run
    return f"{group.dataset} · {run.protocol}{f' k={run.k}' if run.k else ''}"


def by_benchmark(members: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the groups by `benchmark_name`."""
    benchmarks: dict[str, list[Group]] = {}
    for group in members:
        benchmarks.setdefault(benchmark_name(group), []).append(group)
    return benchmarks


def groups_by_unique_name(members: Sequence[Group]) -> dict[str, Group]:
    """Return the groups by a unique name: the title with the selection rule, and `name_suffix`."""
    return {
        title_with_selection(group.first.run.title, group.selection) + name_suffix(group, members): group
        for group in members
    }


def name_suffix(group: Group, members: Sequence[Group]) -> str:
    """Return what distinguishes the group from those with its title: dataset, the sweep's values, or other values.

    For example ", limit 20" or ", calibrated 5 %". Groups that differ only in the content of weight files are numbered.
    """
    run = group.first.run
    others = [other for other in members if other is not group and other.selection == group.selection]
    same_title = [other.first.run for other in others if other.dataset == group.dataset and _has_title(other, run)]
    has_other_dataset = any(other.dataset != group.dataset and _has_title(other, run) for other in others)
    suffix = f" on {group.dataset}" if has_other_dataset else ""
    if run.sweep_label and all(other.sweep_label != run.sweep_label for other in same_title):
        return f"{suffix} [{run.sweep_label}]"
    if not same_title:
        return suffix
    runs = {(other.name, other.group_hash): other for other in (run, *same_title)}
    labels = {key: _differing_values(other, [*runs.values()]) for key, other in runs.items()}
    key = run.name, run.group_hash
    equal = sorted(other for other in labels if labels[other] == labels[key])
    number = f"{equal.index(key) + 1} of {len(equal)}" if len(equal) > 1 else ""
    return suffix + "".join(f", {text}" for text in (labels[key], number) if text)


def _differing_values(run: Run, runs: Sequence[Run]) -> str:
    """Return the values in which a run differs from one of the others: "limit 20, smoothing=6.0"; "" if in none."""
    values = {id(other): _named_values(other) for other in runs}
    names = [name for name in values[id(run)] if len({str(each.get(name)) for each in values.values()}) > 1]
    return ", ".join(_value_label(name, values[id(run)][name]) for name in names[:MAX_LABEL_VALUES])


def _value_label(name: str, value: Any) -> str:
    """Return a value as words if it is one of an option, else as name=value: "limit 20", "not calibrated"."""
    if name == "limit":
        return f"limit {value}" if value else "no limit"
    if name == "calibrate":
        return f"calibrated {100 * value:g} %" if value else "not calibrated"
    if name == "resolution":
        return f"at {value} resolution"
    if name == "compile":
        return "compiled" if value else "not compiled"
    return f"{name}={value}"


def _named_values(run: Run) -> dict[str, Any]:
    """Return what a user sets, by name: method, options, profile, preprocessing and settings."""
    options = {name: value for group in run.options.values() for name, value in group.items()}
    preprocessing = {f"image {name}": value for name, value in run.preprocessing.items()}  # a method may have a "width"
    return {"method": run.name, **options, "profile": run.profile, **preprocessing, **run.settings}


def title_with_selection(title: str, selection: str) -> str:
    """Return the title of a method, followed by " (oracle)" if its epoch was chosen on the test set."""
    return f"{title} (oracle)" if selection == "oracle" else title


def heading(group: Group) -> str:
    """Return method, dataset and protocol as the heading of a table."""
    return f"{title_with_selection(group.first.run.title, group.selection)} · {benchmark_name(group)}"


def _has_title(group: Group, run: Run) -> bool:
    return group.first.run.title == run.title
