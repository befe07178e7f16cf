"""Surfaces and the camera that photographs them: what every product of the demo is drawn with.

A product is a `Surface`: its colour, its height and its gloss, pixel by pixel. A `Camera` turns it into a picture by a
lamp from one side, uneven light, a soft lens and a noisy sensor. A defective surface and its good twin are taken by
the same camera, so what differs between the two is the defect and nothing else. All fields are float64: the last bit
of a sine may differ between machines, and after rounding to 8 bits nothing of it is left. Colours stand before rows
and columns, because numpy then runs along rows.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from scipy import fft, ndimage

Field = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SIDE = 256
Y, X = np.mgrid[:SIDE, :SIDE].astype(np.float64)
LAMP = np.radians(235)
"""Where the lamp usually stands, from the right over below: at the upper left."""
VISIBLE = 0.02
"""A difference of the exposure from which a pixel belongs to a defect: five grey levels of 255."""


@dataclass(frozen=True, slots=True)
class Surface:
    """What lies before the camera.

    Attributes:
        colour: (3, 256, 256) share of red, green and blue light thrown back, in [0, 1].
        height: (256, 256) towards the camera, in pixels.
        gloss: (256, 256) strength of the highlight, in [0, 1].
    """

    colour: Field
    height: Field
    gloss: Field


@dataclass(frozen=True, slots=True)
class Camera:
    """One exposure of a fixed camera: lamps and sensor are never twice quite the same.

    Attributes:
        lamp: (3,) unit vector (right, down, towards the camera) to the lamp.
        brightness: (3, 256, 256) light that arrives, by colour and pixel; about 1.
        grain: (3, 256, 256) standard normal, what the sensor adds.
        noise: the grain's standard deviation at full brightness, of 1.
    """

    lamp: Field
    brightness: Field
    grain: Field
    noise: float = 0.014

    @classmethod
    def draw(cls, stream: Generator) -> "Camera":
        """A camera whose lamp, gradient of light, gain and white balance vary by a few per cent."""
        azimuth, elevation = LAMP + np.radians(stream.normal(0, 3)), np.radians(52 + stream.normal(0, 1.5))
        lamp = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        along, strength = azimuth + stream.normal(0, 0.3), 0.09 + 0.03 * stream.random()
        x, y = X / SIDE - 0.5, Y / SIDE - 0.5
        gradient = 1 + strength * (x * np.cos(along) + y * np.sin(along)) - 0.22 * (x**2 + y**2)
        balance = stream.normal(1, 0.03) * stream.normal(1, 0.005, 3)
        return cls(lamp, gradient * balance[:, None, None], stream.standard_normal((3, SIDE, SIDE)))

    def expose(self, surface: Surface) -> Field:
        """(3, 256, 256) in about [0, 1]: diffuse light and highlight through the lens, without the sensor's noise."""
        slope_y, slope_x = np.gradient(surface.height)
        length = np.sqrt(1 + slope_x**2 + slope_y**2)
        right, down, up = self.lamp
        facing = np.maximum((up - slope_x * right - slope_y * down) / length, 0)
        between = np.array([right, down, up + 1]) / np.sqrt(2 + 2 * up)  # the lamp and the camera
        mirror = np.maximum((between[2] - slope_x * between[0] - slope_y * between[1]) / length, 0) ** 2
        mirror = mirror * mirror * mirror  # the 6th power
        highlight = surface.gloss * (mirror * mirror) ** 2  # the 24th
        lit = surface.colour * (0.32 + 0.68 / up * facing) + highlight  # a level surface shows its own colour
        soft: Field = ndimage.gaussian_filter(lit, (0, 0.6, 0.6), truncate=2)
        return soft * self.brightness

    def develop(self, exposure: Field) -> Picture:
        """(256, 256, 3) as the sensor reads it: shot noise grows with the root of the light."""
        noisy = exposure + self.noise * np.sqrt(0.1 + 0.9 * np.clip(exposure, 0, 1)) * self.grain
        return np.ascontiguousarray(np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8).transpose(1, 2, 0))


def photograph(camera: Camera, good: Surface, bad: Surface | None = None) -> tuple[Picture, Mask]:
    """The picture (256, 256, 3) of `bad`, or of `good` where there is none, and the mask (256, 256) of its defect.

    The mask is where the two differ visibly, closed and filled as an inspector would outline it. Outside of it the
    picture is that of the good twin to the bit.
    """
    clean = camera.expose(good)
    if bad is None:
        return camera.develop(clean), np.zeros((SIDE, SIDE), np.bool_)
    flawed = camera.expose(bad)
    difference = ndimage.gaussian_filter(np.abs(flawed - clean).max(0), 1.0, truncate=3)  # (256, 256)
    mask = difference > min(VISIBLE, 0.3 * float(difference.max()))
    mask = ndimage.binary_closing(np.pad(mask, 8), iterations=7)[8:-8, 8:-8]
    mask = ndimage.binary_fill_holes(mask)
    return camera.develop(np.where(mask, flawed, clean)), mask


