"""How far numbers would move with other test images: the bootstrap, once for each record."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

from bench.evaluation.statistics import BootstrapSamples, Interval, bootstrap, intervals, mean_over_categories
from bench.evaluation.summary import HEADINGS, MEAN, Group, percent
from bench.record import Record
from bench.store import Store

from .stored import answers
from .tables import NONE, Table

SEED = 0
"""Of the draws; each category adds its own name, so that not all are lucky at once."""

PIXELS = 24
"""Records of a report that draws pixel metrics as well: about a second each, image metrics a fortieth of that."""


_MADE: WeakKeyDictionary[Store, dict[tuple[Any, ...], BootstrapSamples | None]] = WeakKeyDictionary()
"""What was drawn of a store: several formats of one report share it."""


def drawn(group: Group, store: Store, *, pixels: bool = True) -> dict[str, BootstrapSamples]:
    """The draws of each category, as means over the seeds, which are all judged on the same drawn images.

    pixels: of the pixel metrics as well.

    A category is left out where raw answers are missing, or where there are no good or no defective images.
    """
    found = {}
    for category in group.categories:
        own = [record for (name, _), record in sorted(group.records.items()) if name == category]
        draws = [each for record in own if (each := _once(record, store, pixels=pixels))]
        if own and len(draws) == len(own):
            found[category] = mean_over_categories(draws)
    return found


def _once(record: Record, store: Store, *, pixels: bool) -> BootstrapSamples | None:
    made = _MADE.setdefault(store, {})
    place = store.path(record.run, record.data_digest, record.category, record.selection)
    key = place, record.artifacts.get("sha256"), pixels
    if key not in made:
        made[key] = _of(record, store, pixels=pixels)
    return made[key]


def _of(record: Record, store: Store, *, pixels: bool) -> BootstrapSamples | None:
    given = answers(store, record, maps=pixels)
    if given is None or given.is_anomalous.all() or not given.is_anomalous.any():
        return None
    judged = (
        record.run.resolution == "input" and given.has_pixel_labels.any()
    )  # what is stored is not at another resolution
    maps, masks = (list(given.maps), list(given.masks)) if judged and given.maps is not None else (None, None)
    seed = [SEED, crc32(record.category.encode())]
    threshold = record.threshold
    return bootstrap(
        given.scores, given.is_anomalous, maps, masks, known=given.has_pixel_labels, threshold=threshold, seed=seed
    )


def over_images(group: Group, draws: Mapping[str, BootstrapSamples]) -> list[Table]:
    """Each metric of each category with its interval; nothing where no category was drawn."""
    if not draws:
        return []
    found = {category: intervals(own) for category, own in draws.items()}
    if draws.keys() == set(group.categories):
        found[MEAN] = intervals(mean_over_categories(list(draws.values())))
    shown = [metric for metric in HEADINGS if any(metric in own for own in found.values())]
    rows = [
        (category, *(_told(group, category, metric, own.get(metric)) for metric in shown))
        for category, own in found.items()
    ]
    told = ["Whole test images drawn again, good and defective ones apart; percentiles of 1000 draws."]
    error = max(own.error for own in draws.values())
    told += [f"Pixel metrics of a draw are exact to {100 * error:.2g} points."] if error else []
    if group.first.run.resolution == "original":
        told.append("Those of pixels at original resolution are not known: the maps are stored at input size.")
    ruled = [len(rows) - 2] if MEAN in found else []
    heads = ("category", *(HEADINGS[metric] for metric in shown))
    return [Table.of("95 % intervals over test images", heads, rows, ruled=ruled, remarks=told)]


def _told(group: Group, category: str, metric: str, interval: Interval | None) -> str:
    return f"{percent(group.cell(category, metric))} ({span(interval)})" if interval else NONE


def span(interval: Interval) -> str:
    """An interval of fractions, in percent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def over(draws: Mapping[str, BootstrapSamples], categories: Sequence[str], metric: str) -> BootstrapSamples | None:
    """The draws of the mean over these categories; None where one of them lacks the metric."""
    if not all(category in draws and metric in draws[category].values for category in categories):
        return None
    return mean_over_categories([draws[category] for category in categories])
