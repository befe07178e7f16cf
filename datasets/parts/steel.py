"""Synthetic brushed stainless steel under a line lamp: the second texture of the demo."""

import numpy as np
from numpy.random import Generator

from .surface import SIDE, Surface, X, Y, blend, blob, distance_to_curve, inside, random_curve, rgb, smooth_noise

DEFECTS = ("dent", "pitting", "scratch", "stain")


def draw(rng: Generator, defect: str | None, defect_rng: Generator) -> Surface:
    """Draw a brushed sheet and apply a defect to it."""
    slant = rng.normal(0, 0.02)  # slant of the brushing direction
    lines = 0.55 * smooth_noise(rng, 60, 0.55, slant) + 0.35 * smooth_noise(rng, 20, 0.55, slant)
    lines = lines + 0.25 * smooth_noise(rng, 7, 0.55, slant)
    band = np.exp(-(((Y - SIDE * rng.uniform(0.3, 0.7) + 0.15 * X) / 95) ** 2))  # reflection of the lamp
    tone = 0.47 + rng.normal(0, 0.012) + 0.008 * smooth_noise(rng, 50) + 0.16 * band
    tint = rgb(0.985, 1.0, 1.01)
    color = (tone + 0.045 * lines) * tint
    sheet = Surface(color, 0.10 * lines, np.full((SIDE, SIDE), 0.10))
    return DEFECT_FUNCTIONS[defect](sheet, defect_rng) if defect in DEFECT_FUNCTIONS else sheet


def _dent(sheet: Surface, defect_rng: Generator) -> Surface:
    """Add a shallow dent, visible only by its slope."""
    x, y = defect_rng.uniform(35, SIDE - 35, 2)
    radius, depth = defect_rng.uniform(6, 14), defect_rng.uniform(0.045, 0.12)
    hollow = np.exp(-(np.clip(blob(defect_rng, x, y, radius, 0.15) + radius, 0, None) ** 2) / (2 * (radius / 1.8) ** 2))
    return Surface(sheet.color, sheet.height - depth * radius * hollow, sheet.gloss)


def _pitting(sheet: Surface, defect_rng: Generator) -> Surface:
    """Add a cluster of small dark corrosion pits."""
    x, y = defect_rng.uniform(35, SIDE - 35, 2)
    pits = np.zeros((SIDE, SIDE))
    for _ in range(defect_rng.integers(1, 7)):
        right, down = defect_rng.normal(0, 7, 2)
        pits = np.maximum(pits, inside(np.hypot(X - x - right, Y - y - down) - defect_rng.uniform(0.4, 1.3), 1.5))
    halo = inside(blob(defect_rng, x, y, 9), 9)
    color = blend(sheet.color, rgb(0.42, 0.33, 0.24), 0.08 * halo)
    color = blend(color, rgb(0.13, 0.10, 0.09), defect_rng.uniform(0.5, 0.9) * pits)
    return Surface(color, sheet.height - pits, sheet.gloss)


def _scratch(sheet: Surface, defect_rng: Generator) -> Surface:
    """Add a groove across the brushing direction, often faint: one flank reflects the lamp, the other does not."""
    x, y = defect_rng.uniform(50, SIDE - 50, 2)
    angle, length = defect_rng.uniform(0.35, 2.8), defect_rng.uniform(25, 110)
    distance, along = distance_to_curve(random_curve(defect_rng, x, y, angle=angle, length=length, bend=0.15))
    fading = np.sqrt(np.clip(4 * along * (1 - along), 0, 1)) * defect_rng.uniform(0.25, 0.75)
    groove = inside(distance - defect_rng.uniform(0.3, 0.9), 1.5) * fading
    return Surface(sheet.color + 0.16 * groove, sheet.height - 0.7 * groove, sheet.gloss)


def _stain(sheet: Surface, defect_rng: Generator) -> Surface:
    """Add a dried drop: slightly darker inside, darker at the rim."""
    x, y = defect_rng.uniform(40, SIDE - 40, 2)
    distance = blob(defect_rng, x, y, defect_rng.uniform(8, 24), 0.25)
    opacity = defect_rng.uniform(0.15, 0.6) * (0.5 * inside(distance, 3) + 0.7 * inside(np.abs(distance + 1) - 1, 2.5))
    tint = 1 - opacity * rgb(0.13, 0.17, 0.24)
    return Surface(sheet.color * tint, sheet.height, sheet.gloss * (1 - 0.6 * opacity))


DEFECT_FUNCTIONS = {"dent": _dent, "pitting": _pitting, "scratch": _scratch, "stain": _stain}
