"""Frozen features: the stages of a backbone joined to one map, and kept for as long as a fit walks over its images."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bench.method import Images

BUDGET = 2 * 2**30
"""Bytes of frozen features that a fit keeps; beyond it they are computed anew at every walk."""


def fuse(stages: Sequence[Tensor], *, average_pool: bool = False) -> Tensor:
    """Stage maps (b, c_i, h_i, w_i) -> (b, sum of c_i, h_0, w_0), channels last in memory.

    Each stage is resized bilinearly to the first one's grid, corner to corner (align_corners=True). `average_pool` then
    takes the mean of 3 x 3 places, zeros beyond the border counted, so a border holds 2/3 and a corner 4/9 of what it
    would (AMI-Net's code). Both are linear and separable, so each stage costs two small matrix products.
    """
    rows, columns = stages[0].shape[2:]
    return torch.cat([_resized(stage, rows, columns, average_pool) for stage in stages], dim=3).permute(0, 3, 1, 2)


def _resized(stage: Tensor, rows: int, columns: int, average_pool: bool) -> Tensor:
    b, c, h, w = stage.shape
    places = stage.permute(0, 2, 3, 1)                                                  # (b, h, w, c)
    if (h, w) == (rows, columns) and not average_pool:
        return places
    down = _resampling(h, rows, average_pool, stage.device, stage.dtype)
    across = _resampling(w, columns, average_pool, stage.device, stage.dtype)
    tall = down @ places.reshape(b, h, w * c)                                           # (b, rows, w * c)
    return across @ tall.view(b, rows, w, c)                                            # (b, rows, columns, c)


@lru_cache(maxsize=64)
def _resampling(source: int, target: int, average_pool: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(target, source): what one axis of the resize, and of the pool after it, does to a column of values."""
    with torch.inference_mode(mode=False):  # kept for later calls, which may record gradients
        step = (source - 1) / max(target - 1, 1)
        reach = torch.arange(target, dtype=torch.float64)[:, None] * step - torch.arange(source, dtype=torch.float64)
        matrix = (1 - reach.abs()).clamp(min=0)
        if average_pool:
            place = torch.arange(target)
            matrix = ((place[:, None] - place).abs() <= 1).double() / 3 @ matrix
        return matrix.to(device, dtype)


class FrozenFeatures:
    """The stage maps of the images that a fit walks over, computed once and kept as the backbone gave them.

    They are kept before the resize, where they are smallest, on the device that computed them. Where all of them would
    need more than `budget` bytes nothing is kept and every walk computes them anew: the same answers, more time.

    extract: (b, 3, h, w) on the CPU -> the stage maps; it carries images to its device and records no gradient.
    """

    def __init__(self, extract: Callable[[Tensor], list[Tensor]], images: Images, *, budget: int = BUDGET) -> None:
        self._extract = extract
        self._images = images
        self._kept: list[Tensor] | None = None
        self._fits = True
        self._budget = budget

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[list[Tensor]]:
        """The stage maps, each (b, c, h, w) with b <= size, of the images in the given order; None is file order."""
        if self._kept is None and self._fits:
            self._keep(size)
        if self._kept is None:
            yield from map(self._extract, self._images.batches(size, order))
            return
        indices = torch.arange(len(self._images)) if order is None else order
        for chosen in torch.split(indices.to(self._kept[0].device), size):
            yield [stage.index_select(0, chosen) for stage in self._kept]

    def _keep(self, size: int) -> None:
        start = 0
        for images in self._images.batches(size):
            stages = self._extract(images)
            if self._kept is None:
                image_bytes = sum(stage[0].numel() * stage.element_size() for stage in stages)
                self._fits = image_bytes * len(self._images) <= self._budget
                if not self._fits:
                    return
                self._kept = [stage.new_empty(len(self._images), *stage.shape[1:]) for stage in stages]
            for kept, stage in zip(self._kept, stages, strict=True):
                kept[start : start + len(images)] = stage
            start += len(images)
