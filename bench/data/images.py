"""Samples become tensors: decode, resize, cut, and the same for their masks."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.dataset import Sample
from bench.errors import BenchError
from bench.method import Preprocessing, Resample

KEPT_BYTES = 2 << 30
"""Decoded images are kept in memory, as bytes, up to so much a task; the rest is decoded again at each walk."""

LARGEST_PIXELS = 100_000_000
"""An image that would be larger after the resize is refused: a thin strip, whose shorter side is made much longer."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class FileImages:
    """The images of some samples, prepared alike: what a method is given to fit on, and what it predicts.

    Meets `bench.method.Images`; each file is decoded once while the budget lasts.
    """

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self.samples = tuple(samples)
        self.preprocessing = preprocessing
        self._kept: dict[int, NDArray[np.uint8]] = {}
        height, width = preprocessing.size
        if min(height, width) < 1 or height > preprocessing.height or width > preprocessing.width:
            raise BenchError(
                f"Images are prepared to at least 1 x 1 pixels, and a crop lies within them; this is {preprocessing}."
            )
        self._room = KEPT_BYTES // (3 * height * width)

    @cached_property
    def digest(self) -> str:
        """Of the files' contents, in order, and of their preprocessing."""
        return sha256(f"{content_hash(self.samples)}{astuple(self.preprocessing)}".encode()).hexdigest()

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.samples)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """(b, 3, h, w) RGB in [0, 1], b <= size; the next batch is decoded while one is worked on."""
        indices = range(len(self)) if order is None else order.tolist()
        groups = [indices[start : start + size] for start in range(0, len(indices), size)]
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(self._stack, group) for group in groups[:1]]
            for following in range(1, len(groups) + 1):
                batch = waiting.pop().result()
                waiting = [pool.submit(self._stack, group) for group in groups[following : following + 1]]
                yield _tensor(batch)

    def masks(self) -> list[NDArray[np.bool_]]:
        """(h, w) a sample, True on defect pixels; all False where the sample has no mask."""
        return [defect_mask(sample, self.preprocessing) for sample in self.samples]

    def soft_masks(self) -> list[NDArray[np.uint8]]:
        """(h, w) a sample, the masks as other code resizes them: bilinear, with 1 to 254 along their edges."""
        return [soft_mask(sample, self.preprocessing) for sample in self.samples]

    def _stack(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([self._pixels(index) for index in indices])  # (b, 3, h, w)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        if index in self._kept:
            return self._kept[index]
        path = self.samples[index].image
        with _told(path, "An image"):
            pixels = _prepared(path, self.preprocessing)
        if len(self._kept) < self._room:
            self._kept[index] = pixels
        return pixels


def content_hash(samples: Sequence[Sample]) -> str:
    """A hash of which files the samples name and of every byte in them, images and masks."""
    whole = sha256()
    for sample in samples:
        name = f"{sample.category}/{sample.split}/{sample.defect}/{sample.image.name}\n"
        whole.update(name.encode(errors="surrogateescape"))  # a file's name need not be UTF-8
        for path in (sample.image, *sample.masks):
            with _told(path, "A data set's file"):
                whole.update(sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def read(sample: Sample, preprocessing: Preprocessing) -> Tensor:
    """(1, 3, h, w) RGB in [0, 1]: the sample's file, decoded and prepared anew."""
    with _told(sample.image, "An image"):
        return _tensor(_prepared(sample.image, preprocessing)[None])


def _prepared(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """(3, h, w): channels are brought to the front once, not at each walk."""
    return np.asarray(prepare(decode(path), preprocessing)).transpose(2, 0, 1).copy()


def decode(path: Path) -> Image.Image:
    """The file as 8-bit RGB. Grey, palette, RGBA, CMYK and 16-bit files are converted; alpha is dropped.

    Raises BenchError where the file is no image, is cut off, is larger than Pillow's limit for safe decoding, or holds
    numbers whose range is not known: integers beyond 16 bits, floats beyond [0, 1].
    """
    with _told(path, "An image"), Image.open(path) as image:
        image.load()
        if image.mode.startswith("I"):
            return _scaled(np.asarray(image), 65535).convert("RGB")
        if image.mode == "F":
            return _scaled(np.asarray(image), 1).convert("RGB")
        return _colours(image)


def defect_mask(sample: Sample, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """(h, w), True on the defect pixels of all the sample's masks, prepared as its image but by nearest neighbour.

    A mask that reaches above half of its range is cut there, so that soft edges and JPEG's noise do not count; one that
    does not (0 and 1, or class indices) is cut above zero. A colour counts as its largest channel. The image's label
    never depends on this: a defect may be too thin to survive the resize.

    Raises BenchError where a mask is unreadable, or is not a copy of its image's size or of its proportions.
    """
    found = np.zeros(preprocessing.size, dtype=np.bool_)
    for path in sample.masks:
        with _told(path, "A mask"):
            found |= np.asarray(prepare(Image.fromarray(_marked(path, sample)), preprocessing, resample="nearest"))
    return found


def soft_mask(sample: Sample, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """(h, w), the masks of `defects` in 255ths after a bilinear resize, the highest of several."""
    found = np.zeros(preprocessing.size, dtype=np.uint8)
    for path in sample.masks:
        with _told(path, "A mask"):
            grey = Image.fromarray(_marked(path, sample).astype(np.uint8) * 255)
            found = np.maximum(found, np.asarray(prepare(grey, preprocessing, resample="bilinear")))
    return found


class OriginalResolution:
    """The images of some samples at their own sizes, for metrics there: maps are resized to them, masks never.

    What a crop keeps from the input is judged neither there nor here: of each image only the part that its input shows
    counts, in whole pixels.
    """

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self.samples = tuple(samples)
        self._sizes = [_size(sample.image) for sample in samples]
        self._parts = [visible_box(size, preprocessing) for size in self._sizes]

    def map(self, index: int, found: NDArray[np.float32]) -> NDArray[np.float32]:
        """(h, w) the map of an image, resized bilinearly to the part of the image that its input shows."""
        left, top, right, bottom = self._parts[index]
        return np.asarray(Image.fromarray(found).resize((right - left, bottom - top), Image.Resampling.BILINEAR))

    def mask(self, index: int) -> NDArray[np.bool_]:
        """(h, w) the same part of the image's masks, cut as `defects` cuts them, united and not resized.

        Raises BenchError where a mask is not of its image's size.
        """
        (width, height), sample = self._sizes[index], self.samples[index]
        left, top, right, bottom = self._parts[index]
        found = np.zeros((height, width), dtype=np.bool_)
        for path in sample.masks:
            with _told(path, "A mask at original resolution"):
                marked = _marked(path, sample)
                if marked.shape != found.shape:
                    rows, columns = marked.shape
                    raise ValueError(f"it has {columns} x {rows} pixels, its image {width} x {height}")
                found |= marked
        return found[top:bottom, left:right]


def visible_box(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what the input shows of an image of (width, height), in its own whole pixels."""
    width, height = _resized(size, preprocessing)
    rows, columns = preprocessing.size
    ends = []
    for own, resized, kept in ((size[0], width, columns), (size[1], height, rows)):
        first = (resized - kept) // 2
        start = min(round(first * own / resized), own - 1)
        ends.append((start, max(round((first + kept) * own / resized), start + 1)))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def prepare(image: Image.Image, preprocessing: Preprocessing, resample: Resample | None = None) -> Image.Image:
    """Resizes and cuts as the preprocessing says; `resample` overrides its filter (masks: "nearest").

    Raises ValueError where an image is so long and thin that keeping its aspect would make it huge.
    """
    width, height = _resized(image.size, preprocessing)
    if image.size != (width, height):
        image = image.resize((width, height), _FILTERS[resample or preprocessing.resample])
    rows, columns = preprocessing.size
    if image.size != (columns, rows):
        left, top = (image.width - columns) // 2, (image.height - rows) // 2
        image = image.crop((left, top, left + columns, top + rows))
    return image


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(b, 3, h, w) in 255ths -> the same in [0, 1]."""
    return torch.from_numpy(pixels).float().div_(255)


def _resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) before anything is cut out. Raises ValueError as `prepare` does."""
    width, height = preprocessing.width, preprocessing.height
    if preprocessing.keep_aspect:
        scale = max(width / size[0], height / size[1])
        width, height = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
        if width * height > LARGEST_PIXELS:
            raise ValueError(f"{size[0]} x {size[1]} would become {width} x {height}; set keep_aspect = false")
    return width, height


def _marked(path: Path, sample: Sample) -> NDArray[np.bool_]:
    """(h, w) a mask's file, cut as `defects` says. Raises ValueError where it can't lie over the sample's image."""
    with Image.open(path) as image:
        image.load()
        _fitting(image.size, sample.image)
        plain = image.mode in {"1", "L", "F"} or image.mode.startswith("I")
        values = np.asarray(image) if plain else np.asarray(_colours(image)).max(axis=2)
    half = 32767 if image.mode.startswith("I") else 127
    marked: NDArray[np.bool_] = values > (half if values.max() > half else 0)
    return marked


def _size(path: Path) -> tuple[int, int]:
    with _told(path, "An image"), Image.open(path) as opened:
        return opened.size


def _colours(image: Image.Image) -> Image.Image:
    """RGB without alpha, by way of RGBA for palettes with transparent colours, of which Pillow warns otherwise."""
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _scaled(values: NDArray[np.generic], largest: int) -> Image.Image:
    """Numbers from 0 to `largest` as 8-bit grey; Pillow's own conversion would clip them at 255."""
    if not (values.min() >= 0 and values.max() <= largest):  # NaN is neither
        raise ValueError(f"its values run from {values.min()} to {values.max()}, not from 0 to {largest}")
    return Image.fromarray((values.astype(np.float64) * (255 / largest)).round().astype(np.uint8))


def _fitting(size: tuple[int, int], image: Path) -> None:
    """Raises ValueError where a mask of that (width, height) can't lie over the image, but for rounding to a pixel."""
    width, height = _size(image)
    if abs(size[0] * height - size[1] * width) > max(width, height):
        raise ValueError(f"it has {size[0]} x {size[1]} pixels, its image {width} x {height}")


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """What goes wrong with a file inside the block becomes a BenchError that names it: Pillow may raise anything."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, UnidentifiedImageError):
            reason = "no format is known for its content"
        reason = " ".join(reason.split())  # one line
        raise BenchError(f"{what} must be whole and usable; {path} is not: {reason}. Mend or remove it.") from error
