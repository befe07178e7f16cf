"""Synthetic steel gear on a light table, slightly rotated: the first object of the demo."""

import numpy as np
from numpy.random import Generator

from .surface import (
    LAMP,
    SIDE,
    Field,
    Surface,
    X,
    Y,
    blend,
    blob,
    distance_to_curve,
    inside,
    random_curve,
    rgb,
    rotated_coordinates,
    shadow,
    smooth_noise,
)

DEFECTS = ("broken_tooth", "misplaced_hole", "rust", "scratch")

TEETH, HOLES = 24, 6
ROOT, TIP, RIM, HUB, BORE, CIRCLE, HOLE = 87.0, 101.0, 80.0, 37.0, 17.0, 58.5, 9.5
"""Radii in pixels: root and tip of the teeth, rim, hub, bore, the circle of the holes, and one hole."""


def draw(rng: Generator, defect: str | None, defect_rng: Generator) -> Surface:
    """Draw a gear. Defects of teeth and holes change its shape; rust and scratches are added to the finished gear."""
    x, y = SIDE / 2 + rng.normal(0, 2.5, 2)
    angle = rng.uniform(-0.3, 0.3)
    right, down = rotated_coordinates(angle, x, y)
    radius, bearing = np.hypot(right, down), np.arctan2(down, right)
    shortened = _shortened(defect_rng, TEETH) if defect == "broken_tooth" else np.zeros(TEETH)
    offsets = _offsets(defect_rng) if defect == "misplaced_hole" else np.zeros((HOLES, 2))
    disc, openings = _teeth(radius, bearing, shortened), _openings(right, down, bearing, offsets)
    body = np.maximum(disc, -openings)  # signed distance, negative in metal

    rings = np.interp(radius, np.arange(0, 192, 0.5), rng.standard_normal(384)) + 0.5 * smooth_noise(rng, 1.0)
    lathe = (((X - x) * np.cos(LAMP) + (Y - y) * np.sin(LAMP)) / np.maximum(radius, 1)) ** 2
    lathe = lathe * lathe * lathe  # rings reflect the lamp if they are perpendicular to its direction
    web = np.clip(np.minimum(radius - HUB, RIM - radius), 0, 3)  # deeper between hub and rim
    tone = 0.45 + rng.normal(0, 0.012) + 0.16 * lathe + 0.02 * rings + 0.02 * smooth_noise(rng, 20) - 0.015 * web
    steel = tone * rgb(0.99, 1.0, 1.02)
    metal = inside(body, 1.2)
    table = 0.80 * (1 - 0.35 * shadow(body, 14)) + 0.010 * smooth_noise(rng, 25)
    gear = Surface(
        color=blend(table * rgb(1.0, 0.995, 0.975), steel, metal),
        height=metal * (np.clip(-body, 0, 2.0) - 0.6 * web + 0.06 * rings),
        gloss=0.25 * metal,
    )
    direction = defect_rng.uniform(0, 2 * np.pi)
    center = x + np.cos(direction) * CIRCLE, y + np.sin(direction) * CIRCLE
    return DEFECT_FUNCTIONS[defect](gear, defect_rng, metal, center) if defect in DEFECT_FUNCTIONS else gear


def _teeth(radius: Field, bearing: Field, shortened: Field) -> Field:
    """Return the signed distance (256, 256) to the toothed disc.

    `shortened`, (24,), is the missing fraction of each tooth.
    """
    phase = bearing * TEETH / (2 * np.pi)
    tooth = np.floor(phase).astype(int)  # -12 to 11; negative indices count from the end
    offset = radius * np.abs(phase - tooth - 0.5) * 2 * np.pi / TEETH  # pixels from the center of the tooth
    flank = (offset - 8.3) * np.cos(0.15) + (radius - ROOT) * np.sin(0.15)
    head = radius - ROOT - (TIP - ROOT) * (1 - shortened[tooth])
    disc: Field = np.minimum(radius - ROOT, np.maximum(flank, head))
    return disc


def _openings(right: Field, down: Field, bearing: Field, offsets: Field) -> Field:
    """Return the signed distance (256, 256) to the bore with its keyway and to the holes.

    `offsets`, (6, 2), shift the holes, in pixels.
    """
    keyway = np.maximum(np.abs(down) - 4.5, np.abs(right - BORE) - 6)
    sector = np.floor(bearing * HOLES / (2 * np.pi)).astype(int)  # each hole stays in its sector
    middle = 2 * np.pi * (np.arange(HOLES) + 0.5) / HOLES
    centers = CIRCLE * np.stack([np.cos(middle), np.sin(middle)], 1) + offsets  # (6, 2)
    holes = np.hypot(right - centers[sector, 0], down - centers[sector, 1]) - HOLE
    nearest: Field = np.minimum(np.minimum(np.hypot(right, down) - BORE, keyway), holes)
    return nearest


def _shortened(defect_rng: Generator, teeth: int) -> Field:
    """Return the missing fraction of each tooth: one tooth and possibly a part of the next."""
    fractions = np.zeros(teeth)
    first = defect_rng.integers(teeth)
    fractions[first] = defect_rng.uniform(0.4, 1.0)
    fractions[(first + 1) % teeth] = max(defect_rng.uniform(-0.6, 0.6), 0)
    return fractions


def _offsets(defect_rng: Generator) -> Field:
    """Return the offset of each hole in pixels: one hole is misplaced."""
    offsets = np.zeros((HOLES, 2))
    direction, distance = defect_rng.uniform(0, 2 * np.pi), defect_rng.uniform(3.0, 9.0)
    offsets[defect_rng.integers(HOLES)] = distance * np.cos(direction), distance * np.sin(direction)
    return offsets


def _rust(gear: Surface, defect_rng: Generator, metal: Field, center: tuple[float, float]) -> Surface:
    """Add a brown patch on the metal, thinner at its edge."""
    x, y = center + defect_rng.normal(0, 4, 2)
    distance = blob(defect_rng, x, y, defect_rng.uniform(5, 16), 0.5)
    grain = np.clip(0.75 + 0.3 * smooth_noise(defect_rng, 1.3), 0.2, 1)
    rust = defect_rng.uniform(0.35, 0.85) * inside(distance, 6) * grain * metal
    brown = rgb(0.40, 0.24, 0.13)
    return Surface(blend(gear.color, brown, rust), gear.height + 0.2 * rust, gear.gloss * (1 - rust))


def _scratch(gear: Surface, defect_rng: Generator, metal: Field, center: tuple[float, float]) -> Surface:
    """Add a bright groove on the surface."""
    x, y = center + defect_rng.normal(0, 4, 2)
    angle, length = defect_rng.uniform(0, np.pi), defect_rng.uniform(20, 60)
    distance, along = distance_to_curve(random_curve(defect_rng, x, y, angle=angle, length=length, bend=0.2))
    line = inside(distance - defect_rng.uniform(0.4, 1.0), 1.5)
    groove = line * np.sqrt(np.clip(4 * along * (1 - along), 0, 1)) * metal
    groove = groove * defect_rng.uniform(0.5, 1.0)
    return Surface(gear.color + 0.25 * groove, gear.height - 0.8 * groove, gear.gloss)


DEFECT_FUNCTIONS = {"rust": _rust, "scratch": _scratch}
