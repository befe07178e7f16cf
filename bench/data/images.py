"""Images: decode files to RGB, preprocess them and their masks, and hash their contents."""

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

CACHE_BYTES = 2 << 30
"""Decoded images of one task that are kept in memory, in bytes; the rest is decoded again in each pass."""

MAX_PIXELS = 100_000_000
"""Largest number of pixels after the resize. A long, narrow image exceeds it if its aspect ratio is kept."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class FileImages:
    """The preprocessed images of some samples: the input of `Method.fit` and, in batches, of `Method.predict`.

    Implements `bench.method.Images`. Each file is decoded once until the cache of `CACHE_BYTES` is full.
    """

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self.samples = tuple(samples)
        self.preprocessing = preprocessing
        self._cache: dict[int, NDArray[np.uint8]] = {}
        height, width = preprocessing.size
        if min(height, width) < 1 or height > preprocessing.height or width > preprocessing.width:
            raise BenchError(
                f"Preprocessing must give at least 1 x 1 pixels, and a crop must not be larger than the resized image; "
                f"got {preprocessing}. Change height, width or crop."
            )
        self._cache_limit = CACHE_BYTES // (3 * height * width)  # images

    @cached_property
    def digest(self) -> str:
        """Hash of the contents of the files, in their order, and of the preprocessing."""
        return sha256(f"{content_hash(self.samples)}{astuple(self.preprocessing)}".encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """Yield batches; a thread decodes the next one in the meantime.

        Args:
            size: largest number of images per batch.
            order: (n,) indices of the images, which may repeat; None is the order of the samples.

        Returns:
            (b, 3, h, w) float32 RGB in [0, 1] on the CPU.
        """
        indices = range(len(self)) if order is None else order.tolist()
        groups = [indices[start : start + size] for start in range(0, len(indices), size)]
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(self._stack, group) for group in groups[:1]]
            for following in range(1, len(groups) + 1):
                batch = pending.pop().result()
                pending = [pool.submit(self._stack, group) for group in groups[following : following + 1]]
                yield _to_tensor(batch)

    def masks(self) -> list[NDArray[np.bool_]]:
        """Return the mask of each sample, (h, w), True on defect pixels; all False for a sample without a mask."""
        return [defect_mask(sample, self.preprocessing) for sample in self.samples]

    def soft_masks(self) -> list[NDArray[np.uint8]]:
        """Return the bilinearly resized mask of each sample, (h, w) in 0..255, with 1 to 254 along the edges."""
        return [soft_mask(sample, self.preprocessing) for sample in self.samples]

    def _stack(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([self._load(index) for index in indices])  # (b, 3, h, w)

    def _load(self, index: int) -> NDArray[np.uint8]:
        if index in self._cache:
            return self._cache[index]
        path = self.samples[index].image
        with _file_errors(path, "An image"):
            pixels = _decode_and_preprocess(path, self.preprocessing)
        if len(self._cache) < self._cache_limit:
            self._cache[index] = pixels
        return pixels


def content_hash(samples: Sequence[Sample]) -> str:
    """Return a hash of the names and labels of the samples and of every byte of their images and masks."""
    digest = sha256()
    for sample in samples:
        digest.update(f"{sample.id}\n".encode(errors="surrogateescape"))  # a file name need not be UTF-8
        for path in (sample.image, *sample.masks):
            with _file_errors(path, "A file of a data set"):
                digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read(sample: Sample, preprocessing: Preprocessing) -> Tensor:
    """Decode and preprocess the image of one sample, without a cache: (1, 3, h, w) float32 RGB in [0, 1]."""
    with _file_errors(sample.image, "An image"):
        return _to_tensor(_decode_and_preprocess(sample.image, preprocessing)[None])


def _decode_and_preprocess(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return (3, h, w). The channels are moved to the front once, before the image is cached."""
    return np.asarray(preprocess(decode(path), preprocessing)).transpose(2, 0, 1).copy()


def decode(path: Path) -> Image.Image:
    """Return the file as 8-bit RGB.

    Grayscale, palette, RGBA, CMYK and 16-bit files are converted; alpha is dropped.

    Raises:
        BenchError: the file is not an image, is truncated, exceeds Pillow's limit for safe decoding, or has values of
            an unknown range (integers beyond 16 bits, floats outside [0, 1]).
    """
    with _file_errors(path, "An image"), Image.open(path) as image:
        image.load()
        if image.mode.startswith("I"):
            return _to_8_bit(np.asarray(image), 65535).convert("RGB")
        if image.mode == "F":
            return _to_8_bit(np.asarray(image), 1).convert("RGB")
        return _to_rgb(image)


def defect_mask(sample: Sample, preprocessing: Preprocessing) -> NDArray[np.bool_]:
    """Return the union of the masks of a sample, (h, w), True on defect pixels.

    Masks are preprocessed like the image, with nearest-neighbor interpolation. If a mask has values above half of its
    range, it is thresholded there, which ignores soft edges and JPEG noise; otherwise (0 and 1, or class indices) every
    value above zero is a defect. A color mask counts by its largest channel. The label of the image does not depend on
    the mask, because the resize may remove a thin defect.

    Raises:
        BenchError: a mask is unreadable or does not have the aspect ratio of its image.
    """
    union = np.zeros(preprocessing.size, dtype=np.bool_)
    for path in sample.masks:
        with _file_errors(path, "A mask"):
            mask = Image.fromarray(_binary_mask(path, sample))
            union |= np.asarray(preprocess(mask, preprocessing, resample="nearest"))
    return union


