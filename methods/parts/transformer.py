"""Parts of a vision transformer: pre-norm block, fixed positions, and patches cut from a feature map and put back.

The modules inside `Block` have timm's names, so published checkpoints load without renaming.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError


class Attention(nn.Module):
    """Multi-head self-attention with a bias on queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Map (b, n, width) to the same shape, or to (b, n_queries, width): only the first tokens are queries."""
        width = tokens.shape[2]
        if n_queries is None:
            query, key, value = self._split_heads(self.qkv(tokens), 3)  # 3 times (b, heads, n, width / heads)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            (query,) = self._split_heads(F.linear(tokens[:, :n_queries], weight[:width], bias[:width]), 1)
            key, value = self._split_heads(F.linear(tokens, weight[width:], bias[width:]), 2)
        attended = F.scaled_dot_product_attention(query, key, value)  # (b, heads, queries, width / heads)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _split_heads(self, joined: Tensor, parts: int) -> Tensor:
        """Map (b, n, parts * width) to (parts, b, heads, n, width / heads)."""
        return joined.view(*joined.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, width) to the same shape."""
        transformed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return transformed


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a hidden width of 4 * width; no dropout, no drop path.

    Raises BenchError if `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise BenchError(f"heads must divide width, got heads = {heads} and width = {width}. Change one of them.")
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Map (b, n, width) to the same shape, or only the first tokens to (b, n_queries, width), which costs less."""
        tokens = tokens[:, :n_queries] + self.attn(self.norm1(tokens), n_queries)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens  # noqa: RET504 - both halves in the same form


def sincos_pos_embed(width: int, rows: int, columns: int) -> Tensor:
    """Return the fixed 2-D sine and cosine position embeddings, (rows * columns, width), tokens in row-major order.

    The first half of a row encodes the column index, the second half the row index; each half is
    [sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (width / 4)). Source: the code of He et al., Masked Autoencoders,
    CVPR 2022.

    Raises:
        BenchError: if `width` is not a multiple of 4.
    """
    if width % 4:
        raise BenchError(
            f"width must be a multiple of 4 for 2-D position embeddings, got {width}. Use {width // 4 * 4 + 4}."
        )
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]  # 2 times (rows * columns, width / 4)
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def patchify(maps: Tensor, patch: int) -> Tensor:
    """Cut (b, c, h, w) into (b, h/patch * w/patch, patch * patch * c): row-major tokens, channels fastest within each.

    A strided convolution with kernel (width, c, patch, patch) is then a linear layer whose weight is
    `patchify(kernel, patch)[:, 0]`.
    """
    b, c, h, w = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(b, h // patch, patch, w // patch, patch * c)
    return cells.transpose(2, 3).reshape(b, -1, patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, rows: int) -> Tensor:
    """Invert `patchify` for a grid of `rows` rows of tokens: (b, n, patch * patch * c) to (b, c, h, w)."""
    b, n, patch_dim = tokens.shape
    columns, channels = n // rows, patch_dim // patch**2
    cells = tokens.view(b, rows, columns, patch, patch * channels).transpose(2, 3)
    return cells.reshape(b, rows * patch, columns * patch, channels).permute(0, 3, 1, 2)
