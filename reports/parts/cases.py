"""The stored pictures of the best, median and worst cases, and sheets of them: Figs. 4, 7, 10 and 11 of the papers.

Nobody picks: the run stored them by its rule, failures as well as successes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from scipy import ndimage

from bench.evaluation.curves import Bools
from bench.evaluation.summary import Group, caveats, unique_names
from bench.report import Figure
from bench.store import Store

from .drawing import named as filename
from .evidence import RATE, Case, Evidence
from .style import ALARM, INK, label, wrapped

RULE = (
    "Best, median and worst are the defect images of highest, median and lowest score; good is the good image of "
    "highest score. The rule picks them, nobody else does."
)
READING = (
    "Maps are coloured from the median to the highest value of the maps shown of a method and category, alike in all "
    "its rows. Solid contour: the ground truth. Dotted: where the map lies above what "
    f"{RATE:.0%} of the category's normal pixels exceed."
)

SHEET = 150
"""Pixels a side of a picture in a sheet."""

TRUTH = (0, 200, 255)
FOUND = (255, 255, 255)

Pixels = NDArray[np.uint8]


def pictures(evidence: Evidence, store: Store, side: int) -> Iterator[tuple[Case, dict[str, Image.Image]]]:
    """For each case its pictures by name: image, truth, map, overlay, what the method explains; `side` pixels."""
    stored = store.views(evidence.record)
    for case in evidence.cases:
        own = {
            name.removeprefix(f"{case.name}."): path
            for name, path in stored.items()
            if name.startswith(f"{case.name}.")
        }
        image = _read(own.pop("image", None))
        found: dict[str, Image.Image] = {} if image is None else {"image": _fit(image, side)}
        if case.mask is not None:
            found["ground truth"] = _fit(
                Image.fromarray(np.where(case.mask, 255, 0).astype(np.uint8)), side, exact=True
            )
        if case.map is not None:
            coloured = _coloured(case.map, evidence.colours)
            found["anomaly map"] = _fit(Image.fromarray(coloured), side)
            if image is not None and image.size == (case.map.shape[1], case.map.shape[0]):
                found["overlay"] = _overlay(image, coloured, case, evidence.threshold, side)
        for name, path in own.items():
            explained = _read(path)
            if explained is not None:
                found[name] = _fit(explained, side)
        if found:
            yield case, found


def sheets(
    topic: str, members: Sequence[Group], found: Mapping[tuple[str, str, str], Evidence], store: Store
) -> list[Figure]:
    """A sheet for each method and category: a row a case, a column a picture."""
    made = []
    for name, group in unique_names(members).items():
        if group.selection != "last":
            continue
        for category in group.categories:
            evidence = found.get((group.first.run.name, group.first.run.group_hash, category))
            rows = list(pictures(evidence, store, SHEET)) if evidence else []
            if evidence and rows:
                seed = evidence.record.run.seed
                title = f"{name} on {category}"
                content = _sheet(rows, f"{title}, {topic}, seed {seed}", [*caveats(group), RULE, READING])
                file = filename(f"sheet {topic} {name} {category}")
                made.append(Figure(file, "sheet", topic, title, f"{RULE} {READING}", {"jpg": content}))
    return made


def _sheet(rows: Sequence[tuple[Case, dict[str, Image.Image]]], title: str, told: Sequence[str]) -> bytes:
    columns = list(dict.fromkeys(name for _, shown in rows for name in shown))
    side, gap, left, top = SHEET, 6, 118, 62
    width = max(left + len(columns) * (side + gap) + gap, 640)
    notes = [line for note in told for line in wrapped(note, width / 5.7).split("\n")]
    page = Image.new("RGB", (width, top + len(rows) * (side + gap) + 14 + 14 * len(notes)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((gap, 8), label(title), INK, _font(15, bold=True))
    for place, name in enumerate(columns):
        x = left + place * (side + gap)
        for line, text in enumerate(wrapped(name, side / 6).split("\n")[:2]):
            draw.text((x, 32 + 12 * line), text, INK, _font(10.5))
    for row, (case, shown) in enumerate(rows):
        y = top + row * (side + gap)
        words = [case.defect, Path(case.file).name, f"score {case.score:.4g}", f"rank {case.place} of {case.tests}"]
        draw.text((gap, y + 2), case.name, INK, _font(12, bold=True))
        for line, text in enumerate(words):
            draw.text((gap, y + 20 + 14 * line), _short(label(text), 18), INK, _font(10))
        for place, name in enumerate(columns):
            if name in shown:
                page.paste(shown[name].convert("RGB"), (left + place * (side + gap), y))
    for line, text in enumerate(notes):
        y = top + len(rows) * (side + gap) + 6 + 14 * line
        draw.text((gap, y), text, ALARM if text and line < len(notes) - _lines(told[-2:], width) else INK, _font(10))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=88)
    return file.getvalue()


def _lines(texts: Sequence[str], width: float) -> int:
    return sum(len(wrapped(text, width / 5.7).split("\n")) for text in texts)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@cache
def _font(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, as in all figures."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)


def _read(path: Path | None) -> Image.Image | None:
    """A stored picture; None where it is gone or is none."""
    if path is None:
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def _fit(image: Image.Image, side: int, *, exact: bool = False) -> Image.Image:
    """The image with its longer side at `side`; `exact` keeps two values two values."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    return image.resize(size, Image.Resampling.NEAREST if exact else smooth)


def _coloured(values: NDArray[np.float32], colours: tuple[float, float]) -> Pixels:
    """(h, w, 3) in a scale that rises in lightness, so that it can be read in grey."""
    low, high = colours
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    found: Pixels = mpl.colormaps["inferno"](scaled, bytes=True)[..., :3]
    return found


def _overlay(image: Image.Image, coloured: Pixels, case: Case, threshold: float, side: int) -> Image.Image:
    """The map laid over the image, the more the higher; the truth as a solid, what was found as a dotted contour."""
    assert case.map is not None
    weight = 0.75 * np.asarray(coloured, np.float32).max(axis=2, keepdims=True) / 255
    mixed = np.asarray(image, np.float32) * (1 - weight) + coloured * weight
    pixels = np.array(_fit(Image.fromarray(mixed.astype(np.uint8)), side))
    dots = np.add.outer(np.arange(pixels.shape[0]), np.arange(pixels.shape[1])) // 2 % 2 == 0
    pixels[_edge(case.map > threshold, pixels) & dots] = FOUND
    if case.mask is not None and case.mask.any():
        pixels[_edge(case.mask, pixels)] = TRUTH
    return Image.fromarray(pixels)


def _edge(region: Bools, pixels: Pixels) -> Bools:
    """The inner border of a region, at the size of these pixels."""
    size = (pixels.shape[1], pixels.shape[0])
    scaled = np.array(Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    found: Bools = scaled & ~ndimage.binary_erosion(scaled, border_value=1)
    return found
