"""What figures need of the raw answers of a fit: each file is read once, and little of it is held."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.evaluation.curves import Array, Bools, Curve, Floats, image_curve, pixel_curve
from bench.evaluation.summary import Group
from bench.record import Predictions, Record
from bench.store import Store

from .stored import answers

CASES = ("best", "median", "worst", "good")
"""The cases whose pictures a run stores: the defect images of highest, median and lowest score, and the good image of
highest score."""

LIMIT = 0.3
"""Of the false positive rate, up to which the region overlap is drawn and AUPRO is taken."""

POINTS = 601
"""How many points a drawn pixel curve has; the metrics beside it are exact."""

HOLD = 2048
"""At how many scores of defect pixels a drawn curve is counted."""

SAMPLE = 200_000
"""Of the normal pixels, whose highest scores the dotted contours hang on."""

READERS = min(4, os.cpu_count() or 1)
"""How many fits' answers are read at once; each takes memory."""

RATE = 0.01
"""Of the category's normal pixels, the share that lies within the dotted contours."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One test image that a report shows.

    Attributes:
        name: "best", "median", "worst" or "good". file, defect: of the image. score: its anomaly score.
        place: its rank among all test images of the category, 1 is the highest score; of `tests`.
        map: (h, w). mask: (h, w), or None where the truth is not known.
    """

    name: str
    file: str
    defect: str
    score: float
    place: int
    tests: int
    map: NDArray[np.float32] | None
    mask: Bools | None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Of the last epoch of one method, category and seed.

    Attributes:
        record: whose it is.
        scores: (n,). anomalous: (n,).
        roc: false and true positive rate over images; None where a class is empty.
        overlap: false positive rate over pixels and the mean share of a defect region found; None without maps.
        cases: what reports show of it.
        colours: the map values at which the colours of the maps shown begin and end.
        threshold: the map value that RATE of the normal pixels exceeds.
    """

    record: Record
    scores: Floats
    anomalous: Bools
    roc: tuple[Floats, Floats] | None
    overlap: tuple[Floats, Floats] | None
    cases: tuple[Case, ...]
    colours: tuple[float, float]
    threshold: float


def first_seed(group: Group) -> list[Record]:
    """A record a category, of the lowest seed that has it."""
    chosen: dict[str, Record] = {}
    for (category, _), record in sorted(group.records.items(), key=lambda item: (item[0][0], item[0][1])):
        chosen.setdefault(category, record)
    return list(chosen.values())


def gathered(members: Sequence[Group], store: Store) -> dict[tuple[str, str, str], Evidence]:
    """The evidence of the lowest seed, by (name, variant, category) of the run; of last epochs whose answers are here.

    Of oracle records there are no pictures, and their curves would only repeat what their mark warns of.
    """
    records = [record for group in members if group.selection == "last" for record in first_seed(group)]
    with ThreadPoolExecutor(READERS) as pool:  # unpacking and counting leave Python's lock to others
        read = pool.map(lambda record: _of(record, answers(store, record)), records)
        return {(each.record.run.name, each.record.run.group_hash, each.record.category): each for each in read if each}


def _of(record: Record, given: Predictions | None) -> Evidence | None:
    if given is None:
        return None
    bad = given.is_anomalous
    known = given.has_pixel_labels
    roc = None
    if bad.any() and not bad.all():
        curve = image_curve(given.scores, bad)
        roc = _line(curve, curve.region_share)
    overlap, threshold = None, 0.0
    if given.maps is not None and known.any():
        judged = np.flatnonzero(known)
        maps, masks = [given.maps[i] for i in judged], [given.masks[i] for i in judged]
        pixels = pixel_curve(maps, masks, HOLD)
        overlap = _thinned(_line(pixels, pixels.region_share)) if pixels.tp.size and pixels.n_negatives else None
        threshold = _exceeded(maps, masks)
    cases = _cases(record, given)
    shown = [case.map for case in cases if case.map is not None]
    colours = (float(np.median(shown)), float(np.max(shown))) if shown else (0.0, 1.0)
    return Evidence(record, given.scores, bad, roc, overlap, cases, colours, threshold)


def _exceeded(maps: Sequence[Array], masks: Sequence[Bools]) -> float:
    """What RATE of the normal pixels exceed, by a sample of them; 0 where there are none."""
    every = max(1, len(maps) * maps[0].size // SAMPLE) | 1  # odd, or a sample could be of a few columns
    sampled = [(own.ravel()[::every], mask.ravel()[::every]) for own, mask in zip(maps, masks, strict=True)]
    normal = np.concatenate([own[~mask] for own, mask in sampled])
    return float(np.quantile(normal, 1 - RATE)) if normal.size else 0.0


def _cases(record: Record, given: Predictions) -> tuple[Case, ...]:
    ranks = np.argsort(np.argsort(-given.scores, kind="stable"), kind="stable") + 1
    chosen: dict[str, str] = record.artifacts.get("views", {})
    found = []
    for name in (name for name in CASES if chosen.get(name) in given.files):
        index = given.files.index(chosen[name])
        found.append(
            Case(
                name,
                chosen[name],
                given.defects[index],
                float(given.scores[index]),
                int(ranks[index]),
                len(given.files),
                None if given.maps is None else given.maps[index].copy(),
                given.masks[index].copy() if given.has_pixel_labels[index] else None,
            )
        )
    return tuple(found)


def _line(curve: Curve, weights: Array) -> tuple[Floats, Floats]:
    """False positive rate and share found, from (0, 0) to (1, 1); straight where scores tie."""
    after = np.cumsum(weights)
    start, stop = curve.fp / curve.n_negatives, (curve.fp + curve.tied_negatives) / curve.n_negatives
    rates = np.concatenate([[0.0], np.column_stack([start, stop]).ravel(), [1.0]])
    shares = np.concatenate([[0.0], np.column_stack([after - weights, after]).ravel(), [1.0]])
    return rates, shares


def _thinned(line: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """The line up to LIMIT at POINTS rates, which is enough for the eye."""
    rates = np.linspace(0, LIMIT, POINTS)
    return rates, np.interp(rates, *line)
