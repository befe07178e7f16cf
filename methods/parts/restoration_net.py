"""MFRNet's restoration network, our reading: hybrid transformer blocks in a U, applied once per crossed mask.

Known from the paper (Wang et al., arXiv 2404.13273): masked parts of a feature map are restored by a transformer, in
passes with complementary masks (abstract); its unit is called hybrid transformer block (caption of a figure). We assume
that this is the block of the Defect Transformer by the same authors (arXiv 2207.08319), whose abstract names the three
parts of `HybridBlock`. All else is our reading.

Maps have the shape (b, h, w, c) inside, so an operation on single features is a linear layer without copies.
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

EXPANSION = 4
"""Hidden width of a feed-forward network divided by its width."""


class Depthwise(nn.Conv2d):
    """A 3 x 3 depthwise convolution with zero padding on maps (b, h, w, c)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width)

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, h, w, c) to the same shape."""
        return super().forward(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MultiPoolingAttention(nn.Module):
    """Attention of every feature to the map pooled to several grids at once, so that few keys cover the whole map.

    pools: sides of the grids; a grid that is larger than the map is the map itself. A depthwise convolution per grid is
    added to it, and one LayerNorm is applied to all of them: our choice.
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

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, h, w, c) to the same shape."""
        b, h, w, c = features.shape
        grids = [average_pool(features, min(side, h), min(side, w)) for side in self.pools]
        pooled = [(grid + local(grid)).flatten(1, 2) for grid, local in zip(grids, self.local, strict=True)]
        keys_values = self.key_value(self.norm(torch.cat(pooled, dim=1)))  # (b, s, 2 * c)
        key, value = keys_values.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 2 times (b, heads, s, d)
        query = self.query(features).view(b, h * w, self.heads, -1).transpose(1, 2)  # (b, heads, h * w, d)
        attended = F.scaled_dot_product_attention(query, key, value)  # (b, heads, h * w, d)
        projected: Tensor = self.proj(attended.transpose(1, 2).reshape(b, h, w, c))
        return projected


class ConvolutionalFeedForward(nn.Module):
    """Four times the width and back, with a depthwise convolution before the GELU; without it, a plain MLP."""

    def __init__(self, width: int, *, convolution: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.local = Depthwise(EXPANSION * width) if convolution else nn.Identity()
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, h, w, c) to the same shape."""
        transformed: Tensor = self.fc2(F.gelu(self.local(self.fc1(features))))
        return transformed


