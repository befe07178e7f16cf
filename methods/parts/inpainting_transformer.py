"""InTra's network: a transformer restores one masked patch of a window of patches from the others.

Sources: [M] from memory, not verified; [JH] jhy12/inpainting-transformer at 1dbbbaf; [UZ] uzl/inpainting-transformer at
d98363d.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError

from .transformer import Attention, Mlp

Skips = Literal["mirrored", "off_by_one", "none"]
"""Long skip connections: "mirrored" as in a U-Net [M] [UZ]; "off_by_one": source index one too large [JH]; "none"."""


class FeatureAttention(nn.Module):
    """Multi-head feature self-attention (MFSA): queries and keys come from MLPs with output width / 2."""

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
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # query and key (b, heads, n, width / 2 / heads), value (b, heads, n, width / heads)
        attended = F.scaled_dot_product_attention(query, key, value)  # (b, heads, n, width / heads)
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
    """Restores the masked patch of each window.

    At JH's size, `InpaintingTransformer(768, 256, width=512, depth=13, heads=8)`, it has 55,552,768 parameters: as
    JH's network, minus one block and one positional embedding that JH creates but never uses.
    """

    def __init__(
        self,
        patch_dim: int,
        n_positions: int,
        *,
        width: int,
        depth: int,
        heads: int,
        feature_attention: bool = True,
        skips: Skips = "mirrored",
    ) -> None:
        """Create the layers with random weights.

        Args:
            patch_dim: number of values per patch.
            n_positions: number of learned position embeddings: patches of an image, or of a window.
            width: embedding dimension; must be a multiple of `heads` (of 2 * heads with feature attention).
            depth: number of blocks.
            heads: number of attention heads.
            feature_attention: MFSA; False is ordinary self-attention.
            skips: long skip connections.

        Raises:
            BenchError: if `width` is not such a multiple.
        """
        super().__init__()
        multiple = 2 * heads if feature_attention else heads
        if width % multiple:
            raise BenchError(f"width must be a multiple of {multiple}, got {width}. Change width or heads.")
        self.embedding = nn.Linear(patch_dim, width)
        self.pos_embed = nn.Parameter(torch.randn(n_positions, width))
        self.inpaint_token = nn.Parameter(torch.randn(width))
        self.blocks = nn.ModuleList(
            WindowBlock(width, heads, feature_attention=feature_attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.prediction = nn.Linear(width, patch_dim)
        self._sources = skip_sources(depth, skips)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map the tokens of windows (b, n, width), one of them masked, to the masked patches (b, patch_dim)."""
        outputs: list[Tensor] = []
        for block, source in zip(self.blocks, self._sources, strict=True):
            tokens = block(tokens if source is None else tokens + outputs[source])
            outputs.append(tokens)
        restored: Tensor = self.prediction(self.norm(tokens).mean(dim=1))
        return restored

    def mask_tokens(self, tokens: Tensor, masked_index: Tensor, position_index: Tensor) -> Tensor:
        """Replace one token of each window by the inpaint token, and add the position embeddings.

        Args:
            tokens: (b, n, width) embedded patches of each window.
            masked_index: (b,) index of the masked patch in its window.
            position_index: (b, n) index of the position embedding of each patch.
        """
        is_masked = torch.arange(tokens.shape[1], device=masked_index.device) == masked_index[:, None]  # (b, n)
        tokens = torch.where(is_masked[:, :, None], self.inpaint_token.to(tokens.dtype), tokens)
        return tokens + self.pos_embed[position_index]

    def activation_bytes(self, window: int) -> int:
        """Return the float32 bytes that a forward pass of a window of `window` patches saves for the backward pass."""
        # Each block saves 23 * width values per token: norms, MLPs of queries and keys, values, sums, and 2 * 4 * width
        # values inside the MLP.
        return 4 * window * 23 * self.embedding.out_features * len(self.blocks)


def skip_sources(depth: int, skips: Skips) -> list[int | None]:
    """Return for each block the index of the block whose output is added to its input, or None."""
    if skips == "none":
        return [None] * depth
    total, first = (depth - 1, (depth + 1) // 2) if skips == "mirrored" else (depth, depth // 2 + 1)
    return [total - block if block >= first else None for block in range(depth)]


def window_starts(count: int, window: int, *, shifted: bool = False) -> Tensor:
    """Return for each of `count` patches along an axis the first patch of its window; windows are centered if possible.

    `shifted` moves the windows by one patch to the start, as far as possible [JH].
    """
    return (torch.arange(count) - window // 2 - int(shifted)).clamp(0, count - window)


def window_patches(top_left: Tensor, window: int, columns: int) -> Tensor:
    """Return the patches of windows, (b, window * window) indices in a grid with `columns`, row-major.

    Args:
        top_left: (b, 2) row and column of the first patch of each window.
        window: side of a window in patches.
        columns: number of columns of the patch grid.
    """
    side = torch.arange(window, device=top_left.device)
    offsets = (side[:, None] * columns + side).flatten()
    return (top_left[:, :1] * columns + top_left[:, 1:]) + offsets