def soft_mask(sample: Sample, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the bilinearly resized masks of a sample, (h, w) uint8 in 0..255; the maximum of several masks."""
    maximum = np.zeros(preprocessing.size, dtype=np.uint8)
    for path in sample.masks:
        with _file_errors(path, "A mask"):
            mask = Image.fromarray(_binary_mask(path, sample).astype(np.uint8) * 255)
            maximum = np.maximum(maximum, np.asarray(preprocess(mask, preprocessing, resample="bilinear")))
    return maximum


class OriginalResolution:
    """Maps and masks of some samples at the size of each original image.

    Maps are resized to the original image, masks are not resized. A center crop limits both to the part of the image
    that the input shows, rounded to whole pixels.
    """

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self.samples = tuple(samples)
        self._sizes = [_image_size(sample.image) for sample in samples]
        self._boxes = [visible_box(size, preprocessing) for size in self._sizes]

    def map(self, index: int, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an anomaly map, bilinearly resized to the visible part of the original image."""
        left, top, right, bottom = self._boxes[index]
        return np.asarray(Image.fromarray(anomaly_map).resize((right - left, bottom - top), Image.Resampling.BILINEAR))

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the union of the masks, thresholded as in `defect_mask`, on the visible part of the original image.

        Raises:
            BenchError: a mask does not have the size of its image.
        """
        (width, height), sample = self._sizes[index], self.samples[index]
        left, top, right, bottom = self._boxes[index]
        union = np.zeros((height, width), dtype=np.bool_)
        for path in sample.masks:
            with _file_errors(path, "A mask at original resolution"):
                mask = _binary_mask(path, sample)
                if mask.shape != union.shape:
                    rows, columns = mask.shape
                    raise ValueError(f"it has {columns} x {rows} pixels, its image {width} x {height}")
                union |= mask
        return union[top:bottom, left:right]


def visible_box(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom): the part of an image of `size` (width, height) that the input shows."""
    width, height = _resized_size(size, preprocessing)
    rows, columns = preprocessing.size
    ranges = []
    for original, resized, cropped in ((size[0], width, columns), (size[1], height, rows)):
        first = (resized - cropped) // 2
        start = min(round(first * original / resized), original - 1)
        ranges.append((start, max(round((first + cropped) * original / resized), start + 1)))
    (left, right), (top, bottom) = ranges
    return left, top, right, bottom


def preprocess(image: Image.Image, preprocessing: Preprocessing, resample: Resample | None = None) -> Image.Image:
    """Resize an image and crop its center; `resample` replaces the filter (masks: "nearest").

    Raises:
        ValueError: the resized image would have more than `MAX_PIXELS` pixels.
    """
    width, height = _resized_size(image.size, preprocessing)
    if image.size != (width, height):
        image = image.resize((width, height), _FILTERS[resample or preprocessing.resample])
    rows, columns = preprocessing.size
    if image.size != (columns, rows):
        left, top = (image.width - columns) // 2, (image.height - rows) // 2
        image = image.crop((left, top, left + columns, top + rows))
    return image


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert (b, 3, h, w) from 0..255 to [0, 1]."""
    return torch.from_numpy(pixels).float().div_(255)


def _resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (width, height) before the crop. Raises ValueError as `preprocess` does."""
    width, height = preprocessing.width, preprocessing.height
    if preprocessing.keep_aspect:
        scale = max(width / size[0], height / size[1])
        width, height = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
        if width * height > MAX_PIXELS:
            raise ValueError(f"{size[0]} x {size[1]} would become {width} x {height}; set keep_aspect = false")
    return width, height


def _binary_mask(path: Path, sample: Sample) -> NDArray[np.bool_]:
    """Return a mask file as (h, w), thresholded as in `defect_mask`. Raises ValueError if it does not fit its image."""
    with Image.open(path) as image:
        image.load()
        _check_mask_size(image.size, sample.image)
        has_one_channel = image.mode in {"1", "L", "F"} or image.mode.startswith("I")
        values = np.asarray(image) if has_one_channel else np.asarray(_to_rgb(image)).max(axis=2)
    half = 32767 if image.mode.startswith("I") else 127
    mask: NDArray[np.bool_] = values > (half if values.max() > half else 0)
    return mask


def _image_size(path: Path) -> tuple[int, int]:
    with _file_errors(path, "An image"), Image.open(path) as image:
        return image.size


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, through RGBA for a palette with transparent colors: Pillow warns without that step."""
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _to_8_bit(values: NDArray[np.generic], maximum: int) -> Image.Image:
    """Scale values in 0..maximum to 8-bit grayscale; Pillow's conversion would clip them at 255."""
    if not (values.min() >= 0 and values.max() <= maximum):  # also refuses NaN
        raise ValueError(f"its values run from {values.min()} to {values.max()}, not from 0 to {maximum}")
    return Image.fromarray((values.astype(np.float64) * (255 / maximum)).round().astype(np.uint8))


def _check_mask_size(size: tuple[int, int], image: Path) -> None:
    """Raise ValueError if a mask of `size` (width, height) has another aspect ratio than its image, up to one pixel."""
    width, height = _image_size(image)
    if abs(size[0] * height - size[1] * width) > max(width, height):
        raise ValueError(f"it has {size[0]} x {size[1]} pixels, its image {width} x {height}")


@contextmanager
def _file_errors(path: Path, kind: str) -> Iterator[None]:
    """Convert any exception of the block to a BenchError that names the file; Pillow may raise any type."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, UnidentifiedImageError):
            reason = "its content has no known image format"
        reason = " ".join(reason.split())  # one line
        raise BenchError(f"{kind} must be complete and readable; {path} is not: {reason}. Fix or remove it.") from error