class HybridBlock(nn.Module):
    """x + position(x), then x + attention(norm(x)), then x + feed_forward(norm(x)): the order of DefT's abstract.

    head_width: channels of an attention head. Raises BenchError if it does not divide `width`.
    """

    def __init__(self, width: int, head_width: int, pools: Sequence[int], *, convolution: bool = True) -> None:
        super().__init__()
        if width % head_width:
            raise BenchError(
                f"head_width must divide every width, got head_width = {head_width} and width = {width}. "
                "Change one of them."
            )
        self.position = Depthwise(width)
        self.norm1 = nn.LayerNorm(width)
        self.attention = MultiPoolingAttention(width, width // head_width, pools)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = ConvolutionalFeedForward(width, convolution=convolution)

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, h, w, c) to the same shape."""
        features = features + self.position(features)
        features = features + self.attention(self.norm1(features))
        features = features + self.feed_forward(self.norm2(features))
        return features  # noqa: RET504 - all three parts in the same form


class RestorationNet(nn.Module):
    """Restores the parts of a feature map that crossed masks cover."""

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
        """Create the layers with random weights.

        Args:
            channels: number of channels of the features.
            widths: channels of the levels, finest first; each level has half the resolution of the one before. One
                width is a flat stack of blocks without a U.
            depth: number of blocks per level of the encoder.
            decoder_depth: number of blocks per level of the decoder.
            head_width: channels of an attention head.
            pools: sides of the grids of keys.
            convolution: whether the feed-forward network has a depthwise convolution.
            learn_token: False keeps the vector that replaces a masked feature at zero.
        """
        super().__init__()

        def blocks(width: int, count: int) -> list[nn.Module]:
            return [HybridBlock(width, head_width, pools, convolution=convolution) for _ in range(count)]

        decoder_depths = (decoder_depth,) * (len(widths) - 1) + (0,)
        self.sizes = [(width, depth + extra) for width, extra in zip(widths, decoder_depths, strict=True)]
        steps = list(pairwise(widths))  # from each level to the next coarser one
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
        """Restore features (b, c, h, w) with masks (n, h, w), True where a pass masks: (b, c, h, w).

        The masks cover every feature once, and each feature is taken from the pass that masked it: the sum over passes
        of (1 - M) f(M F), where M is 1 where a feature is visible. Stem, norm and head operate on single features, so
        they are computed once outside the passes: the same result at less cost.
        """
        embedded = self.stem(features.permute(0, 2, 3, 1))  # (b, h, w, width)
        is_masked = masks[:, None, :, :, None]  # (n, 1, h, w, 1)
        visible = torch.where(is_masked, self.stem(self.token), embedded)  # (n, b, h, w, width)
        passes = self.restore(visible.flatten(0, 1)).unflatten(0, visible.shape[:2])  # (n, b, h, w, width)
        combined = (passes * is_masked).sum(dim=0)  # (b, h, w, width)
        restored: Tensor = self.head(self.norm(combined))  # (b, h, w, c)
        return restored.permute(0, 3, 1, 2)

    def restore(self, features: Tensor) -> Tensor:
        """Apply one pass between stem and head: (b, h, w, width) to the same shape."""
        skips = []
        for level, down in zip(self.levels, self.downs, strict=False):  # the coarsest level has no down
            features = level(features)
            skips.append(features)
            features = down(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (b, h / 2, w / 2, coarse)
        features = self.levels[-1](features)
        for up, join, skip in zip(reversed(self.ups), reversed(self.joins), reversed(skips), strict=True):
            # First to the finer level's width, then to its grid: both are linear, and this order costs less.
            lifted, size = up(features).permute(0, 3, 1, 2), (skip.shape[1], skip.shape[2])  # (b, fine, h / 2, w / 2)
            lifted = upsample(lifted, size, align_corners=False).permute(0, 2, 3, 1)  # (b, h, w, fine)
            features = join(torch.cat([lifted, skip], dim=3))  # (b, h, w, fine)
        return features

    def estimate_training_memory(self, passes: int, grid: tuple[int, int]) -> int:
        """Return the estimated bytes in float32 of weights, gradients, Adam moments and `passes` passes of one step."""
        n_weights = sum(parameter.numel() for parameter in self.parameters())
        # Each feature saves 20 * width values per block (norms, queries, sums, and 3 * 4 * width inside the
        # feed-forward network), and about 8 * width values between levels.
        n_activations = sum(
            width * (20 * blocks + 8) * math.prod(grid) / 4**level for level, (width, blocks) in enumerate(self.sizes)
        )
        return 4 * (4 * n_weights + int(passes * n_activations))


def average_pool(features: Tensor, rows: int, columns: int) -> Tensor:
    """Average (b, h, w, c) to (b, rows, columns, c): `F.adaptive_avg_pool2d` for this shape.

    As two matrix products, whose gradient is deterministic on a GPU too.
    """
    b, h, w, c = features.shape
    if (h, w) == (rows, columns):
        return features
    by_rows, by_columns = (
        _average_matrix(*sides, features.device, features.dtype) for sides in ((h, rows), (w, columns))
    )
    pooled = by_rows @ features.reshape(b, h, w * c)  # (b, rows, w * c)
    return by_columns @ pooled.view(b, rows, w, c)  # (b, rows, columns, c)


@lru_cache(maxsize=64)
def _average_matrix(n: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (target, n): window i averages from floor(i n / target) to ceil((i + 1) n / target), as PyTorch does."""
    with torch.inference_mode(mode=False):  # cached for later calls, which may record gradients
        index, window = torch.arange(n), torch.arange(target)[:, None]
        inside = (index >= window * n // target) & (index < -(-(window + 1) * n // target))
        return (inside / inside.sum(dim=1, keepdim=True)).to(device, dtype)
