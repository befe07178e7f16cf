"""A blister of nine scored tablets on a dark belt; the demo's second object."""

import numpy as np
from numpy.random import Generator

from .surface import LAMP, SIDE, Field, Mask, Surface, blend, blob, clouds, inside, path, rgb, shadow, stroke, turned

DEFECTS = ("broken", "contamination", "missing", "wrong_tablet")

SPACING, POCKET, TABLET, HALF = 70.0, 30.0, 22.5, 116.0
"""Pixels: from pocket to pocket, the radii of a pocket and of a tablet, and half the pack's side."""
APRICOT = rgb(0.86, 0.66, 0.52)


def draw(stream: Generator, defect: str | None, flaw: Generator) -> Surface:
    """The pack that `stream` fills and seals. One tablet is missing, broken or another one, or dirt is sealed in."""
    x, y = SIDE / 2 + stream.normal(0, 1.2, 2)
    angle = stream.normal(0, 0.006)
    right, down = turned(angle, x, y)
    column, row = (np.clip(np.round(side / SPACING), -1, 1).astype(int) for side in (right, down))
    cell = 4 + column + 3 * row  # (256, 256) which of the nine pockets is nearest
    right, down = right - SPACING * column, down - SPACING * row  # from that pocket's centre
    spoiled = int(flaw.integers(9))
    at = SPACING * (spoiled % 3 - 1), SPACING * (spoiled // 3 - 1)
    centre = x + at[0] * np.cos(angle) - at[1] * np.sin(angle), y + at[0] * np.sin(angle) + at[1] * np.cos(angle)

    pack = _pocket(_foil(stream, *turned(angle, x, y)), np.hypot(right, down) - POCKET)
    loose, turn = stream.normal(0, 1.2, (2, 9)), stream.uniform(0, np.pi, 9)
    tone = stream.normal(1, 0.012) * stream.normal(1, 0.008, 9)
    chalk = APRICOT * (tone[cell] * (1 + 0.018 * clouds(stream, 1.2)))
    across, along = right - loose[0, cell], down - loose[1, cell]
    outline, chalk = _spoil(np.hypot(across, along) - TABLET, chalk, cell == spoiled, defect, flaw)
    score = np.abs(across * np.cos(turn[cell]) + along * np.sin(turn[cell]))
    pack = _lay(pack, outline, score, chalk)
    if defect == "contamination":
        pack = _soil(pack, centre, flaw)
    return _cover(pack, right, down, stream.normal(1, 0.08, 9)[cell])


def _foil(stream: Generator, right: Field, down: Field) -> Surface:
    """The sealed sheet with its embossed diamonds, on the belt."""
    corner = np.hypot(np.maximum(np.abs(right) - HALF + 12, 0), np.maximum(np.abs(down) - HALF + 12, 0)) - 12
    sheet = inside(corner, 1.5)
    belt = 0.17 * (1 - 0.5 * shadow(corner, 10)) * (1 + 0.08 * clouds(stream, 1.2))
    emboss = np.cos((right + down) * 0.80) * np.cos((right - down) * 0.80)
    wrinkles = clouds(stream, 9) + 0.4 * clouds(stream, 3)
    tone = 0.60 + stream.normal(0, 0.012) + 0.02 * clouds(stream, 30)
    colour = blend(belt * rgb(0.9, 1.0, 1.1), tone * rgb(0.98, 1.0, 1.02), sheet)
    return Surface(colour, sheet * (0.28 * emboss + 0.22 * wrinkles + np.clip(-corner, 0, 2)), 0.25 * sheet)


def _pocket(pack: Surface, distance: Field) -> Surface:
    """The hollows that the tablets lie in: smoother, a little darker, with a rolled rim."""
    hollow = inside(distance, 2)
    height = pack.height * (1 - 0.6 * hollow) + 1.6 * np.exp(-((distance / 1.8) ** 2))
    return Surface(blend(pack.colour, rgb(0.50, 0.51, 0.52), 0.85 * hollow), height, pack.gloss * (1 - 0.5 * hollow))


def _spoil(outline: Field, chalk: Field, here: Mask, defect: str | None, flaw: Generator) -> tuple[Field, Field]:
    """Outline (256, 256) and colour (3, 256, 256) of the tablets after one of them, `here`, went wrong."""
    if defect == "missing":
        outline = np.where(here, SIDE, outline)
    elif defect == "broken":
        turn, kept = flaw.uniform(0, 2 * np.pi), flaw.uniform(0.15, 0.85) * TABLET
        rows, columns = np.nonzero(here & (outline < 0))
        across, _ = turned(turn, columns.mean(), rows.mean())
        outline = np.where(here, np.maximum(outline, across - kept + 1.5 * clouds(flaw, 3)), outline)
    elif defect == "wrong_tablet":
        outline = outline + here * flaw.uniform(0, 2.5)
        paler = flaw.choice([-1, 1]) * flaw.uniform(0.45, 1.1) * rgb(0.06, 0.14, 0.18)
        chalk = chalk + here * paler
    return outline, chalk


def _lay(pack: Surface, outline: Field, score: Field, chalk: Field) -> Surface:
    """Puts the tablets in: domed, with a score and a shadow; `score` is the distance to its line in pixels."""
    solid = inside(outline, 1.2)
    groove = np.exp(-((score / 1.1) ** 2)) * inside(outline + 2, 3)
    height = 3.2 * np.sqrt(np.clip(-outline / 7, 0, 1)) - 1.4 * groove
    below = pack.colour * (1 - 0.35 * shadow(outline, 8))
    return Surface(blend(below, chalk, solid), blend(pack.height, height, solid), pack.gloss * (1 - 0.9 * solid))


def _soil(pack: Surface, centre: tuple[float, float], flaw: Generator) -> Surface:
    """A hair or a dark crumb in the pocket."""
    x, y = centre + flaw.uniform(-17, 17, 2)
    if flaw.random() < 0.5:
        distance, _ = stroke(path(flaw, x, y, angle=flaw.uniform(0, np.pi), length=flaw.uniform(14, 36), bend=1.2))
        share = inside(distance - 0.7, 1.2) * flaw.uniform(0.5, 0.9)
    else:
        share = inside(blob(flaw, x, y, flaw.uniform(1.8, 4.5)), 1.5) * flaw.uniform(0.5, 0.9)
    return Surface(blend(pack.colour, rgb(0.14, 0.11, 0.09), share), pack.height + 0.5 * share, pack.gloss)


def _cover(pack: Surface, right: Field, down: Field, strength: Field) -> Surface:
    """The clear domes: in each a crescent of the lamp and a faint counter-light."""
    radius = np.hypot(right, down)
    toward = (right * np.cos(LAMP) + down * np.sin(LAMP)) / np.maximum(radius, 1)
    lamp = np.exp(-(((radius - 25.5) / 1.6) ** 2)) * np.clip(toward, 0, 1) ** 4
    counter = np.exp(-(((radius - 26.5) / 1.2) ** 2)) * np.clip(-toward, 0, 1) ** 4
    return Surface(pack.colour + strength * (0.45 * lamp + 0.15 * counter), pack.height, pack.gloss)
