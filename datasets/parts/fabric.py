"""Synthetic blue and gray twill fabric from above: the first texture of the demo."""

import numpy as np
from numpy.random import Generator

from .surface import SIDE, Field, Surface, X, Y, blend, blob, distance_to_curve, inside, random_curve, rgb, smooth_noise

DEFECTS = ("hole", "lint", "stain", "thread")

PITCH = 7.2
"""Distance between threads in pixels."""


def draw(rng: Generator, defect: str | None, defect_rng: Generator) -> Surface:
    """Draw the fabric. A thread defect is part of the weave; the other defects are applied to the finished fabric."""
    tilt, shift = rng.normal(0, 0.03), rng.uniform(0, 4, 2)
    warp = (X + tilt * Y + 1.0 * smooth_noise(rng, 30) + 0.3 * smooth_noise(rng, 5)) / PITCH + shift[0]
    weft = (Y - tilt * X + 1.0 * smooth_noise(rng, 30) + 0.3 * smooth_noise(rng, 5)) / PITCH + shift[1]
    shades, widths = rng.normal(0, 1, (2, 64)), rng.normal(0, 0.03, (2, 64))
    fuzz = smooth_noise(rng, 0.7, 2.0), smooth_noise(rng, 2.0, 0.7)
    tone = 1 + rng.normal(0, 0.02) + 0.015 * smooth_noise(rng, 45)

    wear = _wear(defect_rng, weft) if defect == "thread" else np.zeros((SIDE, SIDE))
    column, row = np.floor(warp).astype(int), np.floor(weft).astype(int)
    # 2/2 twill: each thread goes over two threads and under the next two; adjacent threads are offset by one.
    warp_height = _profile(warp, widths[0, column]) + 0.5 * np.cos(np.pi / 2 * (column + weft - 1))
    weft_height = _profile(weft, widths[1, row] - 0.5 * wear) + 0.5 * np.cos(np.pi / 2 * (warp + row - 3)) - wear
    blue = rgb(0.24, 0.31, 0.45) * (1 + 0.05 * shades[0, column] + 0.10 * fuzz[0])
    gray = rgb(0.60, 0.62, 0.64) * (1 + 0.04 * shades[1, row] + 0.06 * fuzz[1])
    height = np.maximum(warp_height, weft_height)
    color = np.where(warp_height > weft_height, blue, gray)
    depth = np.clip(0.45 + 0.4 * height, 0.25, 1)  # less light reaches the gaps between the threads
    fabric = Surface(color * (depth * tone), 1.5 * height, np.full((SIDE, SIDE), 0.02))
    return DEFECT_FUNCTIONS[defect](fabric, defect_rng) if defect in DEFECT_FUNCTIONS else fabric


def _profile(thread: Field, width: Field) -> Field:
    """Return the height of a thread across its width: 1 in the middle, 0 at the edge."""
    return np.sqrt(np.clip(1 - ((thread - np.floor(thread) - 0.5) / np.maximum(0.5 + width, 0.05)) ** 2, 0, 1))


def _wear(defect_rng: Generator, weft: Field) -> Field:
    """Return the wear of one weft thread over a part of its length, (256, 256); 1 is a missing thread."""
    x, y = defect_rng.integers(50, SIDE - 50, 2)
    thread, length = np.floor(weft[y, x]), defect_rng.uniform(20, 70)
    wear = inside(np.abs(X - x) - length / 2, 8) * defect_rng.uniform(0.5, 1.1)
    return np.where(np.floor(weft) == thread, wear, 0.0)


def _hole(fabric: Surface, defect_rng: Generator) -> Surface:
    """Add a hole through which the dark table is visible, with frayed ends around it."""
    x, y = defect_rng.uniform(30, SIDE - 30, 2)
    radius = defect_rng.uniform(3.5, 10)
    distance = blob(defect_rng, x, y, radius) + 2.5 * smooth_noise(defect_rng, 1.2)
    torn, frayed = inside(distance, 1.5), inside(distance - 3, 4)
    color = blend(fabric.color * (1 + 0.25 * frayed), rgb(0.07, 0.07, 0.08), torn)
    return Surface(color, fabric.height + 1.5 * frayed - 3.5 * torn, fabric.gloss)


def _lint(fabric: Surface, defect_rng: Generator) -> Surface:
    """Add a loose fiber on the fabric, light or dark."""
    x, y = defect_rng.uniform(45, SIDE - 45, 2)
    angle, length, bend = defect_rng.uniform(0, np.pi), defect_rng.uniform(35, 110), defect_rng.uniform(0.5, 2.0)
    distance, _ = distance_to_curve(random_curve(defect_rng, x, y, angle=angle, length=length, bend=bend))
    fiber = inside(distance - defect_rng.uniform(0.8, 1.6), 1.2) * defect_rng.uniform(0.7, 1.0)
    shade = rgb(0.80, 0.79, 0.74) if defect_rng.random() < 0.6 else rgb(0.10, 0.08, 0.08)
    return Surface(blend(fabric.color, shade, fiber), fabric.height + 1.5 * fiber, fabric.gloss)


def _stain(fabric: Surface, defect_rng: Generator) -> Surface:
    """Add an absorbed liquid: a darker patch with a still darker rim."""
    x, y = defect_rng.uniform(35, SIDE - 35, 2)
    radius = defect_rng.uniform(11, 28)
    distance = blob(defect_rng, x, y, radius)
    soaked = defect_rng.uniform(0.9, 2.4) * (inside(distance, 5) + 0.5 * inside(np.abs(distance) - 1.5, 3))
    tint = 1 - soaked * rgb(0.15, 0.17, 0.22)
    return Surface(fabric.color * tint, fabric.height, fabric.gloss + 0.03 * soaked)


DEFECT_FUNCTIONS = {"hole": _hole, "lint": _lint, "stain": _stain}
