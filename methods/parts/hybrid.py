"""MFRNet's restoration network, as we read it: hybrid transformer blocks in a U, run once for each crossed mask.

What the paper (Wang et al., arXiv 2404.13273) is known to say: hidden parts of a feature map are restored by a
transformer, in passes whose masks complement one another [A]; its unit is called a hybrid transformer block [F]. We
take that for the block of the same authors' Defect Transformer (arXiv 2207.08319), whose abstract names the three parts
of `HybridBlock`. Everything else here is our reading [I].

Inside, maps lie as (b, h, w, c): what works on one place is then a linear layer, and nothing is copied for it.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError

from .maps import upsample

EXPANSION = 4  # times the width inside a feed-forward network


class Depthwise(nn.Conv2d):
    """A 3 x 3 convolution of each channel by itself, zeros beyond the border, on maps that lie as (b, h, w, c)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width)

    def forward(self, maps: Tensor) -> Tensor:
        """(b, h, w, c) -> the same shape."""
        return super().forward(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MultiPoolingAttention(nn.Module):
    """Every place asks; what answers is the map averaged down to several grids at once, so few keys see all of it.

    pools: sides of these grids; a grid larger than the map is the map itself. Each gets a depthwise convolution of its
    own, added to it, and all of them one LayerNorm [I].
    """

    def __init__(self, width: int, heads: int, pools: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.pools = tuple(pools)
        self.local = nn.ModuleList(Depthwise(width) for _ in self.pools)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        """(b, h, w, c) -> the same shape."""
        b, h, w, c = maps.shape
        pooled = [average_pool(maps, min(side, h), min(side, w)) for side in self.pools]
        seen = [(grid + local(grid)).flatten(1, 2) for grid, local in zip(pooled, self.local, strict=True)]
        keys_values = self.key_value(self.norm(torch.cat(seen, dim=1)))  # (b, s, 2 * c)
        key, value = keys_values.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 2 times (b, heads, s, d)
        query = self.query(maps).view(b, h * w, self.heads, -1).transpose(1, 2)  # (b, heads, h * w, d)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, h, w, c))
        return projected


class ConvolutionalFeedForward(nn.Module):
    """To four times the width and back, with a depthwise convolution before the GELU; without it, a plain MLP."""

    def __init__(self, width: int, *, convolution: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.local = Depthwise(EXPANSION * width) if convolution else nn.Identity()
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, maps: Tensor) -> Tensor:
        """(b, h, w, c) -> the same shape."""
        transformed: Tensor = self.fc2(F.gelu(self.local(self.fc1(maps))))
        return transformed


class HybridBlock(nn.Module):
    """x + position(x), then x + attention(norm(x)), then x + feed_forward(norm(x)): the order of DefT's abstract.

    head_width: channels of an attention head. Raises BenchError where it does not divide `width`.
    """

    def __init__(self, width: int, head_width: int, pools: Sequence[int], *, convolution: bool = True) -> None:
        super().__init__()
        if width % head_width:
            raise BenchError(
                f"head_width must divide every width; {head_width} does not divide {width}. Change one of the two."
            )
        self.position = Depthwise(width)
        self.norm1 = nn.LayerNorm(width)
        self.attention = MultiPoolingAttention(width, width // head_width, pools)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = ConvolutionalFeedForward(width, convolution=convolution)

    def forward(self, maps: Tensor) -> Tensor:
        """(b, h, w, c) -> the same shape."""
        maps = maps + self.position(maps)
        maps = maps + self.attention(self.norm1(maps))
        maps = maps + self.feed_forward(self.norm2(maps))
        return maps  # noqa: RET504 - the three parts read alike


class RestorationNet(nn.Module):
    """Restores what crossed masks hide of a feature map.

    channels: of the feature map.
    widths: one a level, finest first; each level has half the places a side of the one before. One width is a flat
    stack of blocks without a U.
    depth: blocks a level on the way down.  decoder_depth: on the way up.
    head_width, pools, convolution: of the blocks.
    learn_token: False keeps the feature vector that stands for a hidden place at zero.
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int],
        depth: int,
        decoder_depth: int,
        head_width: int,
        pools: Sequence[int],
        convolution: bool = True,
        learn_token: bool = False,
    ) -> None:
        super().__init__()

        def blocks(width: int, count: int) -> list[nn.Module]:
            return [HybridBlock(width, head_width, pools, convolution=convolution) for _ in range(count)]

        on_the_way_up = (decoder_depth,) * (len(widths) - 1) + (0,)
        self.sizes = [(width, depth + up) for width, up in zip(widths, on_the_way_up, strict=True)]  # blocks a level
        steps = list(pairwise(widths))  # from each level to the next coarser
        self.token = nn.Parameter(torch.zeros(channels), requires_grad=learn_token)
        self.stem = nn.Linear(channels, widths[0])
        self.levels = nn.ModuleList(nn.Sequential(*blocks(width, depth)) for width in widths)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in steps)
        self.ups = nn.ModuleList(nn.Linear(coarse, fine) for fine, coarse in steps)
        self.joins = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * fine, fine), nn.GELU(), *blocks(fine, decoder_depth)) for fine, _ in steps
        )
        self.norm = nn.LayerNorm(widths[0])
        self.head = nn.Linear(widths[0], channels)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Features (b, c, h, w), masks (n, h, w) that are True where a pass hides -> restored features (b, c, h, w).

        The masks hide every place once, and each place is taken from the pass that hid it: the sum over passes of
        (1 - M) f(M F), where M is 1 on what is visible. Stem, norm and head work on one place at a time, so they stand
        outside the passes and are computed once: the same answer, for less.
        """
        embedded = self.stem(features.permute(0, 2, 3, 1))  # (b, h, w, width)
        hides = masks[:, None, :, :, None]  # (n, 1, h, w, 1)
        seen = torch.where(hides, self.stem(self.token), embedded)  # (n, b, h, w, width)
        passes = self.restore(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        own = (passes * hides).sum(dim=0)  # (b, h, w, width)
        restored: Tensor = self.head(self.norm(own))  # (b, h, w, c)
        return restored.permute(0, 3, 1, 2)

    def restore(self, maps: Tensor) -> Tensor:
        """One pass between stem and head: (b, h, w, width) -> the same shape."""
        skips = []
        for level, down in zip(self.levels, self.downs, strict=False):  # the coarsest level has no way further down
            maps = level(maps)
            skips.append(maps)
            maps = down(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (b, h / 2, w / 2, coarse)
        maps = self.levels[-1](maps)
        for up, join, skip in zip(reversed(self.ups), reversed(self.joins), reversed(skips), strict=True):
            # First to the finer level's width, then to its grid: both are linear, and this order is the cheaper one.
            lifted, size = up(maps).permute(0, 3, 1, 2), (skip.shape[1], skip.shape[2])  # (b, fine, h / 2, w / 2)
            lifted = upsample(lifted, size, align_corners=False).permute(0, 2, 3, 1)  # (b, h, w, fine)
            maps = join(torch.cat([lifted, skip], dim=3))  # (b, h, w, fine)
        return maps

    def training_bytes(self, passes: int, grid: tuple[int, int]) -> int:
        """An estimate of what weights, gradients, both moments and so many passes of one step need in float32."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        # Of each place 20 widths a block (norms, queries, sums, and thrice the four widths inside the feed-forward
        # network), and some 8 to come from the next level and go there.
        remembered = sum(
            width * (20 * blocks + 8) * math.prod(grid) / 4**level for level, (width, blocks) in enumerate(self.sizes)
        )
        return 4 * (4 * weights + int(passes * remembered))


def average_pool(maps: Tensor, rows: int, columns: int) -> Tensor:
    """(b, h, w, c) -> (b, rows, columns, c), each the mean of its window: `F.adaptive_avg_pool2d`, in this layout.

    As two matrix products, whose gradient is the same at every run on a GPU too.
    """
    b, h, w, c = maps.shape
    if (h, w) == (rows, columns):
        return maps
    down, across = (_averaging(*sides, maps.device, maps.dtype) for sides in ((h, rows), (w, columns)))
    low = down @ maps.reshape(b, h, w * c)  # (b, rows, w * c)
    return across @ low.view(b, rows, w, c)  # (b, rows, columns, c)


@lru_cache(maxsize=64)
def _averaging(n: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(target, n): window i averages the places from floor(i n / target) to ceil((i + 1) n / target), as PyTorch's."""
    with torch.inference_mode(mode=False):  # kept for later calls, which may record gradients
        place, window = torch.arange(n), torch.arange(target)[:, None]
        inside = (place >= window * n // target) & (place < -(-(window + 1) * n // target))
        return (inside / inside.sum(dim=1, keepdim=True)).to(device, dtype)
