"""A kept run's answers about new images, written for people: scores as a table, maps as numbers and as pictures."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from bench.data.images import FileImages, decode, visible_box
from bench.dataset import Sample
from bench.deploy.saved_model import RECORD_DEPTH, SavedModel
from bench.errors import BenchError
from bench.execution.fit import check_prediction
from bench.store import Store

COLOURS = "inferno"
CONTOUR = (0, 255, 120)
COLOR_QUANTILE = 0.999
"""The brightest colour stands for this quantile of the run's own test maps, the darkest for their median."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrediction:
    """What the method said of one image: a row of scores.csv.

    Attributes:
        image: its path.
        score: higher is more anomalous; None where the image could not be judged.
        threshold: of the run, set at a false positive rate by good images; None where it was not calibrated.
        defective: whether the score lies above the threshold; None without one.
        highest: the highest pixel of the map.
        area: the share of pixels above the run's threshold of a pixel; None without one.
        map: the map's numbers, (h, w) float32 at the size of the method's input. picture: the same in colours, over the
            image at its own size, with a line around what lies above the threshold of a pixel.
        error: why the image could not be judged, or "".
    """

    image: str
    score: float | None = None
    threshold: float | None = None
    defective: bool | None = None
    max_pixel_score: float | None = None
    anomalous_fraction: float | None = None
    map: str = ""
    overlay: str = ""
    error: str = ""


def predict(
    kept: SavedModel, named: Sequence[tuple[Path, Path]], out: Path, progress: Callable[[int, int], None]
) -> list[ImagePrediction]:
    """Judges the images, each `named` with its place below `out`, and writes scores.csv, maps/ and pictures/.

    An image that can't be read is a verdict with an error. Raises BenchError where `out` can't be written to.
    """
    total = 2 * len(named)
    verdicts = []
    try:
        for done, (path, place) in enumerate(named, start=1):
            verdicts.append(_judged(kept, path, out / "maps" / f"{place}.npy"))
            progress(done, total)
        scale = _scale(kept, verdicts)
        for done, (path, place) in enumerate(named):
            if not verdicts[done].error:
                picture = _picture(kept, path, np.load(verdicts[done].map), scale)
                saved = _saved(picture, out / "pictures" / f"{place}.png")
                verdicts[done] = replace(verdicts[done], overlay=saved)
            progress(len(named) + done + 1, total)
        _table(verdicts, out / "scores.csv")
    except OSError as error:
        raise BenchError(f"--out names a folder that can be written to; {out} is none ({error.strerror}).") from error
    return verdicts


def _judged(kept: SavedModel, path: Path, to: Path) -> ImagePrediction:
    record = kept.record
    try:
        (given,) = FileImages([Sample(path, record.category, "test")], kept.preprocessing).batches(1)
    except BenchError as error:
        return ImagePrediction(image=str(path), error=str(error))
    given = given.to(kept.method.setup.device)
    with torch.no_grad():
        found = kept.method.predict(given)
    check_prediction(found, given)
    score, maps = float(found.scores[0]), found.maps[0].float().cpu().numpy()
    to.parent.mkdir(parents=True, exist_ok=True)
    np.save(to, maps)
    limit, pixel_limit = record.threshold, record.pixel_threshold
    return ImagePrediction(
        image=str(path),
        score=score,
        threshold=limit,
        defective=None if limit is None else score > limit,
        max_pixel_score=float(maps.max()),
        anomalous_fraction=None if pixel_limit is None else float((maps > pixel_limit).mean()),
        map=str(to),
    )


def _scale(kept: SavedModel, verdicts: Sequence[ImagePrediction]) -> tuple[float, float]:
    """What the darkest and the brightest colour stand for: alike for all calls where the run's test maps were kept."""
    try:
        maps = Store(kept.path.parents[RECORD_DEPTH - 1]).predictions(kept.record).maps
    except BenchError:
        maps = None
    if maps is None:
        maps = np.stack([np.load(verdict.map) for verdict in verdicts if verdict.map][:64] or [np.zeros((1, 1))])
    low, high = np.quantile(maps, (0.5, COLOR_QUANTILE))
    return float(low), float(max(high, low + 1e-12))


def _picture(kept: SavedModel, path: Path, found: Floats, scale: tuple[float, float]) -> Image.Image:
    """The image at its own size, the more coloured the more anomalous; what a crop cut off stays as it is."""
    image = decode(path)
    left, top, right, bottom = visible_box(image.size, kept.preprocessing)
    maps = np.asarray(Image.fromarray(found).resize((right - left, bottom - top), Image.Resampling.BILINEAR))
    share = ((maps - scale[0]) / (scale[1] - scale[0])).clip(0, 1)[..., None]  # (h, w, 1)
    pixels = np.array(image, dtype=np.float64)
    part = pixels[top:bottom, left:right]
    colours = mpl.colormaps[COLOURS](share[..., 0])[..., :3] * 255
    part[:] = part * (1 - 0.7 * share) + colours * 0.7 * share
    if kept.record.pixel_threshold is not None:
        above = maps > kept.record.pixel_threshold
        width = max(1, min(image.size) // 256)
        part[above & ~binary_erosion(above, iterations=width, border_value=1)] = CONTOUR
    return Image.fromarray(pixels.round().astype(np.uint8))


def _saved(picture: Image.Image, to: Path) -> str:
    to.parent.mkdir(parents=True, exist_ok=True)
    picture.save(to)
    return str(to)


def _table(verdicts: Sequence[ImagePrediction], to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [entry.name for entry in fields(ImagePrediction)])
        writer.writeheader()
        writer.writerows(asdict(verdict) for verdict in verdicts)
