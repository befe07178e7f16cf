"""UniAD's transformer: attention that masks the neighborhood of each token, and learned queries in each decoder layer.

Source: the authors' code of UniAD, https://github.com/zhiyuanyou/UniAD at a5b9d9d.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError


class NeighborMaskedTransformer(nn.Module):
    """Reconstructs tokens (b, rows * columns, channels), row-major, from tokens that are not close to them.

    Layers start as copies of one layer, so the packed weights of queries, keys and values and the learned queries are
    equal in all layers; the other linear layers are initialized independently.
    """

    attn_mask: Tensor

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
            channels: number of channels of a token.
            grid: rows and columns of tokens.
            neighborhood: rows and columns around a token, itself included, that it does not attend to; 0, 0 masks none.
            width: embedding dimension.
            heads: number of heads of each attention.
            mlp_width: hidden width of each MLP.
            encoder_depth: number of layers of the encoder.
            decoder_depth: number of layers of the decoder.
            dropout: probability, applied after each sublayer and to the attention weights.
        """
        super().__init__()
        self.row_embed = nn.Parameter(torch.rand(grid[0], width // 2))
        self.column_embed = nn.Parameter(torch.rand(grid[1], width // 2))
        encoder_layer = EncoderLayer(width, heads, mlp_width, dropout)
        self.encoder = nn.ModuleList(deepcopy(encoder_layer) for _ in range(encoder_depth))
        decoder_layer = DecoderLayer(width, heads, mlp_width, dropout, n_queries=grid[0] * grid[1])
        self.decoder = nn.ModuleList(deepcopy(decoder_layer) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.input_projection = nn.Linear(channels, width)
        self.output_projection = nn.Linear(width, channels)
        self.register_buffer("attn_mask", neighbor_mask(grid, neighborhood), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, channels) to the same shape."""
        pos_embed = self.pos_embed()  # (n, width)
        memory = self.encode(tokens, pos_embed)  # (b, n, width)
        output = memory
        for layer in self.decoder:
            output = layer(output, memory, pos_embed, self.attn_mask)
        reconstructed: Tensor = self.output_projection(self.norm(output))  # (b, n, channels)
        return reconstructed

    def encode(self, tokens: Tensor, pos_embed: Tensor) -> Tensor:
        """Map tokens (b, n, channels) to the encoder's output (b, n, width)."""
        embedded: Tensor = self.input_projection(tokens)
        for layer in self.encoder:
            embedded = layer(embedded, pos_embed, self.attn_mask)
        return embedded

    def pos_embed(self) -> Tensor:
        """Return the position embeddings (n, width): the embedding of each token's column, then that of its row."""
        rows, columns = len(self.row_embed), len(self.column_embed)
        by_column = self.column_embed.expand(rows, -1, -1)  # (rows, columns, width / 2)
        by_row = self.row_embed[:, None].expand(-1, columns, -1)
        return torch.cat([by_column, by_row], dim=2).flatten(0, 1)


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each with a residual connection and a LayerNorm after it."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, mlp_width)
        self.linear2 = nn.Linear(mlp_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, tokens: Tensor, pos_embed: Tensor, attn_mask: Tensor) -> Tensor:
        """Map tokens (b, n, width), with position embeddings (n, width) and a mask (n, n), to the same shape."""
        queries = tokens + pos_embed
        attended = _attend(self.attention, queries, queries, tokens, attn_mask)
        tokens = self.norm1(tokens + F.dropout(attended, self.dropout, self.training))
        transformed = self.linear2(F.dropout(F.relu(self.linear1(tokens)), self.dropout, self.training))
        output: Tensor = self.norm2(tokens + F.dropout(transformed, self.dropout, self.training))
        return output


class DecoderLayer(nn.Module):
    """Learned queries that attend to the encoder's output, then to the previous layer's output.

    The first attention has keys and values of the encoder, although the code calls it self-attention. The output
    of the previous layer is used only for the keys and values of the second attention.
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

    def forward(self, previous: Tensor, memory: Tensor, pos_embed: Tensor, attn_mask: Tensor) -> Tensor:
        """Return (b, n, width) from the previous layer's output and the encoder's, each (b, n, width)."""
        tokens = self.queries.expand(len(memory), -1, -1)  # (b, n, width)
        attended = _attend(self.memory_attention, tokens + pos_embed, memory + pos_embed, memory, attn_mask)
        tokens = self.norm1(tokens + F.dropout(attended, self.dropout, self.training))
        attended = _attend(self.previous_attention, tokens + pos_embed, previous + pos_embed, previous, attn_mask)
        tokens = self.norm2(tokens + F.dropout(attended, self.dropout, self.training))
        transformed = self.linear2(F.dropout(F.relu(self.linear1(tokens)), self.dropout, self.training))
        output: Tensor = self.norm3(tokens + F.dropout(transformed, self.dropout, self.training))
        return output


def neighbor_mask(grid: tuple[int, int], neighborhood: tuple[int, int]) -> Tensor:
    """Return (n, n), True where a token (first axis) must not attend to another one: both are close in the grid.

    Args:
        grid: rows and columns of tokens.
        neighborhood: odd numbers of rows and columns centered at a token, cut off at the borders; 0, 0 masks none.

    Raises:
        BenchError: if a token could not attend to any other one.
    """
    rows, columns = grid
    row, column = torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu")
    near_rows = 2 * (row[:, None] - row).abs() < neighborhood[0]  # (rows, rows)
    near_columns = 2 * (column[:, None] - column).abs() < neighborhood[1]  # (columns, columns)
    attn_mask: Tensor = torch.kron(near_rows, near_columns)  # (n, n)
    if attn_mask.all(dim=1).any():
        raise BenchError(
            f"The masked neighborhood must leave tokens to attend to, got {neighborhood[0]} x {neighborhood[1]} in a "
            f"grid of {rows} x {columns}. Use larger images, or pass --set neighborhood=3,3."
        )
    return attn_mask


def _attend(
    attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor
) -> Tensor:
    attended, _ = attention(queries, keys, values, attn_mask=attn_mask, need_weights=False)
    output: Tensor = attended
    return output
