"""Surfaces and the simulated camera that renders all products of the demo.

A product is a `Surface`: color, height and gloss per pixel. A `Camera` renders it with a lamp from one side, uneven
light, a soft lens and a noisy sensor. A defective surface and the same surface without the defect are rendered by the
same camera, so they differ by the defect only. All fields are float64: the last bit of a sine may differ between
machines, which rounding to 8 bits removes. The color channels are the first axis, because NumPy then iterates along
rows.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from scipy import fft, ndimage

Field = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SIDE = 256
Y, X = np.mgrid[:SIDE, :SIDE].astype(np.float64)
LAMP = np.radians(235)
"""Mean azimuth of the lamp, clockwise from the right: at the upper left."""
VISIBLE = 0.02
"""Smallest difference of exposure of a defect pixel: five gray levels of 255."""


@dataclass(frozen=True, slots=True)
class Surface:
    """The scene.

    Attributes:
        color: (3, 256, 256) reflectance for red, green and blue light, in [0, 1].
        height: (256, 256) height toward the camera, in pixels.
        gloss: (256, 256) strength of the highlight, in [0, 1].
    """

    color: Field
    height: Field
    gloss: Field


@dataclass(frozen=True, slots=True)
class Camera:
    """One exposure of a fixed camera with random variation of lamp and sensor.

    Attributes:
        lamp: (3,) unit vector to the lamp: right, down, toward the camera.
        brightness: (3, 256, 256) illumination per color and pixel, about 1.
        grain: (3, 256, 256) standard normal noise of the sensor.
        noise: standard deviation of the noise at brightness 1.
    """

    lamp: Field
    brightness: Field
    grain: Field
    noise: float = 0.014

    @classmethod
    def sample(cls, rng: Generator) -> "Camera":
        """Return a camera with random lamp, light gradient, gain and white balance, varied by a few percent."""
        azimuth, elevation = LAMP + np.radians(rng.normal(0, 3)), np.radians(52 + rng.normal(0, 1.5))
        lamp = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        along, strength = azimuth + rng.normal(0, 0.3), 0.09 + 0.03 * rng.random()
        x, y = X / SIDE - 0.5, Y / SIDE - 0.5
        gradient = 1 + strength * (x * np.cos(along) + y * np.sin(along)) - 0.22 * (x**2 + y**2)
        balance = rng.normal(1, 0.03) * rng.normal(1, 0.005, 3)
        return cls(lamp, gradient * balance[:, None, None], rng.standard_normal((3, SIDE, SIDE)))

    def expose(self, surface: Surface) -> Field:
        """Return diffuse light and highlight after the lens, without sensor noise: (3, 256, 256), about [0, 1]."""
        slope_y, slope_x = np.gradient(surface.height)
        length = np.sqrt(1 + slope_x**2 + slope_y**2)
        right, down, up = self.lamp
        facing = np.maximum((up - slope_x * right - slope_y * down) / length, 0)
        half = np.array([right, down, up + 1]) / np.sqrt(2 + 2 * up)  # between lamp and camera
        mirror = np.maximum((half[2] - slope_x * half[0] - slope_y * half[1]) / length, 0) ** 2
        mirror = mirror * mirror * mirror  # to the 6th power
        highlight = surface.gloss * (mirror * mirror) ** 2  # to the 24th power
        lit = surface.color * (0.32 + 0.68 / up * facing) + highlight  # a flat surface keeps its color
        soft: Field = ndimage.gaussian_filter(lit, (0, 0.6, 0.6), truncate=2)
        return soft * self.brightness

    def develop(self, exposure: Field) -> Pixels:
        """Return the image (256, 256, 3) with sensor noise, which grows with the square root of the light."""
        noisy = exposure + self.noise * np.sqrt(0.1 + 0.9 * np.clip(exposure, 0, 1)) * self.grain
        return np.ascontiguousarray(np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8).transpose(1, 2, 0))


def render(camera: Camera, good: Surface, defective: Surface | None = None) -> tuple[Pixels, Mask]:
    """Return the image (256, 256, 3) of `defective`, or of `good` if it is None, and the mask (256, 256) of the defect.

    The mask contains the pixels at which both differ visibly, after closing and filling of holes. Outside the mask the
    image equals the image of `good` exactly.
    """
    clean = camera.expose(good)
    if defective is None:
        return camera.develop(clean), np.zeros((SIDE, SIDE), np.bool_)
    exposed = camera.expose(defective)
    difference = ndimage.gaussian_filter(np.abs(exposed - clean).max(0), 1.0, truncate=3)  # (256, 256)
    mask = difference > min(VISIBLE, 0.3 * float(difference.max()))
    mask = ndimage.binary_closing(np.pad(mask, 8), iterations=7)[8:-8, 8:-8]
    mask = ndimage.binary_fill_holes(mask)
    return camera.develop(np.where(mask, exposed, clean)), mask


def smooth_noise(rng: Generator, across: float, down: float | None = None, slant: float = 0.0) -> Field:
    """Return smooth periodic noise (256, 256) with mean 0 and standard deviation 1.

    The noise is sampled as a spectrum that is limited to the frequencies of the correlation length.

    Args:
        rng: random generator.
        across: horizontal correlation length in pixels.
        down: vertical correlation length in pixels; None is `across`.
        slant: vertical shift per horizontal pixel.

    """
    down = across if down is None else down
    reach = 0.65  # exp(-2 pi^2 0.65^2) is 1/4000
    columns = min(int(SIDE * (reach / across + abs(slant) * reach / down)) + 2, SIDE // 2 + 1)
    low = min(int(SIDE * reach / down) + 1, SIDE // 2)
    rows = np.r_[0:low, SIDE - low : SIDE]  # frequencies 0..low - 1, then -low..-1
    vertical, horizontal = fft.fftfreq(SIDE)[rows][:, None], np.arange(columns)[None] / SIDE
    damping = np.exp(-2 * np.pi**2 * ((down * vertical) ** 2 + (across * (horizontal + slant * vertical)) ** 2))
    coefficients = rng.standard_normal((2, len(rows), columns)) * damping
    spectrum = np.zeros((SIDE, columns), np.complex128)
    spectrum[rows] = coefficients[0] + 1j * coefficients[1]
    spectrum[0, 0] = 0
    noise: Field = fft.irfft(fft.ifft(spectrum, axis=0), n=SIDE, axis=1)
    return noise / float(np.sqrt(np.mean(noise**2)))


def inside(distance: Field, softness: float = 1.0) -> Field:
    """Return 1 inside (negative signed distance in pixels) and 0 outside, with an edge `softness` pixels wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def rgb(red: float, green: float, blue: float) -> Field:
    """Return a color as (3, 1, 1)."""
    return np.array([red, green, blue])[:, None, None]


