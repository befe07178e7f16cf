"""InTra's network: a transformer restores one hidden patch of a window of patches from the others.

Sources: [M] recollection of the paper, [JH] jhy12/inpainting-transformer at 1dbbbaf, [UZ] uzl/inpainting-transformer at
d98363d.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError

from .transformer import Attention, Mlp

Skips = Literal["mirrored", "shifted", "none"]
"""Long skip connections: as in a U-Net [M] [UZ]; with an index that is too large by one [JH]; or none."""


class FeatureAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are computed by MLPs, with half of the width (MFSA)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width // 2))
        self.key = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width // 2))
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, width) to the same shape."""
        query, key, value = (
            part(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )  # twice (b, heads, n, width / 2 / heads), and (b, heads, n, width / heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class WindowBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a hidden width of 4 * width."""

    def __init__(self, width: int, heads: int, *, feature_attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = FeatureAttention(width, heads) if feature_attention else Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, width) to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens  # noqa: RET504 - both halves in the same form


class InpaintingTransformer(nn.Module):
    """Restores the hidden patch of each window.

    At JH's size, `InpaintingTransformer(768, 256, width=512, depth=13, heads=8)`, it has 55,552,768 parameters: those
    of JH without a block and a table of positions that JH creates and never uses.
    """

    def __init__(
        self,
        patch_dim: int,
        positions: int,
        *,
        width: int,
        depth: int,
        heads: int,
        feature_attention: bool = True,
        skips: Skips = "mirrored",
    ) -> None:
        """Create the layers with random weights.

        Args:
            patch_dim: values per patch.
            positions: number of learned position vectors: patches of an image, or of a window.
            width: of a token; a multiple of `heads`, with feature attention of 2 * heads.
            depth: blocks.
            heads: of the attention.
            feature_attention: MFSA; False is ordinary self-attention.
            skips: long skip connections.

        Raises:
            BenchError: if `width` does not fit `heads`.
        """
        super().__init__()
        multiple = 2 * heads if feature_attention else heads
        if width % multiple:
            raise BenchError(f"width must be a multiple of {multiple}, got {width}. Change width or heads.")
        self.embedding = nn.Linear(patch_dim, width)
        self.positions = nn.Parameter(torch.randn(positions, width))
        self.inpaint_token = nn.Parameter(torch.randn(width))
        self.blocks = nn.ModuleList(
            WindowBlock(width, heads, feature_attention=feature_attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.prediction = nn.Linear(width, patch_dim)
        self._sources = skip_sources(depth, skips)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map the tokens of windows (b, n, width), one of them hidden, to the hidden patches (b, patch_dim)."""
        outputs: list[Tensor] = []
        for block, source in zip(self.blocks, self._sources, strict=True):
            tokens = block(tokens if source is None else tokens + outputs[source])
            outputs.append(tokens)
        restored: Tensor = self.prediction(self.norm(tokens).mean(dim=1))
        return restored

    def hide(self, embedded: Tensor, hidden: Tensor, places: Tensor) -> Tensor:
        """Replace one token of each window by the inpaint token, and add the positions.

        Args:
            embedded: (b, n, width) of the patches of each window.
            hidden: (b,) index of the hidden patch in its window.
            places: (b, n) index of the position vector of each patch.
        """
        is_hidden = torch.arange(embedded.shape[1], device=hidden.device) == hidden[:, None]  # (b, n)
        tokens = torch.where(is_hidden[:, :, None], self.inpaint_token.to(embedded.dtype), embedded)
        return tokens + self.positions[places]

    def activation_bytes(self, window: int) -> int:
        """Return the bytes in float32 that a forward pass of one window of `window` patches keeps for the gradients."""
        # Per block 23 widths: norms, both MLPs of the queries and keys, values, sums, and twice 4 widths of the mlp.
        return 4 * window * 23 * self.embedding.out_features * len(self.blocks)


def skip_sources(depth: int, skips: Skips) -> list[int | None]:
    """Return for each block the index of the block whose output is added to its input, or None."""
    if skips == "none":
        return [None] * depth
    total, first = (depth - 1, (depth + 1) // 2) if skips == "mirrored" else (depth, depth // 2 + 1)
    return [total - block if block >= first else None for block in range(depth)]


def window_corners(count: int, window: int, *, shifted: bool = False) -> Tensor:
    """Return for each of `count` patches along an axis the first patch of its window, which is centered if possible.

    `shifted` moves the windows by one patch to the start, as far as possible [JH].
    """
    return (torch.arange(count) - window // 2 - int(shifted)).clamp(0, count - window)


def window_patches(corners: Tensor, window: int, columns: int) -> Tensor:
    """Return the patches of windows, (b, window * window) indices in a grid with `columns`, row-major.

    Args:
        corners: (b, 2) row and column of the first patch of each window.
        window: side in patches.
        columns: of the grid.
    """
    side = torch.arange(window, device=corners.device)
    offsets = (side[:, None] * columns + side).flatten()
    return (corners[:, :1] * columns + corners[:, 1:]) + offsets
