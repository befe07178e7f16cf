"""Linear layers by oneDNN: the same outputs and the same number of FLOPs, from the same tensors."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.method import Setup
from bench.methods.parts import onednn
from bench.methods.parts.transformer import Block

SETUP = Setup((64, 64), torch.device("cpu"), 0)
needs_onednn = pytest.mark.skipif(onednn.LINEAR is None, reason="this torch has no oneDNN operator")


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block(12, 3).requires_grad_(requires_grad=False)


@needs_onednn
def test_a_block_has_the_same_output_up_to_rounding_and_the_same_flops(block: Block) -> None:
    copy, tokens = onednn.with_onednn_linear(block, SETUP), torch.randn(2, 5, 12)
    counts = []
    for network in (block, copy):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(tokens)
        counts.append(counter.get_total_flops())
    torch.testing.assert_close(copy(tokens), block(tokens), rtol=1e-5, atol=1e-5)
    # Multiply-adds: 10 tokens in the linear layers, and twice 2 images x 3 heads x 5 x 5 tokens x 4 values.
    assert counts == [2 * (10 * (12 * 36 + 12 * 12 + 12 * 48 + 48 * 12) + 2 * 2 * 3 * 5 * 5 * 4)] * 2


@needs_onednn
def test_the_copy_shares_its_tensors_and_the_network_is_not_modified(block: Block) -> None:
    copy, tokens = onednn.with_onednn_linear(block, SETUP), torch.randn(2, 5, 12)
    assert type(block.mlp.fc1) is nn.Linear
    assert [tensor.data_ptr() for tensor in copy.parameters()] == [tensor.data_ptr() for tensor in block.parameters()]
    block.mlp.fc2.weight.zero_()  # as a training step would change it
    torch.testing.assert_close(copy(tokens), block(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"precision": "bfloat16"}, {"compile": True}, {"device": torch.device("meta")}], ids=str
)
def test_on_other_setups_the_network_itself_is_returned(block: Block, change: dict[str, object]) -> None:
    assert onednn.with_onednn_linear(block, dataclasses.replace(SETUP, **change)) is block


def test_without_the_operator_the_network_itself_is_returned(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "LINEAR", None)
    assert onednn.with_onednn_linear(block, SETUP) is block
