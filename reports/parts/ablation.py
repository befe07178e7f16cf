"""What each setting is worth: the runs of one method that differ in one setting only; Fig. 9 of the paper as tables."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bench.evaluation.summary import LATENCY, MEAN, METRICS, Group, topics
from bench.record import Run

from .measured import measured
from .papers import TABLES
from .tables import Block, Entry, Section, Table, ranked

FIGURE9 = "Fig. 9: ablations of AMI-Net, MVTec AD"
SAID = (
    "The paper shows these as plots only, so no number can stand beside ours. Its text says: patches of 4 are fastest "
    "and best in 3 of 4 metrics; 8 or 10 clusters are most accurate, 8 faster; 8 or 10 inpainting blocks are best, 8 "
    "faster; 1 aggregation block is best; lambda 0.5 is chosen, pixel AUROC is flat in it, pixel AP falls as it grows."
)


def figure9(groups: Iterable[Group]) -> Section:
    """Ours; the paper's numbers are not printed."""
    own = [group for group in groups if TABLES["1"].could_hold(group.first.run) and group.first.run.method == "aminet"]
    tables = ablations(own)
    none = "Missing here: runs that differ in one setting, as `bench run figure9_clusters`, `bench run figure9_patch`."
    blocks: tuple[Block, ...] = tuple(tables) or (none,)
    return Section(FIGURE9, (SAID, *blocks))


def ablations(groups: Sequence[Group]) -> list[Table]:
    """A table a setting, of the groups of one method that differ from the most usual settings in that one only."""
    found = []
    for members in topics(groups).values():
        by_method: dict[tuple[str, str, str], list[Group]] = {}
        for group in members:
            if group.records:
                run = group.first.run
                by_method.setdefault((run.title, group.selection, conditions(run)), []).append(group)
        for (title, selection, _), own in by_method.items():
            oracle = " (oracle)" if selection == "oracle" else ""
            found += _ablations(f"{title}{oracle}", own)
    return found


def conditions(run: Run) -> str:
    """All but settings that two runs must share where a setting is said to differ alone. A backbone is a setting."""
    inputs = {name: value for name, value in run.file_hashes.items() if name != run.settings.get("backbone")}
    weights = (inputs, "random" in run.file_hashes.values())
    held = (run.preprocessing, run.precision, run.limit, run.calibrate, run.resolution, run.compile, weights)
    return json.dumps(held, sort_keys=True)


def _ablations(title: str, own: Sequence[Group]) -> list[Table]:
    settings = [group.first.run.settings for group in own]
    base = {name: Counter(repr(each.get(name)) for each in settings).most_common(1)[0][0] for name in settings[0]}
    varied: dict[str, list[tuple[Any, Group]]] = {}
    for group, each in zip(own, settings, strict=True):
        other = [name for name, usual in base.items() if repr(each.get(name)) != usual]
        for name in other if len(other) == 1 else [] if other else list(base):
            varied.setdefault(name, []).append((each[name], group))
    tables = []
    for name, points in ((name, varied.get(name, [])) for name in base):
        if len({repr(value) for value, _ in points}) > 1:
            points.sort(key=lambda point: _place(point[0]))
            tables.append(_table(f"{title}: {name}", name, points))
    return tables


def _table(title: str, name: str, points: Sequence[tuple[Any, Group]]) -> Table:
    entries = [ranked([measured(group, MEAN, metric) for _, group in points]) for metric in METRICS]
    entries.append(ranked([measured(group, MEAN, LATENCY) for _, group in points], lowest=True))
    lines: list[Sequence[str | Entry]] = [
        (str(value), *(column[i] for column in entries)) for i, (value, _) in enumerate(points)
    ]
    return Table.of(title, (name, *METRICS.values(), LATENCY), lines)


def _place(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, then all else by its text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not number, float(value) if number else 0.0, str(value))
