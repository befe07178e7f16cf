"""The selection gap: what choosing the epoch on the test set adds to a number."""

from collections.abc import Sequence

import numpy as np

from bench.evaluation.summary import MEAN, Group, unique_names
from bench.record import Record

from .tables import NONE, Block, Section, Table, points

GAP = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
"""What the oracle maximises the sum of."""

Pair = tuple[Record, Record]
"""The last epoch and the best on the test set, of one fit."""


def gaps(members: Sequence[Group]) -> list[Section]:
    """A table for each method that has records of its last epoch and of its best on the test set."""
    last = {_method(group): (name, group) for name, group in unique_names(members).items() if group.selection == "last"}
    oracles = [group for group in members if group.selection == "oracle" and _method(group) in last]
    blocks = [block for group in oracles for block in _gap(*last[_method(group)], group)]
    told = "The last epoch against the best on the test set, of the same fits. The gap is no merit of the method."
    return [Section("Selection gap", (told, *blocks), 2)] if blocks else []


def _method(group: Group) -> tuple[str, str, str]:
    run = group.first.run
    return run.title, run.name, run.group_hash


def _gap(name: str, last: Group, oracle: Group) -> list[Block]:
    places = sorted(last.records.keys() & oracle.records.keys())
    fits: dict[str, list[Pair]] = {}
    for category, seed in places:
        fits.setdefault(category, []).append((last.records[category, seed], oracle.records[category, seed]))
    if not fits:
        return []
    head = ("category", "last epoch", "best epoch", *(f"{name}: last, best, gap" for name in GAP.values()))
    rows = []
    for category, pairs in fits.items():
        epochs = [", ".join(str(pair[side].epoch) for pair in pairs) for side in (0, 1)]
        rows.append((category, *epochs, *(_told(_values(pairs, metric)) for metric in GAP)))
    means = []
    for metric in GAP:
        values = [found for pairs in fits.values() if (found := _values(pairs, metric))]
        means.append(_told(_mean(values) if len(values) == len(fits) else None))
    rows.append((MEAN, "", "", *means))
    title = f"{name}, mean over seeds"
    blocks: list[Block] = [Table.of(title, head, rows, ruled=[len(rows) - 2])]
    curves = [curve for place in places if (curve := _curve(oracle.records[place]))]
    if curves:
        blocks += ["Over epochs, as epoch: image AUROC / pixel AUROC", tuple(curves)]
    return blocks


def _values(pairs: Sequence[Pair], metric: str) -> tuple[float, float] | None:
    """A metric at the last and at the best epoch, means over the seeds; None where a record lacks it."""
    if not all(metric in record.metrics for pair in pairs for record in pair):
        return None
    return _mean([(last.metrics[metric], best.metrics[metric]) for last, best in pairs])


def _mean(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    last, best = np.mean(values, axis=0).tolist()
    return last, best


def _told(values: tuple[float, float] | None) -> str:
    if values is None:
        return NONE
    last, best = values
    return f"{100 * last:.1f}, {100 * best:.1f}, {points(best - last)}"


def _curve(record: Record) -> str:
    """What the oracle saw at each epoch at which it looked, in a line."""
    looks = []
    for point in record.metrics_by_epoch:
        seen = [f"{100 * point[metric]:.1f}" if metric in point else NONE for metric in GAP]
        looks.append(f"{point['epoch']:.0f}: {' / '.join(seen)}")
    return f"{record.category}, seed {record.run.seed}: {', '.join(looks)}" if looks else ""
