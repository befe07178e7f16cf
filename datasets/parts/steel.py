"""Brushed stainless steel under a line lamp; the demo's second texture."""

import numpy as np
from numpy.random import Generator

from .surface import SIDE, Surface, X, Y, blend, blob, clouds, inside, path, rgb, stroke

DEFECTS = ("dent", "pitting", "scratch", "stain")


def draw(stream: Generator, defect: str | None, flaw: Generator) -> Surface:
    """The sheet that `stream` brushes, and what happens to it after."""
    slant = stream.normal(0, 0.02)  # of the brush's way
    lines = 0.55 * clouds(stream, 60, 0.55, slant) + 0.35 * clouds(stream, 20, 0.55, slant)
    lines = lines + 0.25 * clouds(stream, 7, 0.55, slant)
    band = np.exp(-(((Y - SIDE * stream.uniform(0.3, 0.7) + 0.15 * X) / 95) ** 2))  # the lamp's mirror image
    tone = 0.47 + stream.normal(0, 0.012) + 0.008 * clouds(stream, 50) + 0.16 * band
    cast = rgb(0.985, 1.0, 1.01)
    colour = (tone + 0.045 * lines) * cast
    sheet = Surface(colour, 0.10 * lines, np.full((SIDE, SIDE), 0.10))
    return _HARM[defect](sheet, flaw) if defect in _HARM else sheet


def _dent(sheet: Surface, flaw: Generator) -> Surface:
    """A shallow hollow: nothing but the slope of the metal tells it."""
    x, y = flaw.uniform(35, SIDE - 35, 2)
    radius, depth = flaw.uniform(6, 14), flaw.uniform(0.045, 0.12)
    hollow = np.exp(-(np.clip(blob(flaw, x, y, radius, 0.15) + radius, 0, None) ** 2) / (2 * (radius / 1.8) ** 2))
    return Surface(sheet.colour, sheet.height - depth * radius * hollow, sheet.gloss)


def _pitting(sheet: Surface, flaw: Generator) -> Surface:
    """A nest of small dark pits that corrosion ate."""
    x, y = flaw.uniform(35, SIDE - 35, 2)
    pits = np.zeros((SIDE, SIDE))
    for _ in range(flaw.integers(1, 7)):
        right, down = flaw.normal(0, 7, 2)
        pits = np.maximum(pits, inside(np.hypot(X - x - right, Y - y - down) - flaw.uniform(0.4, 1.3), 1.5))
    halo = inside(blob(flaw, x, y, 9), 9)
    colour = blend(sheet.colour, rgb(0.42, 0.33, 0.24), 0.08 * halo)
    colour = blend(colour, rgb(0.13, 0.10, 0.09), flaw.uniform(0.5, 0.9) * pits)
    return Surface(colour, sheet.height - pits, sheet.gloss)


def _scratch(sheet: Surface, flaw: Generator) -> Surface:
    """A groove across the brushing, often faint: one flank throws the lamp's light back, the other does not."""
    x, y = flaw.uniform(50, SIDE - 50, 2)
    angle, length = flaw.uniform(0.35, 2.8), flaw.uniform(25, 110)
    distance, along = stroke(path(flaw, x, y, angle=angle, length=length, bend=0.15))
    fading = np.sqrt(np.clip(4 * along * (1 - along), 0, 1)) * flaw.uniform(0.25, 0.75)
    groove = inside(distance - flaw.uniform(0.3, 0.9), 1.5) * fading
    return Surface(sheet.colour + 0.16 * groove, sheet.height - 0.7 * groove, sheet.gloss)


def _stain(sheet: Surface, flaw: Generator) -> Surface:
    """A dried drop: hardly a tint inside, a darker rim."""
    x, y = flaw.uniform(40, SIDE - 40, 2)
    distance = blob(flaw, x, y, flaw.uniform(8, 24), 0.25)
    dried = flaw.uniform(0.15, 0.6) * (0.5 * inside(distance, 3) + 0.7 * inside(np.abs(distance + 1) - 1, 2.5))
    tint = 1 - dried * rgb(0.13, 0.17, 0.24)
    return Surface(sheet.colour * tint, sheet.height, sheet.gloss * (1 - 0.6 * dried))


_HARM = {"dent": _dent, "pitting": _pitting, "scratch": _scratch, "stain": _stain}
