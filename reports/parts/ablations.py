"""Ablations: runs of one method that differ in one setting only, for the ablation tables and Fig. 9 of the paper."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.evaluation.group_names import by_benchmark, title_with_selection
from bench.evaluation.summary import LATENCY, MEAN, METRICS, Group
from bench.identity import sweep_key
from bench.report_format import Block, Section, Table, TableCell

from .published import TABLES
from .tables import rank_cells, value_cell

_FIGURE9 = "Fig. 9: ablations of AMI-Net, MVTec AD"
_PAPER_STATEMENTS = (
    "The paper shows these ablations as plots without numbers, so there are no published values to compare with. Its "
    "text states: patches of 4 are fastest and best in 3 of 4 metrics; 8 or 10 clusters are most accurate, 8 are "
    "faster; 8 or 10 inpainting blocks are best, 8 are faster; 1 aggregation block is best; lambda 0.5 is chosen: "
    "pixel AUROC hardly depends on it, pixel AP decreases as it grows."
)


@dataclass(frozen=True, slots=True)
class Ablation:
    """Groups that differ in one setting only.

    Attributes:
        title: the method, with the values of other settings if there are several ablations of this setting.
        setting: name of the setting.
        points: (value of the setting, group), sorted by value; at least two.
    """

    title: str
    setting: str
    points: tuple[tuple[Any, Group], ...]


def find_ablations(members: Iterable[Group]) -> list[Ablation]:
    """Return every set of at least two groups that differ in one setting only, in the order of the settings.

    This is the only rule for "differs in one setting". All other settings, the preprocessing, the options, the other
    weights, the images, the categories and the selection rule must be equal; name, title and seeds may differ.
    """
    by_key: dict[tuple[str, str], dict[str, tuple[Any, Group]]] = {}
    for group in members:
        if group.records:
            for setting, value in group.first.run.settings.items():
                points = by_key.setdefault((setting, _fixed_key(group, setting)), {})
                points[json.dumps(value, default=list)] = (value, group)
    ablations = []
    for (setting, _), points in by_key.items():
        if len(points) > 1:
            ordered = tuple(sorted(points.values(), key=lambda point: _sort_key(point[0])))
            first = ordered[0][1]
            title = title_with_selection(first.first.run.title, first.selection)
            ablations.append(Ablation(title, setting, ordered))
    unique = [replace(ablation, title=ablation.title + _fixed_values(ablation, ablations)) for ablation in ablations]
    return sorted(unique, key=_setting_and_title)


def _setting_and_title(ablation: Ablation) -> tuple[int, str]:
    """Sort by the position of the setting in the settings of the method, then by title."""
    return list(ablation.points[0][1].first.run.settings).index(ablation.setting), ablation.title


def _fixed_key(group: Group, setting: str) -> str:
    """Return what the groups of an ablation of this setting share."""
    run = group.first.run
    backbone = run.settings.get("backbone") if setting == "backbone" else None
    weights = {name: value for name, value in run.file_hashes.items() if name != backbone}
    shared_key = sweep_key(replace(run, sweep_keys=[setting]))  # everything except seed, name, weights and this setting
    random = "random" in run.file_hashes.values()
    return json.dumps([shared_key, weights, random, group.dataset, group.selection, group.categories], sort_keys=True)


def _fixed_values(ablation: Ablation, ablations: Sequence[Ablation]) -> str:
    """Return the values of the other ablated settings, if a grid of settings gives several ablations of this one."""
    similar = [other for other in ablations if (other.title, other.setting) == (ablation.title, ablation.setting)]
    if len(similar) == 1:
        return ""
    settings = sorted({other.setting for other in ablations if other.title == ablation.title} - {ablation.setting})
    run = ablation.points[0][1].first.run
    return "".join(f", {name}={run.settings[name]}" for name in settings)


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Sort numbers by size, then other values as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number else 0.0, str(value))


# --- Tables ----------------------------------------------------------------------------------------------------------


def figure9_section(members: Iterable[Group]) -> Section:
    """Return the section of Fig. 9: the statements of the paper and the measured ablations of AMI-Net."""
    published = TABLES["1"]
    runs = [group for group in members if published.has_protocol_of(group.first.run)]
    tables = ablation_tables([group for group in runs if group.first.run.method == "aminet"])
    hint = (
        "Missing: runs that differ in one setting, for example `bench run figure9_clusters`, `bench run figure9_patch`."
    )
    blocks: tuple[Block, ...] = tuple(tables) or (hint,)
    return Section(_FIGURE9, (_PAPER_STATEMENTS, *blocks))


def ablation_tables(members: Sequence[Group]) -> list[Table]:
    """Return one table per ablation, by benchmark."""
    return [_table(ablation) for groups in by_benchmark(members).values() for ablation in find_ablations(groups)]


def _table(ablation: Ablation) -> Table:
    groups = [group for _, group in ablation.points]
    columns = [rank_cells([value_cell(group, MEAN, metric) for group in groups]) for metric in METRICS]
    columns.append(rank_cells([value_cell(group, MEAN, LATENCY) for group in groups], lowest=True))
    rows: list[Sequence[str | TableCell]] = [
        (str(value), *(column[i] for column in columns)) for i, (value, _) in enumerate(ablation.points)
    ]
    header = (ablation.setting, *METRICS.values(), LATENCY)
    return Table.from_rows(f"{ablation.title}: {ablation.setting}", header, rows)
