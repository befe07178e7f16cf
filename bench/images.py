"""Samples become tensors: decode, resize, cut, and the same for their masks."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.dataset import Sample
from bench.errors import BenchError
from bench.method import Preparation, Resample

KEPT_BYTES = 2 << 30
"""Decoded images are kept in memory, as bytes, up to so much a task; the rest is decoded again at each walk."""

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

    def __init__(self, samples: Sequence[Sample], preparation: Preparation) -> None:
        self.samples = tuple(samples)
        self.preparation = preparation
        self._kept: dict[int, NDArray[np.uint8]] = {}
        height, width = preparation.size
        self._room = KEPT_BYTES // (3 * height * width)

    @property
    def digest(self) -> str:
        """Of the files' contents, in order, and of their preparation."""
        return sha256(f"{contents(self.samples)}{astuple(self.preparation)}".encode()).hexdigest()

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.samples)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """(b, 3, h, w) RGB in [0, 1], b <= size; decoding runs ahead in threads while a batch is worked on."""
        indices = range(len(self)) if order is None else order.tolist()
        groups = [indices[start : start + size] for start in range(0, len(indices), size)]
        with ThreadPoolExecutor(2) as pool:
            ahead = pool.submit(self._stack, groups[0]) if groups else None
            for following in [*groups[1:], None]:
                assert ahead is not None
                batch = ahead.result()
                ahead = pool.submit(self._stack, following) if following is not None else None
                yield torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float().div_(255)

    def masks(self) -> list[NDArray[np.bool_]]:
        """(h, w) a sample, True on defect pixels; all False where the sample has no mask."""
        return [defects(sample, self.preparation) for sample in self.samples]

    def _stack(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([self._pixels(index) for index in indices])  # (b, h, w, 3)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        if index in self._kept:
            return self._kept[index]
        pixels = np.asarray(prepare(decode(self.samples[index].image), self.preparation))
        if len(self._kept) < self._room:
            self._kept[index] = pixels
        return pixels


def contents(samples: Sequence[Sample]) -> str:
    """A hash of which files the samples name and of every byte in them, images and masks."""
    whole = sha256()
    for sample in samples:
        whole.update(f"{sample.category}/{sample.split}/{sample.defect}/{sample.image.name}\n".encode())
        for path in (sample.image, *sample.masks):
            try:
                whole.update(sha256(path.read_bytes()).digest())
            except OSError as error:
                raise BenchError(f"A data set's files must be readable; {path} is not ({error.strerror}).") from error
    return whole.hexdigest()


def decode(path: Path) -> Image.Image:
    """The file as 8-bit RGB. Grey, palette, RGBA, CMYK and 16-bit files are converted; alpha is dropped.

    Raises BenchError where the file is no image, is cut off, or is larger than Pillow's limit for safe decoding.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _eight_bit(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BenchError(f"An image must be a whole, readable file; {path} is not ({error}). Mend it.") from error


def defects(sample: Sample, preparation: Preparation) -> NDArray[np.bool_]:
    """(h, w), True on the defect pixels of all the sample's masks, prepared as its image but by nearest neighbour.

    A mask that reaches above half of its range is cut there; one that does not (0 and 1, or class indices) is cut
    above zero. The image's label never depends on this: a defect may be too thin to survive the resize.
    """
    found = np.zeros(preparation.size, dtype=np.bool_)
    for path in sample.masks:
        try:
            with Image.open(path) as image:
                image.load()
                values = np.asarray(_eight_bit(image).convert("RGB").convert("L"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BenchError(f"A mask must be a whole, readable file; {path} is not ({error}). Mend it.") from error
        binary = values > (127 if values.max(initial=0) > 127 else 0)
        found |= np.asarray(prepare(Image.fromarray(binary), preparation, resample="nearest"))
    return found


def prepare(image: Image.Image, preparation: Preparation, resample: Resample | None = None) -> Image.Image:
    """Resizes and cuts as the preparation says; `resample` overrides its filter (masks: "nearest")."""
    width, height = preparation.width, preparation.height
    if preparation.keep_aspect:
        scale = max(width / image.width, height / image.height)
        width, height = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if image.size != (width, height):
        image = image.resize((width, height), _FILTERS[resample or preparation.resample])
    rows, columns = preparation.size
    if image.size != (columns, rows):
        left, top = (image.width - columns) // 2, (image.height - rows) // 2
        image = image.crop((left, top, left + columns, top + rows))
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit and 32-bit integer images scaled to 8 bits; Pillow's own conversion would clip them at 255."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.clip(np.asarray(image) * 255, 0, 255).round().astype(np.uint8))
    return image
