"""A blue and grey twill on the loom, seen from above; the demo's first texture."""

import numpy as np
from numpy.random import Generator

from .surface import SIDE, Field, Surface, X, Y, blend, blob, clouds, inside, path, rgb, stroke

DEFECTS = ("hole", "lint", "stain", "thread")

PITCH = 7.2
"""Pixels from thread to thread."""


def draw(stream: Generator, defect: str | None, flaw: Generator) -> Surface:
    """The cloth that `stream` weaves. A faulty thread is woven in; the other defects happen to the finished cloth."""
    tilt, shift = stream.normal(0, 0.03), stream.uniform(0, 4, 2)
    warp = (X + tilt * Y + 1.0 * clouds(stream, 30) + 0.3 * clouds(stream, 5)) / PITCH + shift[0]
    weft = (Y - tilt * X + 1.0 * clouds(stream, 30) + 0.3 * clouds(stream, 5)) / PITCH + shift[1]
    shades, widths = stream.normal(0, 1, (2, 64)), stream.normal(0, 0.03, (2, 64))
    fuzz = clouds(stream, 0.7, 2.0), clouds(stream, 2.0, 0.7)
    tone = 1 + stream.normal(0, 0.02) + 0.015 * clouds(stream, 45)

    thin = _thinning(flaw, weft) if defect == "thread" else np.zeros((SIDE, SIDE))
    column, row = np.floor(warp).astype(int), np.floor(weft).astype(int)
    # 2/2 twill: each thread goes over two threads and under the next two, its neighbour one thread later.
    warp_height = _round(warp, widths[0, column]) + 0.5 * np.cos(np.pi / 2 * (column + weft - 1))
    weft_height = _round(weft, widths[1, row] - 0.5 * thin) + 0.5 * np.cos(np.pi / 2 * (warp + row - 3)) - thin
    blue = rgb(0.24, 0.31, 0.45) * (1 + 0.05 * shades[0, column] + 0.10 * fuzz[0])
    grey = rgb(0.60, 0.62, 0.64) * (1 + 0.04 * shades[1, row] + 0.06 * fuzz[1])
    height = np.maximum(warp_height, weft_height)
    colour = np.where(warp_height > weft_height, blue, grey)
    depth = np.clip(0.45 + 0.4 * height, 0.25, 1)  # less light reaches the gaps between threads
    cloth = Surface(colour * (depth * tone), 1.5 * height, np.full((SIDE, SIDE), 0.02))
    return _FINISHED[defect](cloth, flaw) if defect in _FINISHED else cloth


def _round(thread: Field, width: Field) -> Field:
    """The profile of a thread across its width: 1 in its middle, 0 at its edge."""
    return np.sqrt(np.clip(1 - ((thread - np.floor(thread) - 0.5) / np.maximum(0.5 + width, 0.05)) ** 2, 0, 1))


def _thinning(flaw: Generator, weft: Field) -> Field:
    """How far one weft thread (256, 256) is worn away over part of its length: 1 where it is missing."""
    x, y = flaw.integers(50, SIDE - 50, 2)
    thread, length = np.floor(weft[y, x]), flaw.uniform(20, 70)
    worn = inside(np.abs(X - x) - length / 2, 8) * flaw.uniform(0.5, 1.1)
    return np.where(np.floor(weft) == thread, worn, 0.0)


def _hole(cloth: Surface, flaw: Generator) -> Surface:
    """Threads torn out: the dark table shows through, frayed ends stand around it."""
    x, y = flaw.uniform(30, SIDE - 30, 2)
    radius = flaw.uniform(3.5, 10)
    distance = blob(flaw, x, y, radius) + 2.5 * clouds(flaw, 1.2)
    torn, frayed = inside(distance, 1.5), inside(distance - 3, 4)
    colour = blend(cloth.colour * (1 + 0.25 * frayed), rgb(0.07, 0.07, 0.08), torn)
    return Surface(colour, cloth.height + 1.5 * frayed - 3.5 * torn, cloth.gloss)


def _lint(cloth: Surface, flaw: Generator) -> Surface:
    """A loose fibre that lies on the cloth, light or dark."""
    x, y = flaw.uniform(45, SIDE - 45, 2)
    points = path(flaw, x, y, angle=flaw.uniform(0, np.pi), length=flaw.uniform(35, 110), bend=flaw.uniform(0.5, 2.0))
    distance, _ = stroke(points)
    fibre = inside(distance - flaw.uniform(0.8, 1.6), 1.2) * flaw.uniform(0.7, 1.0)
    shade = rgb(0.80, 0.79, 0.74) if flaw.random() < 0.6 else rgb(0.10, 0.08, 0.08)
    return Surface(blend(cloth.colour, shade, fibre), cloth.height + 1.5 * fibre, cloth.gloss)


def _stain(cloth: Surface, flaw: Generator) -> Surface:
    """Oil or water drawn into the cloth: a darker patch with a darker rim."""
    x, y = flaw.uniform(35, SIDE - 35, 2)
    radius = flaw.uniform(11, 28)
    distance = blob(flaw, x, y, radius)
    soaked = flaw.uniform(0.9, 2.4) * (inside(distance, 5) + 0.5 * inside(np.abs(distance) - 1.5, 3))
    tint = 1 - soaked * rgb(0.15, 0.17, 0.22)
    return Surface(cloth.colour * tint, cloth.height, cloth.gloss + 0.03 * soaked)


_FINISHED = {"hole": _hole, "lint": _lint, "stain": _stain}
