"""Example sheets: stored images of the best, median and worst cases (Figs. 4, 7, 10 and 11 of the paper).

The images are selected by a fixed rule when a run stores them, so failures are shown as well as successes.
"""

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from scipy import ndimage

from bench.evaluation.curves import Bools
from bench.evaluation.summary import Group, caveats, groups_by_unique_name
from bench.report import Figure
from bench.store import Store

from .prediction_data import CONTOUR_FPR, ExampleImage, FigureData, FigureDataByKey, figure_key
from .style import BLACK, WARNING_COLOR, label, slug, wrapped

SELECTION_RULE = (
    "Best, median and worst are the defective images with the highest, median and lowest score; good is the good image "
    "with the highest score."
)
LEGEND = (
    "The colors of a map range from the median to the maximum of the maps shown of a method and category. Solid "
    "contour: ground truth. Dotted contour: pixels above the value that "
    f"{CONTOUR_FPR:.0%} of the category's normal pixels exceed."
)

IMAGE_SIZE = 150
"""Longer side of an image in a sheet, in pixels."""

_GAP, _LEFT, _TOP, _LINE, _MIN_WIDTH = 6, 118, 62, 14, 640  # pixels
_CHARACTER_WIDTH = 5.7  # pixels per character of the notes
_TRUTH_COLOR = (0, 200, 255)
_CONTOUR_COLOR = (255, 255, 255)

Pixels = NDArray[np.uint8]
ExampleRow = tuple[ExampleImage, dict[str, Image.Image]]


def example_rows(data: FigureData, store: Store, size: int) -> Iterator[ExampleRow]:
    """Yield each example with its images by name: image, ground truth, anomaly map, overlay, and the method's own."""
    views = store.views(data.record)
    for example in data.examples:
        prefix = f"{example.name}."
        paths = {name.removeprefix(prefix): path for name, path in views.items() if name.startswith(prefix)}
        image = _read(paths.pop("image", None))
        images: dict[str, Image.Image] = {} if image is None else {"image": _resized(image, size)}
        if example.mask is not None:
            mask = Image.fromarray(np.where(example.mask, 255, 0).astype(np.uint8))
            images["ground truth"] = _resized(mask, size, nearest=True)
        if example.map is not None:
            colored = _colored(example.map, data.color_range)
            images["anomaly map"] = _resized(Image.fromarray(colored), size)
            if image is not None and image.size == (example.map.shape[1], example.map.shape[0]):
                images["overlay"] = _overlay(image, colored, example, data.contour_threshold, size)
        for name, path in paths.items():
            view = _read(path)
            if view is not None:
                images[name] = _resized(view, size)
        if images:
            yield example, images


def example_sheets(benchmark: str, members: Sequence[Group], data: FigureDataByKey, store: Store) -> list[Figure]:
    """Return one sheet per method and category: one row per example, one column per kind of image."""
    sheets = []
    for name, group in groups_by_unique_name(members).items():
        if group.selection != "last":
            continue
        for category in group.categories:
            figure_data = data.get(figure_key(group, category))
            rows = list(example_rows(figure_data, store, IMAGE_SIZE)) if figure_data else []
            if figure_data and rows:
                title = f"{name} on {category}"
                heading = f"{title}, {benchmark}, seed {figure_data.record.run.seed}"
                content = _sheet(rows, heading, caveats(group))
                file = slug(f"examples {benchmark} {name} {category}")
                caption = f"{SELECTION_RULE} {LEGEND}"
                sheets.append(Figure(file, "examples", benchmark, title, caption, {"jpg": content}))
    return sheets


