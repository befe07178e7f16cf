"""Linear layers by oneDNN: the same answers and the same count of FLOPs, from the same tensors."""

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
needs_it = pytest.mark.skipif(onednn.PRODUCT is None, reason="this torch has no oneDNN, or hands it out no more")


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block(12, 3).requires_grad_(requires_grad=False)


@needs_it
def test_a_block_answers_alike_to_rounding_and_counts_the_same_flops(block: Block) -> None:
    twin, tokens = onednn.by_onednn(block, SETUP), torch.randn(2, 5, 12)
    counts = []
    for network in (block, twin):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(tokens)
        counts.append(counter.get_total_flops())
    torch.testing.assert_close(twin(tokens), block(tokens), rtol=1e-5, atol=1e-5)
    # Multiply-adds: 10 tokens in the linear layers, and twice 2 images x 3 heads x 5 x 5 tokens x 4 numbers.
    assert counts == [2 * (10 * (12 * 36 + 12 * 12 + 12 * 48 + 48 * 12) + 2 * 2 * 3 * 5 * 5 * 4)] * 2


@needs_it
def test_the_twin_shares_its_tensors_and_the_network_stays_as_it_is(block: Block) -> None:
    twin, tokens = onednn.by_onednn(block, SETUP), torch.randn(2, 5, 12)
    assert type(block.mlp.fc1) is nn.Linear
    assert [tensor.data_ptr() for tensor in twin.parameters()] == [tensor.data_ptr() for tensor in block.parameters()]
    block.mlp.fc2.weight.zero_()  # as a training step would change it
    torch.testing.assert_close(twin(tokens), block(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"precision": "bfloat16"}, {"compile": True}, {"device": torch.device("meta")}], ids=str
)
def test_elsewhere_the_network_answers_itself(block: Block, change: dict[str, object]) -> None:
    assert onednn.by_onednn(block, dataclasses.replace(SETUP, **change)) is block


def test_without_the_operator_the_network_answers_itself(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "PRODUCT", None)
    assert onednn.by_onednn(block, SETUP) is block