def blend(below: Field, above: Field | float, opacity: Field) -> Field:
    """Blend `above` over `below`; `opacity` is (256, 256), both fields have one or three channels."""
    return below + opacity * (above - below)


def shadow(distance: Field, softness: float) -> Field:
    """Return the shadow of an object, (256, 256) in [0, 1]; `distance` is its signed distance in pixels."""
    return np.roll(inside(distance, softness), (4, 3), (0, 1))


def rotated_coordinates(angle: float, x: float, y: float) -> tuple[Field, Field]:
    """Return coordinates right and down, (256, 256) in pixels, relative to (x, y) and rotated by `angle` radians."""
    right, down = X - x, Y - y
    return right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)


def blob(rng: Generator, x: float, y: float, radius: float, roughness: float = 0.35) -> Field:
    """Return the signed distance (256, 256) in pixels to a blob of about `radius` with an irregular edge."""
    right, down = rotated_coordinates(rng.uniform(0, np.pi), x, y)
    stretch = rng.uniform(0.75, 1.0)
    edge = smooth_noise(rng, max(radius / 2.5, 1.5))
    return np.hypot(right * stretch, down / stretch) - radius * (1 + roughness * np.clip(edge, -1.5, 1.5))


def random_curve(rng: Generator, x: float, y: float, *, angle: float, length: float, bend: float) -> Field:
    """Return points (n, 2) of a random curve.

    Its center is (x, y) and its length `length`, in pixels; it starts at `angle` and turns by `bend`, in radians.
    """
    count = max(int(length / 4), 4)
    deviation = bend * np.cumsum(rng.standard_normal(count)) / np.sqrt(count)
    angles = angle + deviation + np.linspace(-bend, bend, count)
    points: Field = np.cumsum(length / count * np.stack([np.cos(angles), np.sin(angles)], 1), 0)  # (n, 2)
    centered: Field = points - points.mean(0) + np.array([x, y])
    return centered


def distance_to_curve(points: Field) -> tuple[Field, Field]:
    """Return the distance to a curve in pixels and the position (0..1) of the nearest point on it, (256, 256) each."""
    nearest, along = np.full((SIDE, SIDE), np.inf), np.zeros((SIDE, SIDE))
    for index, (start, stop) in enumerate(pairwise(points)):
        span = stop - start
        position = np.clip(((X - start[0]) * span[0] + (Y - start[1]) * span[1]) / (span @ span), 0, 1)
        squared = (X - start[0] - position * span[0]) ** 2 + (Y - start[1] - position * span[1]) ** 2
        along = np.where(squared < nearest, (index + position) / (len(points) - 1), along)
        nearest = np.minimum(squared, nearest)
    return np.sqrt(nearest), along
