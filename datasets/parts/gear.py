"""A turned steel gear on a light table; the demo's first object. It may lie a little askew."""

import numpy as np
from numpy.random import Generator

from .surface import LAMP, SIDE, Field, Surface, X, Y, blend, blob, clouds, inside, path, rgb, shadow, stroke, turned

DEFECTS = ("broken_tooth", "misplaced_hole", "rust", "scratch")

TEETH, HOLES = 24, 6
ROOT, TIP, RIM, HUB, BORE, CIRCLE, HOLE = 87.0, 101.0, 80.0, 37.0, 17.0, 58.5, 9.5
"""Radii in pixels: feet and heads of the teeth, rim, hub, bore, the circle of the holes, and one hole."""


def draw(stream: Generator, defect: str | None, flaw: Generator) -> Surface:
    """The gear that `stream` lays down. Teeth and holes are machined wrongly; rust and scratches come to it later."""
    x, y = SIDE / 2 + stream.normal(0, 2.5, 2)
    angle = stream.uniform(-0.3, 0.3)
    right, down = turned(angle, x, y)
    radius, bearing = np.hypot(right, down), np.arctan2(down, right)
    shortened = _shortened(flaw, TEETH) if defect == "broken_tooth" else np.zeros(TEETH)
    offsets = _offsets(flaw) if defect == "misplaced_hole" else np.zeros((HOLES, 2))
    disc, openings = _teeth(radius, bearing, shortened), _openings(right, down, bearing, offsets)
    body = np.maximum(disc, -openings)  # signed distance, negative in metal

    rings = np.interp(radius, np.arange(0, 192, 0.5), stream.standard_normal(384)) + 0.5 * clouds(stream, 1.0)
    lathe = (((X - x) * np.cos(LAMP) + (Y - y) * np.sin(LAMP)) / np.maximum(radius, 1)) ** 2
    lathe = lathe * lathe * lathe  # rings throw the lamp's light back where they run across it
    web = np.clip(np.minimum(radius - HUB, RIM - radius), 0, 3)  # turned deeper between hub and rim
    tone = 0.45 + stream.normal(0, 0.012) + 0.16 * lathe + 0.02 * rings + 0.02 * clouds(stream, 20) - 0.015 * web
    steel = tone * rgb(0.99, 1.0, 1.02)
    metal = inside(body, 1.2)
    table = 0.80 * (1 - 0.35 * shadow(body, 14)) + 0.010 * clouds(stream, 25)
    gear = Surface(
        colour=blend(table * rgb(1.0, 0.995, 0.975), steel, metal),
        height=metal * (np.clip(-body, 0, 2.0) - 0.6 * web + 0.06 * rings),
        gloss=0.25 * metal,
    )
    where = flaw.uniform(0, 2 * np.pi)
    place = x + np.cos(where) * CIRCLE, y + np.sin(where) * CIRCLE
    return _HARM[defect](gear, flaw, metal, place) if defect in _HARM else gear


def _teeth(radius: Field, bearing: Field, shortened: Field) -> Field:
    """Signed distance (256, 256) to the disc with its teeth; `shortened` (24,) is the share of each that is gone."""
    phase = bearing * TEETH / (2 * np.pi)
    tooth = np.floor(phase).astype(int)  # -12 to 11: negative ones count from the end, as they should
    aside = radius * np.abs(phase - tooth - 0.5) * 2 * np.pi / TEETH  # pixels from the middle of the tooth
    flank = (aside - 8.3) * np.cos(0.15) + (radius - ROOT) * np.sin(0.15)
    head = radius - ROOT - (TIP - ROOT) * (1 - shortened[tooth])
    disc: Field = np.minimum(radius - ROOT, np.maximum(flank, head))
    return disc


def _openings(right: Field, down: Field, bearing: Field, offsets: Field) -> Field:
    """Signed distance (256, 256) to the bore with its keyway and to the holes, each moved by its offset in pixels."""
    keyway = np.maximum(np.abs(down) - 4.5, np.abs(right - BORE) - 6)
    sector = np.floor(bearing * HOLES / (2 * np.pi)).astype(int)  # a hole stays in its own
    middle = 2 * np.pi * (np.arange(HOLES) + 0.5) / HOLES
    place = CIRCLE * np.stack([np.cos(middle), np.sin(middle)], 1) + offsets  # (6, 2)
    holes = np.hypot(right - place[sector, 0], down - place[sector, 1]) - HOLE
    nearest: Field = np.minimum(np.minimum(np.hypot(right, down) - BORE, keyway), holes)
    return nearest


def _shortened(flaw: Generator, teeth: int) -> Field:
    """One tooth, or one and a bit of the next, chipped or gone."""
    gone = np.zeros(teeth)
    first = flaw.integers(teeth)
    gone[first] = flaw.uniform(0.4, 1.0)
    gone[(first + 1) % teeth] = max(flaw.uniform(-0.6, 0.6), 0)
    return gone


def _offsets(flaw: Generator) -> Field:
    """One hole drilled off its place."""
    offsets = np.zeros((HOLES, 2))
    toward, far = flaw.uniform(0, 2 * np.pi), flaw.uniform(3.0, 9.0)
    offsets[flaw.integers(HOLES)] = far * np.cos(toward), far * np.sin(toward)
    return offsets


def _rust(gear: Surface, flaw: Generator, metal: Field, place: tuple[float, float]) -> Surface:
    """Brown bloom on the metal, thin at its edge."""
    x, y = place + flaw.normal(0, 4, 2)
    distance = blob(flaw, x, y, flaw.uniform(5, 16), 0.5)
    grain = np.clip(0.75 + 0.3 * clouds(flaw, 1.3), 0.2, 1)
    bloom = flaw.uniform(0.35, 0.85) * inside(distance, 6) * grain * metal
    brown = rgb(0.40, 0.24, 0.13)
    return Surface(blend(gear.colour, brown, bloom), gear.height + 0.2 * bloom, gear.gloss * (1 - bloom))


def _scratch(gear: Surface, flaw: Generator, metal: Field, place: tuple[float, float]) -> Surface:
    """A bright groove over the face, from handling."""
    x, y = place + flaw.normal(0, 4, 2)
    distance, along = stroke(path(flaw, x, y, angle=flaw.uniform(0, np.pi), length=flaw.uniform(20, 60), bend=0.2))
    groove = inside(distance - flaw.uniform(0.4, 1.0), 1.5) * np.sqrt(np.clip(4 * along * (1 - along), 0, 1)) * metal
    groove = groove * flaw.uniform(0.5, 1.0)
    return Surface(gear.colour + 0.25 * groove, gear.height - 0.8 * groove, gear.gloss)


_HARM = {"rust": _rust, "scratch": _scratch}
