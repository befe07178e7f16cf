"""The images of a task as tensors: decoded, preprocessed, cached in memory, and hashed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import cached_property
from hashlib import sha256
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.data.content import check_unchanged, content_hash
from bench.data.decoding import decode, file_errors, image_size
from bench.data.masks import SampleMask, read_mask, sample_mask
from bench.data.preprocessing import preprocess, visible_box
from bench.dataset import Sample
from bench.method import Preprocessing

V = TypeVar("V")

CACHE_BYTES = 2 << 30
"""Bytes of the decoded images of one task that stay in memory; the other images are decoded again in each pass."""


class FileImages:
    """The preprocessed images of some samples: the input of `Method.fit` and, in batches, of `Method.predict`.

    Implements `bench.method.Images`. Each file is decoded once until the cache of `CACHE_BYTES` is full.
    """

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self.samples = tuple(samples)
        self.preprocessing = preprocessing
        self._cache: dict[int, NDArray[np.uint8]] = {}
        height, width = preprocessing.size
        self._cache_limit = CACHE_BYTES // (3 * height * width)  # images

    @cached_property
    def content_hash(self) -> str:
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
            for next_group in range(1, len(groups) + 1):
                batch = pending.pop().result()
                pending = [pool.submit(self._stack, group) for group in groups[next_group : next_group + 1]]
                yield _to_tensor(batch)

    def used_levels(self) -> tuple[int, int] | None:
        """Return the smallest and the largest level, 0 to 255, of the cached images; None if none is cached."""
        cached = list(self._cache.values())
        return (int(min(a.min() for a in cached)), int(max(a.max() for a in cached))) if cached else None

    def masks(self) -> list[SampleMask]:
        """Return the mask of each sample at the size of the input; it marks nothing for a sample without a mask."""
        return [sample_mask(sample, self.preprocessing) for sample in self.samples]

    def _stack(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([self._load(index) for index in indices])  # (b, 3, h, w)

    def _load(self, index: int) -> NDArray[np.uint8]:
        if index in self._cache:
            return self._cache[index]
        pixels = _decode_and_preprocess(self.samples[index], self.preprocessing)
        if len(self._cache) < self._cache_limit:
            self._cache[index] = pixels
        return pixels


def load_image(sample: Sample, preprocessing: Preprocessing) -> Tensor:
    """Decode and preprocess the image of one sample, without a cache: (1, 3, h, w) float32 RGB in [0, 1]."""
    return _to_tensor(_decode_and_preprocess(sample, preprocessing)[None])


class ComputedSequence(Sequence[V]):
    """A map-style sequence of one value per image, computed at each access, so that one is in memory at a time."""

    def __init__(self, indices: NDArray[np.intp], compute: Callable[[int], V]) -> None:
        """Store the arguments.

        Args:
            indices: (n,) indices of the images.
            compute: returns the value of an image by its index.
        """
        self._indices = indices
        self._compute = compute

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._indices)

    def __getitem__(self, position: int) -> V:  # type: ignore[override]  # slices are not needed
        """Compute the value of the image at a position of `indices`."""
        return self._compute(int(self._indices[position]))


class OriginalResolution:
    """Maps and masks of some samples at the size of each original image.

    Maps are resized to the original image, masks are not resized. A center crop limits both to the part of the image
    that the input shows, rounded to whole pixels.
    """

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self.samples = tuple(samples)
        self.preprocessing = preprocessing
        self._sizes = [image_size(sample.image, preprocessing) for sample in samples]
        self._boxes = [visible_box(size, preprocessing) for size in self._sizes]

    def regions(self, index: int) -> list[tuple[NDArray[np.bool_], float]]:
        """Return each region that the masks of an image mark on its visible part, with its saturation area in pixels.

        A mask file is one region; its pixel value selects one of the sample's `saturations`. A threshold that is
        not a fraction is at most the area of the region. A region outside the visible part is left out, and one that a
        crop cuts saturates at its visible area.

        Raises:
            BenchError: a mask has a pixel value that `saturations` does not have, or several.
        """
        sample, (left, top, right, bottom) = self.samples[index], self._boxes[index]
        thresholds = {value: (threshold, is_fraction) for value, threshold, is_fraction in sample.saturations}
        regions = []
        for path in sample.masks:
            with file_errors(path, "A mask with saturation areas"):
                mask = read_mask(path, sample.image, self.preprocessing)
                if len(mask.levels) > 1 or not thresholds.keys() >= set(mask.levels):
                    levels, valid_levels = (
                        ", ".join(f"{value:g}" for value in values) for values in (mask.levels, thresholds)
                    )
                    raise ValueError(f"it has the pixel values {levels}; one of {valid_levels} is needed")
            check_unchanged(sample, path)
            visible = mask.defects[top:bottom, left:right]
            if visible.any():
                threshold, is_fraction = thresholds[int(mask.levels[0])]
                area = threshold * mask.defects.sum() if is_fraction else threshold
                regions.append((visible, float(min(area, visible.sum()))))
        return regions

    @cached_property
    def has_pixel_labels(self) -> NDArray[np.bool_]:
        """(n,) False for a defective image whose masks mark nothing on the visible part: its pixels are unknown."""
        labeled = [self.mask(i).any() or not sample.is_anomalous for i, sample in enumerate(self.samples)]
        return np.array(labeled, dtype=np.bool_)

    def map(self, index: int, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an anomaly map, bilinearly resized to the visible part of the original image."""
        left, top, right, bottom = self._boxes[index]
        return np.asarray(Image.fromarray(anomaly_map).resize((right - left, bottom - top), Image.Resampling.BILINEAR))

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the union of the masks on the visible part of the original image.

        Raises:
            BenchError: a mask does not have the size of its image.
        """
        (width, height), sample = self._sizes[index], self.samples[index]
        left, top, right, bottom = self._boxes[index]
        union = np.zeros((height, width), dtype=np.bool_)
        for path in sample.masks:
            with file_errors(path, "A mask at original resolution"):
                mask = read_mask(path, sample.image, self.preprocessing).defects
                if mask.shape != union.shape:
                    rows, columns = mask.shape
                    raise ValueError(f"it has {columns} x {rows} pixels, its image {width} x {height}")
                union |= mask
        check_unchanged(sample, *sample.masks)
        return union[top:bottom, left:right]


def _decode_and_preprocess(sample: Sample, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return (3, h, w). The channels are moved to the front once, before the image is cached."""
    image = decode(sample.image, preprocessing)
    check_unchanged(sample, sample.image)
    with file_errors(sample.image, "An image"):
        return np.asarray(preprocess(image, preprocessing)).transpose(2, 0, 1).copy()


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert (b, 3, h, w) from 0..255 to [0, 1]."""
    return torch.from_numpy(pixels).float().div_(255)
