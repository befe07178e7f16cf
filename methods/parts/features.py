"""Frozen features: the stages of a backbone joined to one map, and kept for as long as a fit walks over its images."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bench.method import Images, Setup

from .cache import load, save

BUDGET = 2 * 2**30
"""Bytes of frozen features that a fit keeps in memory, or on its GPU."""

WALK = 8
"""Images a pass while features are gathered."""


def fuse(stages: Sequence[Tensor], *, average_pool: bool = False) -> Tensor:
    """Stage maps (b, c_i, h_i, w_i) -> (b, sum of c_i, h_0, w_0), channels last in memory.

    Each stage is resized bilinearly to the first one's grid, corner to corner (align_corners=True). `average_pool` then
    takes the mean of 3 x 3 places, zeros beyond the border counted, so a border holds 2/3 and a corner 4/9 of what it
    would (AMI-Net's code). Both are linear and separable, so each stage costs two small matrix products.
    """
    rows, columns = stages[0].shape[2:]
    return torch.cat([_resized(stage, rows, columns, average_pool) for stage in stages], dim=3).permute(0, 3, 1, 2)


def fused_patches(stages: Sequence[Tensor], patch: int, *, average_pool: bool = False) -> Tensor:
    """`patchify(fuse(stages), patch)` in float32, without the map in between: (b, n, patch * patch * sum of c_i)."""
    b, rows, columns = len(stages[0]), *stages[0].shape[2:]
    grid, channels = (rows // patch, columns // patch), [stage.shape[1] for stage in stages]
    cells = torch.empty(b, *grid, patch, patch, sum(channels), device=stages[0].device)
    for part, stage in zip(cells.split(channels, dim=5), stages, strict=True):
        places = _resized(stage.float(), rows, columns, average_pool)  # (b, rows, columns, c)
        part.copy_(places.reshape(b, grid[0], patch, grid[1], patch, -1).transpose(2, 3))
    return cells.view(b, grid[0] * grid[1], -1)


def _resized(stage: Tensor, rows: int, columns: int, average_pool: bool) -> Tensor:
    b, c, h, w = stage.shape
    places = stage.permute(0, 2, 3, 1)  # (b, h, w, c)
    if (h, w) == (rows, columns) and not average_pool:
        return places
    down = _resampling(h, rows, average_pool, stage.device, stage.dtype)
    across = _resampling(w, columns, average_pool, stage.device, stage.dtype)
    tall = down @ places.reshape(b, h, w * c)  # (b, rows, w * c)
    return across @ tall.view(b, rows, w, c)  # (b, rows, columns, c)


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

    They are kept before the resize, where they are smallest: in a file of `setup.cache`, mapped into memory, where all
    fits find them that share images and backbone; without a folder in memory, if all of them need no more than `budget`
    bytes. Where neither can be, every walk computes them anew: the same answers, more time. On a GPU up to `budget`
    bytes of them lie in its own memory.

    extract: (b, 3, h, w) on the CPU -> the stage maps; it carries images to its device and records no gradient.
    setup: tells that device and the folder of files.  identity: of all that `extract` does; "" keeps them out of files.
    """

    def __init__(
        self,
        extract: Callable[[Tensor], list[Tensor]],
        images: Images,
        *,
        setup: Setup,
        identity: str = "",
        budget: int = BUDGET,
    ) -> None:
        self._extract, self._images, self._budget = extract, images, budget
        self._device = setup.device
        self._folder = setup.cache if identity else None
        self._identity = f"{identity} {self._device.type} torch {torch.__version__}"
        self._kept: list[Tensor] | None = None
        self._asked = False

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[list[Tensor]]:
        """The stage maps, each (b, c, h, w) with b <= size, of the images in the given order; None is file order."""
        if not self._asked:
            self._kept, self._asked = self._found(), True
        if self._kept is None:
            yield from map(self._extract, self._images.batches(size, order))
            return
        indices = torch.arange(len(self._images)) if order is None else order
        for chosen in torch.split(indices.to(self._kept[0].device), size):
            yield [stage.index_select(0, chosen).to(self._device, non_blocking=True) for stage in self._kept]

    def _found(self) -> list[Tensor] | None:
        """All stage maps, channels last in memory, or None where there is no room for them."""
        kept = self._from_file() if self._folder else None
        if kept is None:
            return self._gathered()
        kept = [stage.permute(0, 3, 1, 2) for stage in kept]
        fits = sum(stage.nbytes for stage in kept) <= self._budget
        return [stage.to(self._device) for stage in kept] if fits else kept

    def _from_file(self) -> list[Tensor] | None:
        """The stage maps, each (n, h, w, c); written first where no file holds them."""
        assert self._folder is not None
        key = f"{self._images.digest} {self._identity}"
        kept = load(self._folder, key)
        if kept is None:
            walk = ([stage.permute(0, 2, 3, 1) for stage in stages] for stages in self._walk())
            kept = save(self._folder, key, len(self._images), walk)
        return kept

    def _gathered(self) -> list[Tensor] | None:
        kept: list[Tensor] = []
        start = 0
        for stages in self._walk():
            if not kept:
                image_bytes = sum(stage[0].numel() * stage.element_size() for stage in stages)
                if image_bytes * len(self._images) > self._budget:
                    return None
                shapes = [(len(self._images), *stage.shape[1:]) for stage in stages]
                kept = [
                    torch.empty(shape, dtype=stage.dtype, device=stage.device, memory_format=torch.channels_last)
                    for shape, stage in zip(shapes, stages, strict=True)
                ]
            for whole, stage in zip(kept, stages, strict=True):
                whole[start : start + len(stage)] = stage
            start += len(stages[0])
        return kept

    def _walk(self) -> Iterator[list[Tensor]]:
        """In file order and in batches of one size, so that no setting of a fit moves a bit of what is kept."""
        return map(self._extract, self._images.batches(WALK))
