"""Figures of stored pictures: example sheets (Figs. 4, 7, 10 and 11 of the paper) and the masks of the methods.

The images are selected by a fixed rule when a run stores them, so failures are shown as well as successes.
"""

import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from bench.evaluation.curves import Bools
from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.summary import Group, caveats, format_significant
from bench.record import Record
from bench.report_format import Figure
from bench.store import Store, picture_names

from .prediction_data import CONTOUR_FPR, ExampleImage, FigureData, FigureDataByKey, figure_key
from .style import BLACK, GRAY, WARNING_COLOR, finish_figure, label, new_figure, slug, theme, wrapped

_log = logging.getLogger(__name__)

SELECTION_RULE = (
    "Best, median and worst are the defective images with the highest, median and lowest score; good is the good image "
    "with the highest score."
)
LEGEND = (
    "The colors of a map range from the median to the maximum of the maps shown of a method and category. Solid "
    "contour: ground truth. Dotted contour: pixels above the calibrated threshold or, without one, above the value "
    f"that {CONTOUR_FPR:.0%} of the category's normal pixels exceed."
)

IMAGE_SIZE = 150
"""Longer side of an image in a sheet, in pixels."""

_GAP, _LEFT, _TOP, _LINE, _MIN_WIDTH = 6, 118, 62, 14, 640  # pixels
_CHARACTER_WIDTH = 5.7  # pixels per character of the notes
_TRUTH_COLOR = (0, 200, 255)
_CONTOUR_COLOR = (255, 255, 255)

MASK = "mask"
"""Name of the picture of a mask in `Method.explain`."""

MAX_MASK_ROWS = 8
"""Largest number of rows of the figure of masks."""

MASK_CAPTION = (
    "What each method masks of one test image of each category: white is masked. Of several cell sizes or widths of "
    "stripes the largest is shown, and of several passes one, except that the gray levels of MFRNet number the passes. "
    "InTra: the central patch is masked, the rest of its window is gray, and what is outside of it is not used. UniAD: "
    "the attention mask of the token with the largest error. A run stores pictures of four test images, selected by "
    "its own scores: a row has the image of which most methods have a picture. A mask that is equal in all pictures of "
    "a method and category is shown for any image. Contour: ground truth."
)

_STEP = 1.06  # width of a cell; a picture has the width 1
_NO_PICTURE = "no picture of\nthis image"

Pixels = NDArray[np.uint8]
ExampleRow = tuple[ExampleImage, dict[str, Image.Image]]


# --- Example sheets ---------------------------------------------------------------------------------------------------


def example_rows(data: FigureData, store: Store, size: int) -> Iterator[ExampleRow]:
    """Yield each example with its images by name: image, ground truth, anomaly map, overlay, and the method's own."""
    names = picture_names(data.record)
    for example in data.examples:
        prefix = f"{example.name}."
        stored = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        pictures = {kind: read_picture(data.record, name, store) for kind, name in stored.items()}
        image = pictures.pop("image", None)
        images: dict[str, Image.Image] = {} if image is None else {"image": _resized(image, size)}
        if example.mask is not None:
            mask = Image.fromarray(np.where(example.mask, 255, 0).astype(np.uint8))
            images["ground truth"] = _resized(mask, size, nearest=True)
        if example.map is not None:
            colored = _colored(example.map, data.color_range)
            images["anomaly map"] = _resized(Image.fromarray(colored), size)
            if image is not None and image.size == (example.map.shape[1], example.map.shape[0]):
                images["overlay"] = _overlay(image, colored, example, data.contour_threshold, size)
        images |= {kind: _resized(picture, size) for kind, picture in pictures.items() if picture is not None}
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
                threshold = figure_data.record.threshold
                heading += "" if threshold is None else f", threshold {format_significant(threshold, 4)}"
                content = _sheet(rows, heading, caveats(group), threshold)
                file = slug(f"examples {benchmark} {name} {category}")
                caption = f"{SELECTION_RULE} {LEGEND}"
                sheets.append(Figure(file, "examples", benchmark, title, caption, {"jpg": content}))
    return sheets


def _sheet(
    rows: Sequence[ExampleRow], title: str, group_caveats: Sequence[str], threshold: float | None = None
) -> bytes:
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
        _describe(draw, example, y, threshold)
        for column, name in enumerate(columns):
            if name in images:
                page.paste(images[name].convert("RGB"), (_LEFT + column * step, y))
    for line, (text, color) in enumerate(notes):
        draw.text((_GAP, bottom + 6 + _LINE * line), text, color, _font(10))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=88)
    return file.getvalue()


def _describe(draw: ImageDraw.ImageDraw, example: ExampleImage, y: int, threshold: float | None) -> None:
    draw.text((_GAP, y + 2), example.name, BLACK, _font(12, bold=True))
    rank = f"rank {example.rank} of {example.n_images}"
    lines = [example.defect, Path(example.file).name, f"score {format_significant(example.score, 4)}", rank]
    if threshold is not None:
        lines.append("above threshold" if example.score > threshold else "not above threshold")
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


def read_picture(record: Record, name: str, store: Store) -> Image.Image | None:
    """Return a stored picture; None, with a warning, if it is missing or damaged."""
    try:
        with Image.open(store.picture(record, name), formats=["PNG"]) as image:
            return image.convert("RGB")
    except Exception as error:  # noqa: BLE001  Pillow raises many types, and none may end a report
        _log.warning("A picture of %s is omitted: %s", record.run.label(record.category), error)
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


