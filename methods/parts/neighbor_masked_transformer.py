"""UniAD's transformer: attention that hides the neighborhood of each token, and learned queries in each decoder layer.

Source: the authors' code of UniAD, https://github.com/zhiyuanyou/UniAD at a5b9d9d.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError


class NeighborMaskedTransformer(nn.Module):
    """Restores tokens (b, rows * columns, channels), row-major, from tokens that are not close to them.

    Layers start as copies of one layer, so the packed weights of queries, keys and values and the learned queries are
    equal in all layers; the other linear layers are drawn independently.
    """

    hidden: Tensor

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        *,
        neighborhood: tuple[int, int],
        width: int,
        heads: int,
        mlp_width: int,
        encoder_depth: int,
        decoder_depth: int,
        dropout: float,
    ) -> None:
        """Create the network with its initial weights.

        Args:
            channels: of a token.
            grid: rows and columns of tokens.
            neighborhood: rows and columns around a token, itself included, that it does not attend to; 0, 0 hides none.
            width: of a token inside the network.
            heads: of each attention.
            mlp_width: hidden width of each feed-forward part.
            encoder_depth: layers of the encoder.
            decoder_depth: layers of the decoder.
            dropout: probability, after each part of a layer and of the attention weights.
        """
        super().__init__()
        self.row_positions = nn.Parameter(torch.rand(grid[0], width // 2))
        self.column_positions = nn.Parameter(torch.rand(grid[1], width // 2))
        encoder_layer = EncoderLayer(width, heads, mlp_width, dropout)
        self.encoder = nn.ModuleList(deepcopy(encoder_layer) for _ in range(encoder_depth))
        decoder_layer = DecoderLayer(width, heads, mlp_width, dropout, n_queries=grid[0] * grid[1])
        self.decoder = nn.ModuleList(deepcopy(decoder_layer) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.input_projection = nn.Linear(channels, width)
        self.output_projection = nn.Linear(width, channels)
        self.register_buffer("hidden", neighbor_mask(grid, neighborhood), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, channels) to the same shape."""
        positions = self.positions()  # (n, width)
        memory = self.encode(tokens, positions)  # (b, n, width)
        output = memory
        for layer in self.decoder:
            output = layer(output, memory, positions, self.hidden)
        restored: Tensor = self.output_projection(self.norm(output))  # (b, n, channels)
        return restored

    def encode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Map tokens (b, n, channels) to the encoder's output (b, n, width)."""
        embedded: Tensor = self.input_projection(tokens)
        for layer in self.encoder:
            embedded = layer(embedded, positions, self.hidden)
        return embedded

    def positions(self) -> Tensor:
        """Return (n, width): the entry of each token's column, then that of its row."""
        rows, columns = len(self.row_positions), len(self.column_positions)
        by_column = self.column_positions.expand(rows, -1, -1)  # (rows, columns, width / 2)
        by_row = self.row_positions[:, None].expand(-1, columns, -1)
        return torch.cat([by_column, by_row], dim=2).flatten(0, 1)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward part, each with a residual connection and a LayerNorm after it."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, mlp_width)
        self.linear2 = nn.Linear(mlp_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, tokens: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """Map tokens (b, n, width), with positions (n, width) and a mask (n, n), to the same shape."""
        queries = tokens + positions
        attended = _attend(self.attention, queries, queries, tokens, hidden)
        tokens = self.norm1(tokens + F.dropout(attended, self.dropout, self.training))
        transformed = self.linear2(F.dropout(F.relu(self.linear1(tokens)), self.dropout, self.training))
        output: Tensor = self.norm2(tokens + F.dropout(transformed, self.dropout, self.training))
        return output


class DecoderLayer(nn.Module):
    """Learned queries that attend to the encoder's output, then to the previous layer's output.

    The first attention has keys and values of the encoder, although the code calls it self-attention. The previous
    layer enters only by the keys and values of the second one.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float, *, n_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n_queries, width))
        self.memory_attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.previous_attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, mlp_width)
        self.linear2 = nn.Linear(mlp_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, previous: Tensor, memory: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """Return (b, n, width) from the previous layer's output and the encoder's, each (b, n, width)."""
        tokens = self.queries.expand(len(memory), -1, -1)  # (b, n, width)
        attended = _attend(self.memory_attention, tokens + positions, memory + positions, memory, hidden)
        tokens = self.norm1(tokens + F.dropout(attended, self.dropout, self.training))
        attended = _attend(self.previous_attention, tokens + positions, previous + positions, previous, hidden)
        tokens = self.norm2(tokens + F.dropout(attended, self.dropout, self.training))
        transformed = self.linear2(F.dropout(F.relu(self.linear1(tokens)), self.dropout, self.training))
        output: Tensor = self.norm3(tokens + F.dropout(transformed, self.dropout, self.training))
        return output


def neighbor_mask(grid: tuple[int, int], neighborhood: tuple[int, int]) -> Tensor:
    """Return (n, n), True where a token (first axis) must not attend to another one: both are close in the grid.

    Args:
        grid: rows and columns of tokens.
        neighborhood: odd numbers of rows and columns centered at a token, cut off at the borders; 0, 0 hides none.

    Raises:
        BenchError: if a token could not attend to any other one.
    """
    rows, columns = grid
    row, column = torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu")
    near_rows = 2 * (row[:, None] - row).abs() < neighborhood[0]  # (rows, rows)
    near_columns = 2 * (column[:, None] - column).abs() < neighborhood[1]  # (columns, columns)
    hidden: Tensor = torch.kron(near_rows, near_columns)  # (n, n)
    if hidden.all(dim=1).any():
        raise BenchError(
            f"The hidden neighborhood must leave tokens to attend to, got {neighborhood[0]} x {neighborhood[1]} in a "
            f"grid of {rows} x {columns}. Use larger images, or pass --set neighborhood=3,3."
        )
    return hidden


def _attend(attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    attended, _ = attention(queries, keys, values, attn_mask=hidden, need_weights=False)
    output: Tensor = attended
    return output
