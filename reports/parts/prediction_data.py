"""What reports compute from stored predictions: curves and example images of figures, and bootstrap samples."""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.evaluation.bootstrap import BootstrapSamples, bootstrap, mean_over_categories
from bench.evaluation.curves import Array, Bools, Curve, Floats, image_curve, pixel_curve
from bench.evaluation.summary import Group
from bench.record import Predictions, Record
from bench.store import Store

_log = logging.getLogger(__name__)

EXAMPLES = ("best", "median", "worst", "good")
"""The example images that a run stores: the defective images with the highest, median and lowest score, and the good
image with the highest score."""

MAX_FPR = 0.3
"""Largest false positive rate of the plotted PRO curve and of AUPRO."""

N_POINTS = 601
"""Number of points of a plotted pixel curve; the metrics themselves are exact."""

N_THRESHOLDS = 2048
"""Number of defect scores at which a plotted pixel curve is counted."""

SAMPLE_PIXELS = 200_000
"""Number of normal pixels from which the threshold of the dotted contours is estimated."""

CONTOUR_FPR = 0.01
"""Fraction of the normal pixels of a category that lie above the threshold of the dotted contours."""

N_READERS = min(4, os.cpu_count() or 1)
"""Number of predictions that are read at the same time; each needs memory."""

BOOTSTRAP_SEED = 0
"""Seed of the bootstrap; the name of the category is added, so that the samples differ between categories."""


def load_predictions(store: Store, record: Record, *, maps: bool = True) -> Predictions | None:
    """Return the predictions of a record; None if they are not stored or, with a warning, cannot be read."""
    if "sha256" not in record.artifacts:
        return None
    try:
        return store.predictions(record, maps=maps)
    except BenchError as error:
        _log.warning("%s", error)
        return None


# --- Figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ExampleImage:
    """A test image that a report shows.

    Attributes:
        name: "best", "median", "worst" or "good".
        file: `Sample.id` of the image.
        defect: defect type.
        score: anomaly score.
        rank: rank of the score among all test images of the category; 1 is the highest.
        n_images: number of test images of the category.
        map: (h, w) anomaly map, or None if maps are not stored.
        mask: (h, w), or None if the image has no pixel labels.
    """

    name: str
    file: str
    defect: str
    score: float
    rank: int
    n_images: int
    map: NDArray[np.float32] | None
    mask: Bools | None


@dataclass(frozen=True, slots=True, eq=False)
class FigureData:
    """The data that figures show of the last epoch of one method, category and seed.

    Attributes:
        record: the record.
        scores: (n,) anomaly scores.
        is_anomalous: (n,) labels.
        roc: (false positive rate, true positive rate) over images; None if a class is empty.
        pro: (false positive rate over pixels, mean detected fraction of a defect region); None without maps.
        examples: the example images.
        color_range: map values at the ends of the color scale.
        contour_threshold: the calibrated pixel threshold, or the value that `CONTOUR_FPR` of the normal pixels
            exceed.
    """

    record: Record
    scores: Floats
    is_anomalous: Bools
    roc: tuple[Floats, Floats] | None
    pro: tuple[Floats, Floats] | None
    examples: tuple[ExampleImage, ...]
    color_range: tuple[float, float]
    contour_threshold: float


FigureDataByKey = Mapping[tuple[str, str, str, str], FigureData]
"""Figure data by `figure_key`."""


def figure_key(group: Group, category: str) -> tuple[str, str, str, str]:
    """Return the key of a group and category in the result of `collect_figure_data`."""
    run = group.first.run
    return group.dataset, run.name, run.group_hash, category


def first_seed_records(group: Group) -> list[Record]:
    """Return one record per category, each of the lowest seed that has it."""
    by_category: dict[str, Record] = {}
    for (category, _), record in sorted(group.records.items(), key=lambda item: item[0]):
        by_category.setdefault(category, record)
    return list(by_category.values())


def collect_figure_data(members: Sequence[Group], store: Store) -> dict[tuple[str, str, str, str], FigureData]:
    """Compute the figure data of the last epoch and the lowest seed of each group and category.

    Oracle records have no example images, and their curves would only show the bias that their caveat states.
    """
    keys_and_records = [
        (figure_key(group, record.category), record)
        for group in members
        if group.selection == "last"
        for record in first_seed_records(group)
    ]
    with ThreadPoolExecutor(N_READERS) as pool:  # decompression and counting release Python's global lock
        data = pool.map(lambda pair: _figure_data(pair[1], load_predictions(store, pair[1])), keys_and_records)
        return {
            key: figure_data
            for (key, _), figure_data in zip(keys_and_records, data, strict=True)
            if figure_data is not None
        }


