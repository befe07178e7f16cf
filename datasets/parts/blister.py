"""Synthetic blister pack of nine scored tablets on a dark belt: the second object of the demo."""

import numpy as np
from numpy.random import Generator

from .surface import (
    LAMP,
    SIDE,
    Field,
    Mask,
    Surface,
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

DEFECTS = ("broken", "contamination", "missing", "wrong_tablet")

SPACING, POCKET, TABLET, HALF = 70.0, 30.0, 22.5, 116.0
"""Pixels: distance between pockets, radius of a pocket, radius of a tablet, half the side of the pack."""
APRICOT = rgb(0.86, 0.66, 0.52)


def draw(rng: Generator, defect: str | None, defect_rng: Generator) -> Surface:
    """Draw a pack. One tablet may be missing, broken or of the wrong kind, or there may be dirt in a pocket."""
    x, y = SIDE / 2 + rng.normal(0, 1.2, 2)
    angle = rng.normal(0, 0.006)
    right, down = rotated_coordinates(angle, x, y)
    column, row = (np.clip(np.round(side / SPACING), -1, 1).astype(int) for side in (right, down))
    cell = 4 + column + 3 * row  # (256, 256) index of the nearest pocket
    right, down = right - SPACING * column, down - SPACING * row  # relative to the center of that pocket
    defective = int(defect_rng.integers(9))
    offset = SPACING * (defective % 3 - 1), SPACING * (defective // 3 - 1)
    center = (
        x + offset[0] * np.cos(angle) - offset[1] * np.sin(angle),
        y + offset[0] * np.sin(angle) + offset[1] * np.cos(angle),
    )

    pack = _pocket(_foil(rng, *rotated_coordinates(angle, x, y)), np.hypot(right, down) - POCKET)
    shift, rotation = rng.normal(0, 1.2, (2, 9)), rng.uniform(0, np.pi, 9)
    tone = rng.normal(1, 0.012) * rng.normal(1, 0.008, 9)
    chalk = APRICOT * (tone[cell] * (1 + 0.018 * smooth_noise(rng, 1.2)))
    across, along = right - shift[0, cell], down - shift[1, cell]
    outline, chalk = _apply_tablet_defect(
        np.hypot(across, along) - TABLET, chalk, cell == defective, defect, defect_rng
    )
    score = np.abs(across * np.cos(rotation[cell]) + along * np.sin(rotation[cell]))
    pack = _add_tablets(pack, outline, score, chalk)
    if defect == "contamination":
        pack = _add_dirt(pack, center, defect_rng)
    return _add_domes(pack, right, down, rng.normal(1, 0.08, 9)[cell])


def _foil(rng: Generator, right: Field, down: Field) -> Surface:
    """Return the foil with its embossed pattern on the belt."""
    corner = np.hypot(np.maximum(np.abs(right) - HALF + 12, 0), np.maximum(np.abs(down) - HALF + 12, 0)) - 12
    sheet = inside(corner, 1.5)
    belt = 0.17 * (1 - 0.5 * shadow(corner, 10)) * (1 + 0.08 * smooth_noise(rng, 1.2))
    emboss = np.cos((right + down) * 0.80) * np.cos((right - down) * 0.80)
    wrinkles = smooth_noise(rng, 9) + 0.4 * smooth_noise(rng, 3)
    tone = 0.60 + rng.normal(0, 0.012) + 0.02 * smooth_noise(rng, 30)
    color = blend(belt * rgb(0.9, 1.0, 1.1), tone * rgb(0.98, 1.0, 1.02), sheet)
    return Surface(color, sheet * (0.28 * emboss + 0.22 * wrinkles + np.clip(-corner, 0, 2)), 0.25 * sheet)


def _pocket(pack: Surface, distance: Field) -> Surface:
    """Add the pockets: smoother and darker than the foil, with a raised rim."""
    hollow = inside(distance, 2)
    height = pack.height * (1 - 0.6 * hollow) + 1.6 * np.exp(-((distance / 1.8) ** 2))
    return Surface(blend(pack.color, rgb(0.50, 0.51, 0.52), 0.85 * hollow), height, pack.gloss * (1 - 0.5 * hollow))


def _apply_tablet_defect(
    outline: Field, chalk: Field, selected: Mask, defect: str | None, defect_rng: Generator
) -> tuple[Field, Field]:
    """Return outline (256, 256) and color (3, 256, 256) of the tablets with a defect in the `selected` one."""
    if defect == "missing":
        outline = np.where(selected, SIDE, outline)
    elif defect == "broken":
        rotation, cut = defect_rng.uniform(0, 2 * np.pi), defect_rng.uniform(0.15, 0.85) * TABLET
        rows, columns = np.nonzero(selected & (outline < 0))
        across, _ = rotated_coordinates(rotation, columns.mean(), rows.mean())
        edge = across - cut + 1.5 * smooth_noise(defect_rng, 3)
        outline = np.where(selected, np.maximum(outline, edge), outline)
    elif defect == "wrong_tablet":
        outline = outline + selected * defect_rng.uniform(0, 2.5)
        color_change = defect_rng.choice([-1, 1]) * defect_rng.uniform(0.45, 1.1) * rgb(0.06, 0.14, 0.18)
        chalk = chalk + selected * color_change
    return outline, chalk


def _add_tablets(pack: Surface, outline: Field, score: Field, chalk: Field) -> Surface:
    """Add the tablets: domed, with a groove and a shadow; `score` is the distance to the groove in pixels."""
    solid = inside(outline, 1.2)
    groove = np.exp(-((score / 1.1) ** 2)) * inside(outline + 2, 3)
    height = 3.2 * np.sqrt(np.clip(-outline / 7, 0, 1)) - 1.4 * groove
    below = pack.color * (1 - 0.35 * shadow(outline, 8))
    return Surface(blend(below, chalk, solid), blend(pack.height, height, solid), pack.gloss * (1 - 0.9 * solid))


def _add_dirt(pack: Surface, center: tuple[float, float], defect_rng: Generator) -> Surface:
    """Add a hair or a dark crumb in the pocket."""
    x, y = center + defect_rng.uniform(-17, 17, 2)
    if defect_rng.random() < 0.5:
        angle, length = defect_rng.uniform(0, np.pi), defect_rng.uniform(14, 36)
        distance, _ = distance_to_curve(random_curve(defect_rng, x, y, angle=angle, length=length, bend=1.2))
        share = inside(distance - 0.7, 1.2) * defect_rng.uniform(0.5, 0.9)
    else:
        share = inside(blob(defect_rng, x, y, defect_rng.uniform(1.8, 4.5)), 1.5) * defect_rng.uniform(0.5, 0.9)
    return Surface(blend(pack.color, rgb(0.14, 0.11, 0.09), share), pack.height + 0.5 * share, pack.gloss)


def _add_domes(pack: Surface, right: Field, down: Field, strength: Field) -> Surface:
    """Add the transparent domes, each with a highlight of the lamp and a weaker one opposite."""
    radius = np.hypot(right, down)
    toward = (right * np.cos(LAMP) + down * np.sin(LAMP)) / np.maximum(radius, 1)
    lamp = np.exp(-(((radius - 25.5) / 1.6) ** 2)) * np.clip(toward, 0, 1) ** 4
    counter = np.exp(-(((radius - 26.5) / 1.2) ** 2)) * np.clip(-toward, 0, 1) ** 4
    return Surface(pack.color + strength * (0.45 * lamp + 0.15 * counter), pack.height, pack.gloss)
