"""All test images of a category with the maps of each method, as plain JSON values for the viewer `gallery.js`.

A map is stored as levels of 8 bits: the level of a pixel is the number of thresholds that its value exceeds. So "the
value exceeds threshold k" is exactly "the level exceeds k", and counts at these thresholds are exact, not rounded.
"""

import io
import json
import math
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.errors import BenchError
from bench.evaluation.curves import Bools, Floats
from bench.evaluation.group_names import by_benchmark, groups_by_unique_name
from bench.evaluation.summary import Group
from bench.preprocessing import Preprocessing
from bench.record import Predictions, Record, to_float16, to_float32
from bench.report_format import Gallery, ImageSource
from bench.store import Store

from .picture_figures import read_picture
from .prediction_data import first_seed_records, load_predictions
from .style import slug

N_LEVELS = 256
"""Number of thresholds of the slider; a level of a map is one byte."""

MAX_MAP_PIXELS = 250_000_000
"""Largest number of pixels of all maps of a report; with more, a block of pixels becomes one."""

MAX_IMAGE_SIDE = 320
"""Longest side of a test image in the page, in pixels."""

_JPEG_QUALITY = 80

Levels = NDArray[np.uint8]
T = TypeVar("T", str, bytes)


def make_galleries(members: Sequence[Group], store: Store, images: ImageSource) -> list[Gallery]:
    """List the galleries of the last epoch and the lowest seed, one per benchmark and category."""
    galleries: list[Gallery] = []
    shown_records = [record for group in members if group.selection == "last" for record in first_seed_records(group)]
    block = block_side(sum(len(record.test_files) * _map_pixels(record) for record in shown_records))
    for benchmark, groups in by_benchmark(members).items():
        by_category: dict[str, dict[str, Record]] = {}
        for name, group in groups_by_unique_name(groups).items():
            for record in first_seed_records(group) if group.selection == "last" else ():
                by_category.setdefault(record.category, {})[name] = record
        for category, records in sorted(by_category.items()):
            galleries.append(
                Gallery(
                    name=_unique_slug(f"{benchmark} {category}", {gallery.name for gallery in galleries}),
                    benchmark=benchmark,
                    category=category,
                    methods=tuple(records),
                    n_images=len({file for record in records.values() for file in record.test_files}),
                    read=partial(_read, records, store, images, block),
                )
            )
    return galleries


def _unique_slug(text: str, others: set[str]) -> str:
    name = slug(text) or "images"
    return next(each for i in count(1) if (each := name if i == 1 else f"{name}-{i}") not in others)


def block_side(pixels: int) -> int:
    """Return the side of the blocks that reduce this number of pixels to at most `MAX_MAP_PIXELS`."""
    return max(1, math.ceil(math.sqrt(pixels / MAX_MAP_PIXELS)))


def _map_pixels(record: Record) -> int:
    """Return the number of pixels of a map; 0 if the record does not describe the size of the input."""
    try:
        height, width = Preprocessing.from_record(record.run.preprocessing).size
        return height * width
    except BenchError:
        return 0


def _read(records: Mapping[str, Record], store: Store, images: ImageSource, block: int) -> Mapping[str, Any]:
    """Return the content of a gallery.

    `images` and `masks` are shared by all methods. A case of a method has the indices of its image and mask, or None,
    its `score`, the `levels` of its map, and the index of the `reason` if the image is missing.
    """
    shared = _SharedContent(store, images)
    methods = []
    for name, record in records.items():
        predictions = load_predictions(store, record)
        methods.append({"name": name, "seed": record.run.seed, **_method(record, predictions, shared, block)})
    return {
        "block": block,
        "methods": methods,
        "images": list(shared.images),
        "masks": [_encode(mask) for mask in shared.masks],
        "reasons": list(shared.reasons),
    }


class _SharedContent:
    """The images, masks and reasons that the methods of a gallery share, each with its index."""

    def __init__(self, store: Store, source: ImageSource) -> None:
        self.images: dict[str, int] = {}
        self.masks: dict[bytes, int] = {}
        self.reasons: dict[str, int] = {}
        self._store, self._source = store, source
        self._by_file: dict[tuple[str, str], dict[str, int]] = {}

    def image(self, record: Record, file: str) -> dict[str, int]:
        """Return the index of an image, or of the reason why it is missing."""
        key = (json.dumps([record.run.preprocessing, record.data_report.get("value_range")]), file)
        if key not in self._by_file:
            image = self._source(record, file)
            if isinstance(image, str):
                return self._stored(record, file) or {"reason": _index(self.reasons, image)}
            self._by_file[key] = {"image": _index(self.images, _to_uri(image))}
        return self._by_file[key]

    def mask(self, mask: Bools) -> int:
        """Return the index of a mask: its pixels in rows, 8 in a byte."""
        return _index(self.masks, np.packbits(mask).tobytes())

    def _stored(self, record: Record, file: str) -> dict[str, int] | None:
        """Return the index of an image that the run stored, as it does for a few examples."""
        names = [name for name, picture_file in record.artifacts.get("pictures", {}).items() if picture_file == file]
        stored = {f"{name}.image" for name in names} & {*record.artifacts.get("pictures_sha256", {})}
        image = read_picture(record, min(stored), self._store) if stored else None
        return {"image": _index(self.images, _to_uri(image))} if image else None