def _figure_data(record: Record, predictions: Predictions | None) -> FigureData | None:
    if predictions is None:
        return None
    is_anomalous, labeled = predictions.is_anomalous, np.flatnonzero(predictions.has_pixel_labels)
    roc = None
    if is_anomalous.any() and not is_anomalous.all():
        curve = image_curve(predictions.scores, is_anomalous)
        roc = _polyline(curve, curve.region_fraction)
    pro, threshold = None, 0.0
    if predictions.maps is not None and labeled.size:
        maps, masks = [predictions.maps[i] for i in labeled], [predictions.masks[i] for i in labeled]
        pixels = pixel_curve(maps, masks, N_THRESHOLDS)
        pro = _resampled(_polyline(pixels, pixels.region_fraction)) if pixels.tp.size and pixels.n_negatives else None
        calibrated = record.pixel_threshold
        threshold = _contour_threshold(maps, masks) if calibrated is None else calibrated
    examples = _example_images(record, predictions)
    maps_shown = [example.map for example in examples if example.map is not None]
    color_range = (float(np.median(maps_shown)), float(np.max(maps_shown))) if maps_shown else (0.0, 1.0)
    return FigureData(record, predictions.scores, is_anomalous, roc, pro, examples, color_range, threshold)


def _contour_threshold(maps: Sequence[Array], masks: Sequence[Bools]) -> float:
    """Return the value that `CONTOUR_FPR` of a sample of the normal pixels exceed; 0 without normal pixels."""
    step = max(1, len(maps) * maps[0].size // SAMPLE_PIXELS) | 1  # odd, or the sample may consist of a few columns
    sampled = [(values.ravel()[::step], mask.ravel()[::step]) for values, mask in zip(maps, masks, strict=True)]
    normal = np.concatenate([values[~mask] for values, mask in sampled])
    return float(np.quantile(normal, 1 - CONTOUR_FPR)) if normal.size else 0.0


def _example_images(record: Record, predictions: Predictions) -> tuple[ExampleImage, ...]:
    ranks = np.argsort(np.argsort(-predictions.scores, kind="stable"), kind="stable") + 1
    files: dict[str, str] = record.artifacts.get("pictures", {})
    examples = []
    for name in (name for name in EXAMPLES if files.get(name) in predictions.files):
        index = predictions.files.index(files[name])
        examples.append(
            ExampleImage(
                name=name,
                file=files[name],
                defect=predictions.defects[index],
                score=float(predictions.scores[index]),
                rank=int(ranks[index]),
                n_images=len(predictions.files),
                map=None if predictions.maps is None else predictions.maps[index].copy(),
                mask=predictions.masks[index].copy() if predictions.has_pixel_labels[index] else None,
            )
        )
    return tuple(examples)


def _polyline(curve: Curve, weights: Array) -> tuple[Floats, Floats]:
    """Return false positive rate and detected fraction from (0, 0) to (1, 1); ties are straight segments."""
    after = np.cumsum(weights)
    start, stop = curve.fp / curve.n_negatives, (curve.fp + curve.tied_negatives) / curve.n_negatives
    rates = np.concatenate([[0.0], np.column_stack([start, stop]).ravel(), [1.0]])
    fractions = np.concatenate([[0.0], np.column_stack([after - weights, after]).ravel(), [1.0]])
    return rates, fractions


def _resampled(line: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Return the line up to `MAX_FPR` at `N_POINTS` rates."""
    rates = np.linspace(0, MAX_FPR, N_POINTS)
    return rates, np.interp(rates, *line)


# --- Bootstrap -------------------------------------------------------------------------------------------------------

_SAMPLES: WeakKeyDictionary[Store, dict[tuple[Any, ...], BootstrapSamples | None]] = WeakKeyDictionary()
"""Bootstrap samples by store and record, so that a record that appears in several tables is sampled once."""


def bootstrap_by_category(group: Group, store: Store, *, pixels: bool = True) -> dict[str, BootstrapSamples]:
    """Return the bootstrap samples of each category, averaged over seeds.

    All seeds use the same resampled test images. A category is omitted if predictions are missing or if it has images
    of one class only. pixels: include pixel metrics, which take about forty times as long.
    """
    by_category = {}
    for category in group.categories:
        records = [record for (name, _), record in sorted(group.records.items()) if name == category]
        samples = [cached for record in records if (cached := _cached_samples(record, store, pixels=pixels))]
        if records and len(samples) == len(records):
            by_category[category] = mean_over_categories(samples)
    return by_category


def _cached_samples(record: Record, store: Store, *, pixels: bool) -> BootstrapSamples | None:
    cache = _SAMPLES.setdefault(store, {})
    path = store.path(record.run, record.data_hash, record.category, record.selection)
    key = path, record.artifacts.get("sha256"), pixels
    if key not in cache:
        cache[key] = _bootstrap_samples(record, store, pixels=pixels)
    return cache[key]


def _bootstrap_samples(record: Record, store: Store, *, pixels: bool) -> BootstrapSamples | None:
    predictions = load_predictions(store, record, maps=pixels)
    if predictions is None or predictions.is_anomalous.all() or not predictions.is_anomalous.any():
        return None
    maps, masks = None, None
    # Maps are stored at input size, so pixel metrics at original resolution cannot be computed from them.
    if record.run.resolution == "input" and predictions.has_pixel_labels.any() and predictions.maps is not None:
        maps, masks = list(predictions.maps), list(predictions.masks)
    return bootstrap(
        predictions.scores,
        predictions.is_anomalous,
        maps,
        masks,
        has_pixel_labels=predictions.has_pixel_labels,
        threshold=record.threshold,
        seed=[BOOTSTRAP_SEED, crc32(record.category.encode(errors="surrogateescape"))],
    )
