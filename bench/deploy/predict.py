"""Predictions of a saved model for new images: a table of scores, the anomaly maps, and overlays for viewing."""

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from bench.data.data_report import MAX_NAMES, size_warning
from bench.data.decoding import decode, has_more_than_8_bits, image_size
from bench.data.images import FileImages
from bench.data.preprocessing import visible_box
from bench.data.value_range import clipped_fraction
from bench.dataset import Sample
from bench.deploy.saved_model import RECORD_DEPTH, SavedModel
from bench.errors import BenchError
from bench.files import write_files
from bench.report_format import escape_formula
from bench.store import Store

COLORMAP = "inferno"
CONTOUR_COLOR = (0, 255, 120)
COLOR_QUANTILE = 0.999
"""Quantile of the run's test maps that gets the brightest color; their median gets the darkest one."""

Floats = NDArray[np.float32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrediction:
    """Prediction for one image: a row of scores.csv.

    Attributes:
        image: path of the image.
        score: anomaly score, higher is more anomalous; None if the image cannot be read.
        threshold: decision threshold of the run (--calibrate); None if the run has none.
        is_anomalous: whether the score exceeds the threshold; None without a threshold.
        max_pixel_score: maximum of the anomaly map.
        anomalous_fraction: fraction of pixels above the pixel threshold of the run; None without one.
        map: path of the anomaly map, (h, w) float32 at the size of the network's input.
        overlay: path of the map in colors over the image, at the size of the image, with a contour at the pixel
            threshold.
        error: why the image cannot be read, or "".
        warning: how its size, aspect ratio or range of values differs from that of the training images, or "".
    """

    image: str
    score: float | None = None
    threshold: float | None = None
    is_anomalous: bool | None = None
    max_pixel_score: float | None = None
    anomalous_fraction: float | None = None
    map: str = ""
    overlay: str = ""
    error: str = ""
    warning: str = ""


def predict_images(
    saved: SavedModel, images: Sequence[tuple[Path, Path]], out: Path, progress: Callable[[int, int], None]
) -> list[ImagePrediction]:
    """Predict the images and write scores.csv, maps/ and overlays/ into `out`.

    Args:
        saved: the saved model.
        images: each image with its relative path below maps/ and overlays/.
        out: folder to write to.
        progress: called as `progress(done, total)` after each step.

    Returns:
        A prediction per image. An image that cannot be read has an error and no score.

    Raises:
        BenchError: `out` cannot be written to.
    """
    total = 2 * len(images)
    predictions = []
    try:
        for done, (path, name) in enumerate(images, start=1):
            predictions.append(_predict_image(saved, path, out / "maps" / f"{name}.npy"))
            progress(done, total)
        _log_warnings(predictions)
        color_range = _color_range(saved, predictions)
        for index, (path, name) in enumerate(images):
            if not predictions[index].error:
                overlay = _draw_overlay(saved, path, np.load(predictions[index].map), color_range)
                file = _save_image(overlay, out / "overlays" / f"{name}.png")
                predictions[index] = replace(predictions[index], overlay=file)
            progress(len(images) + index + 1, total)
        _write_table(predictions, out / "scores.csv")
    except OSError as error:
        raise BenchError(
            f"--out must be a writable folder; {out} is not ({error.strerror}). Choose another."
        ) from error
    return predictions


def _predict_image(saved: SavedModel, path: Path, map_file: Path) -> ImagePrediction:
    record = saved.record
    try:
        (image,) = FileImages([Sample(path, record.category, "test")], saved.preprocessing).batches(1)
    except BenchError as error:
        return ImagePrediction(image=str(path), error=str(error))
    prediction = saved.predict(image)  # image: (1, 3, h, w)
    score, anomaly_map = float(prediction.scores[0]), prediction.maps[0].float().cpu().numpy()
    map_file.parent.mkdir(parents=True, exist_ok=True)
    np.save(map_file, anomaly_map)
    threshold, pixel_threshold = record.threshold, record.pixel_threshold
    return ImagePrediction(
        image=str(path),
        score=score,
        threshold=threshold,
        is_anomalous=None if threshold is None else score > threshold,
        max_pixel_score=float(anomaly_map.max()),
        anomalous_fraction=None if pixel_threshold is None else float((anomaly_map > pixel_threshold).mean()),
        map=str(map_file),
        warning=_warning(path, saved),
    )


def _warning(path: Path, saved: SavedModel) -> str:
    """Return how an image differs from the training images in size, aspect ratio and range of values, or ""."""
    texts = [size_warning(image_size(path, saved.preprocessing), saved.record.data_report.get("image_sizes", {}))]
    if clipped := clipped_fraction(path, saved.preprocessing):
        texts.append(f"{100 * clipped:.2g} % of its values are outside the range of the fit, and are clipped")
    if saved.record.data_report.get("value_range") and not has_more_than_8_bits(path, saved.preprocessing):
        texts.append("it has 8 bits per channel, the training images more, so it is not scaled as they are")
    return "; ".join(text for text in texts if text)


def _log_warnings(predictions: Sequence[ImagePrediction]) -> None:
    """Log one warning that names the images whose size is far from that of training."""
    unusual = [prediction for prediction in predictions if prediction.warning]
    if unusual:
        names = ", ".join(Path(prediction.image).name for prediction in unusual[:MAX_NAMES])
        more = f" and {len(unusual) - MAX_NAMES} more" if len(unusual) > MAX_NAMES else ""
        _log.warning("%d of %d images differ from the training images in size, aspect ratio or range, so their scores "
                     "may not be comparable: %s%s; of the first, %s.",
                     len(unusual), len(predictions), names, more, unusual[0].warning)  # fmt: skip


def _color_range(saved: SavedModel, predictions: Sequence[ImagePrediction]) -> tuple[float, float]:
    """Return the map values of the darkest and the brightest color.

    They come from the stored test maps of the run, so that all predictions use the same range; without stored maps, or
    with a warning if these are damaged, from up to 64 of the new images.
    """
    try:
        maps = Store(saved.path.parents[RECORD_DEPTH - 1]).predictions(saved.record).maps
    except BenchError as error:
        _log.warning("%s The colors have the range of the new images.", error)
        maps = None
    if maps is None:
        files = [prediction.map for prediction in predictions if prediction.map][:64]
        maps = np.stack([np.load(file) for file in files] or [np.zeros((1, 1))])
    low, high = np.quantile(maps, (0.5, COLOR_QUANTILE))
    return float(low), float(max(high, low + 1e-12))


def _draw_overlay(saved: SavedModel, path: Path, anomaly_map: Floats, color_range: tuple[float, float]) -> Image.Image:
    """Return the image with its map as a color overlay; the part that a crop removes is left unchanged."""
    image = decode(path, saved.preprocessing)
    left, top, right, bottom = visible_box(image.size, saved.preprocessing)
    resized = Image.fromarray(anomaly_map).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    maps, (low, high) = np.asarray(resized), color_range
    opacity = ((maps - low) / (high - low)).clip(0, 1)[..., None]  # (h, w, 1)
    pixels = np.array(image, dtype=np.float64)
    visible = pixels[top:bottom, left:right]
    colors = mpl.colormaps[COLORMAP](opacity[..., 0])[..., :3] * 255
    visible[:] = visible * (1 - 0.7 * opacity) + colors * 0.7 * opacity
    if saved.record.pixel_threshold is not None:
        anomalous = maps > saved.record.pixel_threshold
        width = max(1, min(image.size) // 256)
        visible[anomalous & ~binary_erosion(anomalous, iterations=width, border_value=1)] = CONTOUR_COLOR
    return Image.fromarray(pixels.round().astype(np.uint8))


def _save_image(image: Image.Image, file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return str(file)


def _write_table(predictions: Sequence[ImagePrediction], path: Path) -> None:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, [entry.name for entry in fields(ImagePrediction)])
    writer.writeheader()
    for prediction in predictions:
        writer.writerow({name: escape_formula(value) for name, value in asdict(prediction).items()})
    write_files({path: text.getvalue().encode(errors="backslashreplace")})