# --- Masks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class StoredMasks:
    """The stored pictures of one method and category.

    Attributes:
        images: test images (h, w, 3) by `Sample.id`.
        masks: masks (h, w) of the same images, 255 is masked.
        defects: (h, w) ground truth of those that have one.
    """

    images: Mapping[str, Pixels]
    masks: Mapping[str, Pixels]
    defects: Mapping[str, Bools]

    def mask_of(self, file: str) -> Pixels | None:
        """Return the mask of that image, or the one that all images have; None if it is not known."""
        first = next(iter(self.masks.values()))
        if all(np.array_equal(first, other) for other in self.masks.values()) and len(self.masks) > 1:
            return first
        return self.masks.get(file)


def mask_figure(benchmark: str, members: Sequence[Group], data: FigureDataByKey, store: Store) -> Figure | None:
    """Draw the image and the masks of each method side by side, a row per category; None without stored masks."""
    groups_with_masks: dict[str, Group] = {}
    by_category: dict[str, dict[str, StoredMasks]] = {}
    for name, group in groups_by_unique_name(members).items():
        for category in group.categories if group.selection == "last" else []:
            figure_data = data.get(figure_key(group, category))
            stored = stored_masks(figure_data, store) if figure_data else None
            if stored:
                groups_with_masks[name] = group
                by_category.setdefault(category, {})[name] = stored
    if not groups_with_masks:
        return None
    categories = sorted(by_category)[:MAX_MASK_ROWS]
    with theme():
        size = (1 + _STEP * len(groups_with_masks)) * _STEP + 0.3, _STEP * len(categories) + 0.9
        figure, (axes,) = new_figure(*size)
        for row, category in enumerate(categories):
            _draw_row(axes, category, [by_category[category].get(name) for name in groups_with_masks], -_STEP * row)
        for column, name in enumerate(["image", *groups_with_masks]):
            axes.text(_STEP * column + 0.5, 0.04, wrapped(name, 20), fontsize=6.5, ha="center", va="bottom")
        axes.set(
            xlim=(-0.25, _STEP * (1 + len(groups_with_masks))), ylim=(-_STEP * len(categories), 0.35), aspect="equal"
        )
        axes.set_axis_off()
        omitted = len(by_category) - len(categories)
        caption = MASK_CAPTION + (f" {omitted} more categories are omitted." if omitted else "")
        title = "Masks for the same image"
        return finish_figure("masks", benchmark, title, caption, figure, groups=list(groups_with_masks.values()))


def stored_masks(data: FigureData, store: Store) -> StoredMasks | None:
    """Return the stored images and masks of a record, without damaged ones; None if there is no mask."""
    names = set(picture_names(data.record))
    images, masks, defects = {}, {}, {}
    for example in data.examples:
        if {f"{example.name}.image", f"{example.name}.{MASK}"} <= names:
            image, mask = (read_picture(data.record, f"{example.name}.{kind}", store) for kind in ("image", MASK))
            if image is None or mask is None:
                continue
            images[example.file], masks[example.file] = np.asarray(image), np.asarray(mask.convert("L"))
            if example.mask is not None:
                defects[example.file] = example.mask
    return StoredMasks(images, masks, defects) if masks else None


def common_image(stored: Sequence[StoredMasks]) -> str:
    """Return the `Sample.id` of the image whose mask most methods have; of equals, the first with a defect."""
    counts: Counter[str] = Counter()
    files = dict.fromkeys(file for each in stored for file in each.images)
    for file in files:
        counts[file] = sum(each.mask_of(file) is not None for each in stored)
    has_defect = {file: any(file in each.defects and each.defects[file].any() for each in stored) for file in files}
    return max(files, key=lambda file: (counts[file], has_defect[file]))


def _draw_row(axes: Axes, category: str, stored: Sequence[StoredMasks | None], top: float) -> None:
    """Draw the image, its ground truth, and the mask of each method below `top`."""
    available = [each for each in stored if each]
    file = common_image(available)
    owner = next(each for each in available if file in each.images)
    box = _draw_picture(axes, owner.images[file], 0, top)
    defect = owner.defects.get(file)
    if defect is not None and defect.any() and not defect.all():
        axes.contour(defect[::-1], levels=[0.5], extent=box, colors="#00c8ff", linewidths=0.9)
    axes.text(-0.04, top - 0.5, label(category), fontsize=7, rotation=90, ha="right", va="center", fontweight="bold")
    for column, each in enumerate(stored, start=1):
        mask = each.mask_of(file) if each else None
        if mask is not None:
            _draw_picture(axes, mask, _STEP * column, top)
        else:
            center: dict[str, Any] = {"ha": "center", "va": "center"}
            axes.text(_STEP * column + 0.5, top - 0.5, _NO_PICTURE, fontsize=6, color=GRAY, **center)


def _draw_picture(axes: Axes, pixels: Pixels, left: float, top: float) -> tuple[float, float, float, float]:
    """Draw a picture whose longer side is 1, with a border; return (left, right, bottom, top)."""
    height, width = (side / max(pixels.shape[:2]) for side in pixels.shape[:2])
    box = left, left + width, top - height, top
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=box, interpolation="nearest")
    x, y = [box[0], box[1], box[1], box[0], box[0]], [box[2], box[2], box[3], box[3], box[2]]
    axes.plot(x, y, color=GRAY, lw=0.5)
    return box
