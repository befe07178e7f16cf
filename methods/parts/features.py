"""Features of a frozen backbone: the stages fused to one map, and cached for the iterations of a fit."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bench.method import Images, Setup

from .cache import load, save

MEMORY_BUDGET = 2 * 2**30
"""Bytes of features that a fit keeps in memory, or on its GPU."""

EXTRACTION_BATCH = 8
"""Images per batch while features are computed for the cache."""


def fuse(stages: Sequence[Tensor], *, average_pool: bool = False) -> Tensor:
    """Concatenate the features of stages (b, c_i, h_i, w_i) to (b, sum of c_i, h_0, w_0), channels last in memory.

    Each stage is resized bilinearly to the grid of the first one (align_corners=True). `average_pool` then takes the
    mean of 3 x 3 features including zero padding, so a border is scaled by 2/3 and a corner by 4/9 (AMI-Net's code).
    Both operations are linear and separable, so each stage costs two small matrix products.
    """
    rows, columns = stages[0].shape[2:]
    return torch.cat([_resize(stage, rows, columns, average_pool) for stage in stages], dim=3).permute(0, 3, 1, 2)


def fused_patches(stages: Sequence[Tensor], patch: int, *, average_pool: bool = False) -> Tensor:
    """Return `patchify(fuse(stages), patch)` in float32 without the fused map: (b, n, patch * patch * sum of c_i)."""
    b, rows, columns = len(stages[0]), *stages[0].shape[2:]
    grid, channels = (rows // patch, columns // patch), [stage.shape[1] for stage in stages]
    cells = torch.empty(b, *grid, patch, patch, sum(channels), device=stages[0].device)
    for part, stage in zip(cells.split(channels, dim=5), stages, strict=True):
        resized = _resize(stage.float(), rows, columns, average_pool)  # (b, rows, columns, c)
        part.copy_(resized.reshape(b, grid[0], patch, grid[1], patch, -1).transpose(2, 3))
    return cells.view(b, grid[0] * grid[1], -1)


def _resize(stage: Tensor, rows: int, columns: int, average_pool: bool) -> Tensor:
    b, c, h, w = stage.shape
    features = stage.permute(0, 2, 3, 1)  # (b, h, w, c)
    if (h, w) == (rows, columns) and not average_pool:
        return features
    by_rows = _resize_matrix(h, rows, average_pool, stage.device, stage.dtype)
    by_columns = _resize_matrix(w, columns, average_pool, stage.device, stage.dtype)
    resized = by_rows @ features.reshape(b, h, w * c)  # (b, rows, w * c)
    return by_columns @ resized.view(b, rows, w, c)  # (b, rows, columns, c)


@lru_cache(maxsize=64)
def _resize_matrix(source: int, target: int, average_pool: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (target, source): the resize and the average pool along one axis."""
    with torch.inference_mode(mode=False):  # cached for later calls, which may record gradients
        step = (source - 1) / max(target - 1, 1)
        offset = torch.arange(target, dtype=torch.float64)[:, None] * step - torch.arange(source, dtype=torch.float64)
        matrix = (1 - offset.abs()).clamp(min=0)
        if average_pool:
            index = torch.arange(target)
            matrix = ((index[:, None] - index).abs() <= 1).double() / 3 @ matrix
        return matrix.to(device, dtype)


class FrozenFeatures:
    """The features of the training images per stage, computed once and cached as the backbone returned them.

    They are cached before the resize, when they are smallest: in a file in `setup.cache`, mapped into memory and shared
    by all fits with the same images and backbone; without that folder in memory, if all of them need at most `budget`
    bytes. If neither is possible, each iteration computes them again: the same values, more time. On a GPU up to
    `budget` bytes of them are in its own memory.
    """

    def __init__(
        self,
        extract: Callable[[Tensor], list[Tensor]],
        images: Images,
        *,
        setup: Setup,
        identity: str = "",
        budget: int = MEMORY_BUDGET,
    ) -> None:
        """Store the arguments; features are computed in the first call of `batches`.

        Args:
            extract: function from (b, 3, h, w) on the CPU to the features of each stage on the device, without
                gradients.
            images: the training images.
            setup: setup with the device and the folder of cache files.
            identity: key of the result of `extract` in cache files; "" uses no cache files.
            budget: maximum bytes of features in memory, or on the GPU.
        """
        self._extract, self._images, self._budget = extract, images, budget
        self._device = setup.device
        self._folder = setup.cache if identity else None
        self._identity = f"{identity} {self._device.type} torch {torch.__version__}"
        self._cached: list[Tensor] | None = None
        self._is_loaded = False

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Yield the features of each stage, (b, c, h, w) with b <= size, of the images in `order`; None: file order."""
        if not self._is_loaded:
            self._cached, self._is_loaded = self._load_or_compute(), True
        if self._cached is None:
            yield from map(self._extract, self._images.batches(size, order))
            return
        indices = torch.arange(len(self._images)) if order is None else order
        for batch in torch.split(indices.to(self._cached[0].device), size):
            yield [stage.index_select(0, batch).to(self._device, non_blocking=True) for stage in self._cached]

    def _load_or_compute(self) -> list[Tensor] | None:
        """Return the features of all images, channels last in memory, or None if they are too large for both caches."""
        stages = self._load_or_write_file() if self._folder else None
        if stages is None:
            return self._compute_in_memory()
        stages = [stage.permute(0, 3, 1, 2) for stage in stages]
        fits = sum(stage.nbytes for stage in stages) <= self._budget
        return [stage.to(self._device) for stage in stages] if fits else stages

    def _load_or_write_file(self) -> list[Tensor] | None:
        """Return the features of each stage, (n, h, w, c); if there is no file with them, it is written first."""
        assert self._folder is not None
        key = f"{self._images.content_hash} {self._identity}"
        cached = load(self._folder, key)
        if cached is None:
            batches = ([stage.permute(0, 2, 3, 1) for stage in stages] for stages in self._extract_all())
            cached = save(self._folder, key, len(self._images), batches)
        return cached

    def _compute_in_memory(self) -> list[Tensor] | None:
        cached: list[Tensor] = []
        start = 0
        for stages in self._extract_all():
            if not cached:
                image_bytes = sum(stage[0].numel() * stage.element_size() for stage in stages)
                if image_bytes * len(self._images) > self._budget:
                    return None
                shapes = [(len(self._images), *stage.shape[1:]) for stage in stages]
                cached = [
                    torch.empty(shape, dtype=stage.dtype, device=stage.device, memory_format=torch.channels_last)
                    for shape, stage in zip(shapes, stages, strict=True)
                ]
            for whole, stage in zip(cached, stages, strict=True):
                whole[start : start + len(stage)] = stage
            start += len(stages[0])
        return cached

    def _extract_all(self) -> Iterator[list[Tensor]]:
        """Yield features in file order and in batches of one size, so they do not depend on the settings of a fit."""
        return map(self._extract, self._images.batches(EXTRACTION_BATCH))