def _sheet(rows: Sequence[ExampleRow], title: str, group_caveats: Sequence[str]) -> bytes:
    """Return a JPEG with the title, the rows, and below them the caveats and the legend."""
    columns = list(dict.fromkeys(name for _, images in rows for name in images))
    step = IMAGE_SIZE + _GAP
    width = max(_LEFT + len(columns) * step + _GAP, _MIN_WIDTH)
    notes = [(line, WARNING_COLOR) for note in group_caveats for line in _note_lines(note, width)]
    notes += [(line, BLACK) for note in (SELECTION_RULE, LEGEND) for line in _note_lines(note, width)]
    bottom = _TOP + len(rows) * step
    page = Image.new("RGB", (width, bottom + _LINE + _LINE * len(notes)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, 8), label(title), BLACK, _font(15, bold=True))
    for column, name in enumerate(columns):
        for line, text in enumerate(wrapped(name, IMAGE_SIZE / 6).split("\n")[:2]):
            draw.text((_LEFT + column * step, 32 + 12 * line), text, BLACK, _font(10.5))
    for row, (example, images) in enumerate(rows):
        y = _TOP + row * step
        _describe(draw, example, y)
        for column, name in enumerate(columns):
            if name in images:
                page.paste(images[name].convert("RGB"), (_LEFT + column * step, y))
    for line, (text, color) in enumerate(notes):
        draw.text((_GAP, bottom + 6 + _LINE * line), text, color, _font(10))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=88)
    return file.getvalue()


def _describe(draw: ImageDraw.ImageDraw, example: ExampleImage, y: int) -> None:
    draw.text((_GAP, y + 2), example.name, BLACK, _font(12, bold=True))
    rank = f"rank {example.rank} of {example.n_images}"
    lines = (example.defect, Path(example.file).name, f"score {example.score:.4g}", rank)
    for line, text in enumerate(lines):
        draw.text((_GAP, y + 20 + _LINE * line), _shortened(label(text), 18), BLACK, _font(10))


def _note_lines(note: str, width: float) -> list[str]:
    return wrapped(note, width / _CHARACTER_WIDTH).split("\n")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


@cache
def _font(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of all figures, which matplotlib includes."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)


def _read(path: Path | None) -> Image.Image | None:
    """Return a stored image; None if it is missing or unreadable."""
    if path is None:
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def _resized(image: Image.Image, size: int, *, nearest: bool = False) -> Image.Image:
    """Return the image with its longer side of this size; `nearest` keeps a mask binary."""
    scale = size / max(image.size)
    new_size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    return image.resize(new_size, Image.Resampling.NEAREST if nearest else smooth)


def _colored(values: NDArray[np.float32], color_range: tuple[float, float]) -> Pixels:
    """Return (h, w, 3) in a color map of increasing lightness, which is readable in gray."""
    low, high = color_range
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    pixels: Pixels = mpl.colormaps["inferno"](scaled, bytes=True)[..., :3]
    return pixels


def _overlay(image: Image.Image, colored: Pixels, example: ExampleImage, threshold: float, size: int) -> Image.Image:
    """Blend the map over the image, more opaque for higher values, with both contours."""
    assert example.map is not None
    weight = 0.75 * np.asarray(colored, np.float32).max(axis=2, keepdims=True) / 255
    mixed = np.asarray(image, np.float32) * (1 - weight) + colored * weight
    pixels = np.array(_resized(Image.fromarray(mixed.astype(np.uint8)), size))
    dots = np.add.outer(np.arange(pixels.shape[0]), np.arange(pixels.shape[1])) // 2 % 2 == 0
    pixels[_contour(example.map > threshold, pixels) & dots] = _CONTOUR_COLOR
    if example.mask is not None and example.mask.any():
        pixels[_contour(example.mask, pixels)] = _TRUTH_COLOR
    return Image.fromarray(pixels)


def _contour(region: Bools, pixels: Pixels) -> Bools:
    """Return the inner border of a region at the size of these pixels."""
    size = (pixels.shape[1], pixels.shape[0])
    scaled = np.array(Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    border: Bools = scaled & ~ndimage.binary_erosion(scaled, border_value=1)
    return border