def _method(record: Record, predictions: Predictions | None, shared: _SharedContent, block: int) -> dict[str, Any]:
    if predictions is None:
        return {"problem": "The predictions of this method are not stored, or cannot be read.", "cases": []}
    maps = None if predictions.maps is None else highest_of_blocks(predictions.maps, block)
    masks = highest_of_blocks(predictions.masks, block)
    good = ~predictions.is_anomalous
    thresholds = None if maps is None else level_thresholds(maps, record.pixel_threshold)
    is_float16 = record.artifacts.get("map_precision") == "float16"
    levels = None if maps is None or thresholds is None else to_levels(maps, thresholds, is_float16=is_float16)
    score_threshold, origin = _score_threshold(record, predictions)
    cases = []
    for index, file in enumerate(predictions.files):
        labeled = bool(predictions.has_pixel_labels[index])
        cases.append(
            {
                "file": file,
                "defect": predictions.defects[index],
                "anomalous": not good[index],
                "score": float(predictions.scores[index]),
                "mask": shared.mask(masks[index]) if labeled else None,
                "levels": None if levels is None else _encode(_differences(levels[index])),
                **shared.image(record, file),
            }
        )
    height, width = masks.shape[1:]
    return {
        "width": width,
        "height": height,
        "scoreThreshold": score_threshold,
        "scoreThresholdOrigin": origin,
        "thresholds": None if thresholds is None else thresholds.tolist(),
        "calibratedLevel": None if thresholds is None else _calibrated_level(thresholds, record.pixel_threshold),
        "target": record.run.calibrate,
        "cases": cases,
    }  # fmt: skip


# --- Thresholds ------------------------------------------------------------------------------------------------------


def level_thresholds(maps: NDArray[np.float32], calibrated: float | None = None) -> Floats:
    """Return increasing thresholds from the lowest to the highest value; the calibrated one replaces the nearest.

    No value exceeds the last one.
    """
    low, high = (float(value) for value in (maps.min(initial=np.inf), maps.max(initial=-np.inf)))
    if not low <= high:
        low, high = 0.0, 1.0  # there are no maps
    thresholds = np.linspace(low, high, N_LEVELS)
    if calibrated is not None:
        index = np.abs(thresholds[:-1] - calibrated).argmin() if calibrated < high else -1
        thresholds[index] = calibrated
    return thresholds


def to_levels(maps: NDArray[np.float32], thresholds: Floats, *, is_float16: bool = False) -> Levels:
    """Return for each value the number of thresholds except the last one that it exceeds.

    is_float16: the maps were stored as float16, so a table of all float16 numbers gives the levels, which is faster.
    """
    if is_float16:
        half, exponent = to_float16(maps)
        with np.errstate(invalid="ignore"):  # some of them are NaN, which no map contains
            numbers = to_float32(np.arange(1 << 16, dtype=np.uint16).view(np.float16), exponent)
        table: Levels = np.searchsorted(thresholds[:-1], numbers).astype(np.uint8)
        return table[half.view(np.uint16)]
    levels: Levels = np.searchsorted(thresholds[:-1], maps).astype(np.uint8)
    return levels


def _calibrated_level(thresholds: Floats, calibrated: float | None) -> int | None:
    return None if calibrated is None else int(np.abs(thresholds - calibrated).argmin())


def _score_threshold(record: Record, predictions: Predictions) -> tuple[float | None, str]:
    """Return the threshold of the scores and its origin: calibrated, or else that of the highest F1."""
    if record.threshold is not None:
        return record.threshold, f"calibrated for a false positive rate of {100 * record.run.calibrate:g} %"
    best = highest_f1_threshold(predictions.scores, predictions.is_anomalous)
    return best, "" if best is None else "highest F1 on these test images, not calibrated"


def highest_f1_threshold(scores: Floats, is_anomalous: Bools) -> float | None:
    """Return the threshold with the highest F1 if scores above it are anomalous; None if a class is empty.

    It is the highest score below the anomalous ones, or just below all scores.
    """
    if is_anomalous.all() or not is_anomalous.any():
        return None
    values = np.unique(scores)
    candidates = np.concatenate([[np.nextafter(values[0], -np.inf)], values[:-1]])
    above = scores[:, None] > candidates  # (n, t)
    tp, fp = above[is_anomalous].sum(axis=0), above[~is_anomalous].sum(axis=0)
    f1 = 2 * tp / (tp + fp + is_anomalous.sum())
    return float(candidates[f1.argmax()])


def highest_of_blocks(values: NDArray[Any], side: int) -> NDArray[Any]:
    """Return (n, h / side, w / side), rounded up: the highest value of each block of pixels."""
    if side == 1:
        return values
    height, width = values.shape[1:]
    padded = np.pad(values, ((0, 0), (0, -height % side), (0, -width % side)), mode="edge")
    rows = np.maximum.reduce([padded[:, start::side] for start in range(side)])  # (n, h / side, w)
    highest: NDArray[Any] = np.maximum.reduce([rows[:, :, start::side] for start in range(side)])
    return highest


# --- Encoding --------------------------------------------------------------------------------------------------------


def _index(values: dict[T, int], value: T) -> int:
    return values.setdefault(value, len(values))


def _differences(levels: Levels) -> bytes:
    """Return the differences of neighbors in a row modulo 256, which compress better; (h, w) in rows."""
    differences = levels.copy()
    differences[:, 1:] -= levels[:, :-1]
    return differences.tobytes()


def _encode(values: bytes) -> str:
    """Return a zlib stream in base64. Codes of single bytes suit differences: a search for repetitions takes longer."""
    stream = zlib.compressobj(level=1, strategy=zlib.Z_HUFFMAN_ONLY)
    return b64encode(stream.compress(values) + stream.flush()).decode()


def _to_uri(image: Image.Image) -> str:
    if max(image.size) > MAX_IMAGE_SIDE:
        image = image.copy()
        image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def to_script(content: Mapping[str, Any]) -> str:
    """Return JSON for a script element: no character of it can end the element or start another one."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