def clouds(stream: Generator, across: float, down: float | None = None, slant: float = 0.0) -> Field:
    """(256, 256) of smooth noise that wraps around, with mean 0 and deviation 1.

    Its grains are about `across` pixels wide and `down` pixels high (None: as wide) and fall by `slant` pixels a pixel.
    It is drawn as a spectrum, of which only the frequencies that such grains have are made.
    """
    down = across if down is None else down
    reach = 0.65  # exp(-2 pi^2 0.65^2) is 1/4000
    columns = min(int(SIDE * (reach / across + abs(slant) * reach / down)) + 2, SIDE // 2 + 1)
    low = min(int(SIDE * reach / down) + 1, SIDE // 2)
    rows = np.r_[0:low, SIDE - low : SIDE]  # frequencies from 0 up, then from -low up
    vertical, horizontal = fft.fftfreq(SIDE)[rows][:, None], np.arange(columns)[None] / SIDE
    damping = np.exp(-2 * np.pi**2 * ((down * vertical) ** 2 + (across * (horizontal + slant * vertical)) ** 2))
    draws = stream.standard_normal((2, len(rows), columns)) * damping
    spectrum = np.zeros((SIDE, columns), np.complex128)
    spectrum[rows] = draws[0] + 1j * draws[1]
    spectrum[0, 0] = 0
    noise: Field = fft.irfft(fft.ifft(spectrum, axis=0), n=SIDE, axis=1)
    return noise / float(np.sqrt(np.mean(noise**2)))


def inside(distance: Field, softness: float = 1.0) -> Field:
    """1 where the signed distance in pixels is negative, 0 where positive, with an edge `softness` pixels wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def rgb(red: float, green: float, blue: float) -> Field:
    """(3, 1, 1) one colour."""
    return np.array([red, green, blue])[:, None, None]


def blend(below: Field, above: Field | float, share: Field) -> Field:
    """`above` laid over `below` with opacity `share` (256, 256), both of one height or of three colours."""
    return below + share * (above - below)


def shadow(distance: Field, softness: float) -> Field:
    """(256, 256) in [0, 1]: what a thing at a signed distance in pixels throws on the ground, away from the lamp."""
    return np.roll(inside(distance, softness), (4, 3), (0, 1))


def turned(angle: float, x: float, y: float) -> tuple[Field, Field]:
    """Coordinates (256, 256) in pixels, right and down, of a thing that stands at (x, y), turned by `angle` radians."""
    right, down = X - x, Y - y
    return right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)


def blob(stream: Generator, x: float, y: float, radius: float, raggedness: float = 0.35) -> Field:
    """(256, 256) signed distance in pixels to a lump of roughly `radius` with a wandering edge."""
    right, down = turned(stream.uniform(0, np.pi), x, y)
    stretch = stream.uniform(0.75, 1.0)
    edge = clouds(stream, max(radius / 2.5, 1.5))
    return np.hypot(right * stretch, down / stretch) - radius * (1 + raggedness * np.clip(edge, -1.5, 1.5))


def path(stream: Generator, x: float, y: float, *, angle: float, length: float, bend: float) -> Field:
    """(n, 2) points of a line centred at (x, y), `length` pixels long, that sets out at `angle` and turns by `bend`."""
    count = max(int(length / 4), 4)
    wander = bend * np.cumsum(stream.standard_normal(count)) / np.sqrt(count)
    turns = angle + wander + np.linspace(-bend, bend, count)
    points: Field = np.cumsum(length / count * np.stack([np.cos(turns), np.sin(turns)], 1), 0)  # (n, 2)
    centred: Field = points - points.mean(0) + np.array([x, y])
    return centred


def stroke(points: Field) -> tuple[Field, Field]:
    """(256, 256) distance in pixels to the line through `points` (n, 2); and where on it the nearest is, 0 to 1."""
    nearest, along = np.full((SIDE, SIDE), np.inf), np.zeros((SIDE, SIDE))
    for index, (start, stop) in enumerate(pairwise(points)):
        span = stop - start
        share = np.clip(((X - start[0]) * span[0] + (Y - start[1]) * span[1]) / (span @ span), 0, 1)
        here = (X - start[0] - share * span[0]) ** 2 + (Y - start[1] - share * span[1]) ** 2
        along = np.where(here < nearest, (index + share) / (len(points) - 1), along)
        nearest = np.minimum(here, nearest)
    return np.sqrt(nearest), along
