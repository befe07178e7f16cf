"""The parts of the transformer, compared with timm, with a convolution and with values computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn
from torch.testing import assert_close

from bench.errors import BenchError
from bench.methods.parts.inpainting import Inpainter
from bench.methods.parts.transformer import Block, patchify, sincos_pos_embed, unpatchify


def test_a_block_equals_the_block_of_timm_with_the_same_keys() -> None:
    theirs = TimmBlock(24, 3, qkv_bias=True, norm_layer=nn.LayerNorm)
    ours = Block(24, 3)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 7, 24)
    assert_close(ours(tokens), theirs(tokens))


def test_a_block_with_few_queries_returns_their_part_of_the_output() -> None:
    block, tokens = Block(24, 3), torch.rand(2, 7, 24)
    assert_close(block(tokens, 3), block(tokens)[:, :3])


def test_heads_that_do_not_divide_the_width_raise_an_error() -> None:
    with pytest.raises(BenchError, match="got heads = 5 and width = 24"):
        Block(24, 5)


def test_the_first_position_has_sines_of_0_and_cosines_of_1() -> None:
    table = sincos_pos_embed(768, 16, 16)
    assert table.shape == (256, 768)
    assert table[0].sum() == 384  # all 2 * 192 cosines are 1


def test_the_first_half_of_a_position_encodes_the_column_and_the_second_the_row() -> None:
    table = sincos_pos_embed(8, 3, 5).view(3, 5, 8)  # frequencies 1 and 1/100
    expected = [math.sin(4), math.sin(0.04), math.cos(4), math.cos(0.04)]
    expected += [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    assert_close(table[2, 4], torch.tensor(expected))
    assert torch.equal(table[0, :, :4], table[2, :, :4])
    assert torch.equal(table[:, 0, 4:], table[:, 3, 4:])


def test_a_width_that_is_not_a_multiple_of_four_raises_an_error() -> None:
    with pytest.raises(BenchError, match="got 6"):
        sincos_pos_embed(6, 2, 2)


@given(
    images=st.integers(1, 3),
    channels=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 4),
)
def test_unpatchify_inverts_patchify(images: int, channels: int, rows: int, columns: int, patch: int) -> None:
    maps = torch.rand(images, channels, rows * patch, columns * patch)
    tokens = patchify(maps, patch)
    assert tokens.shape == (images, rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, patch, rows), maps)


def test_inside_a_patch_the_order_is_row_column_channel() -> None:
    maps = torch.arange(2 * 2 * 4.0).view(1, 2, 2, 4)  # channel 0 holds 0..7, channel 1 holds 8..15
    assert patchify(maps, 2)[0].tolist() == [[0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]]


def test_a_strided_convolution_equals_a_linear_layer_on_patches() -> None:
    convolution = nn.Conv2d(3, 10, 4, stride=4)
    maps = torch.randn(2, 3, 8, 12)
    weight = patchify(convolution.weight, 4)[:, 0]
    tokens = patchify(maps, 4) @ weight.T + convolution.bias
    assert_close(tokens, convolution(maps).flatten(2).mT)


def test_centers_are_the_cluster_tokens_after_all_aggregation_blocks() -> None:
    network = Inpainter(12, (2, 2), width=24, depth=1, heads=3, aggregation_depth=3, clusters=2)
    semantic = torch.rand(2, 4, 24)
    tokens = torch.cat([network.cluster_tokens.expand(2, -1, -1), semantic + network.pos_embed], dim=1)
    expected = network.aggregation_norm(network.aggregation(tokens)[:, :2])
    assert_close(network.centers(semantic), expected)
