"""The vision transformer's shared pieces: the pre-norm block, fixed positions, and tokens cut from a map and put back.

The modules inside `Block` are named as timm names them, so that published checkpoints load key by key.
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

    def forward(self, tokens: Tensor, asking: int | None = None) -> Tensor:
        """(b, n, width) -> the same shape; of the first `asking` tokens alone, (b, asking, width)."""
        width = tokens.shape[2]
        if asking is None:
            query, key, value = self._headed(self.qkv(tokens), 3)  # 3 times (b, heads, n, width / heads)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            (query,) = self._headed(F.linear(tokens[:, :asking], weight[:width], bias[:width]), 1)
            key, value = self._headed(F.linear(tokens, weight[width:], bias[width:]), 2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def _headed(self, joined: Tensor, parts: int) -> Tensor:
        """(b, n, parts * width) -> (parts, b, heads, n, width / heads)."""
        return joined.view(*joined.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, width) -> the same shape."""
        transformed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return transformed


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with four times the width inside; neither dropout nor drop path.

    Raises BenchError where `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise BenchError(f"heads must divide width; {heads} does not divide {width}. Change one of the two.")
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor, asking: int | None = None) -> Tensor:
        """(b, n, width) -> the same shape; of the first `asking` tokens alone, (b, asking, width), for less."""
        tokens = tokens[:, :asking] + self.attn(self.norm1(tokens), asking)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens  # noqa: RET504 - the two halves read alike


def positions(width: int, rows: int, columns: int) -> Tensor:
    """The fixed 2-D sine and cosine table, (rows * columns, width), tokens in row-major order.

    The first half of a row encodes the column index, the second half the row index; each half is
    [sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (width / 4)). Source: the code of He et al., Masked Autoencoders,
    CVPR 2022.

    Raises BenchError where `width` is no multiple of 4.
    """
    if width % 4:
        raise BenchError(f"Positions on two axes need a width that 4 divides; {width} came. Try {width // 4 * 4 + 4}.")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]  # 2 times (rows * columns, width / 4)
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def patchify(maps: Tensor, patch: int) -> Tensor:
    """(b, c, h, w) -> (b, h/patch * w/patch, patch * patch * c): row-major tokens, in each the channel runs fastest.

    A strided convolution with kernel (width, c, patch, patch) is then a linear layer whose weight is
    `patchify(kernel, patch)[:, 0]`.
    """
    b, c, h, w = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(b, h // patch, patch, w // patch, patch * c)
    return cells.transpose(2, 3).reshape(b, -1, patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, rows: int) -> Tensor:
    """The inverse of `patchify` for a grid of `rows` rows of tokens: (b, n, patch * patch * c) -> (b, c, h, w)."""
    b, n, entries = tokens.shape
    columns, channels = n // rows, entries // patch**2
    cells = tokens.view(b, rows, columns, patch, patch * channels).transpose(2, 3)
    return cells.reshape(b, rows * patch, columns * patch, channels).permute(0, 3, 1, 2)
