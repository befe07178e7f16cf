"""Coupling blocks: log-determinants against autograd, invertibility, and their values by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bench.methods.parts.flows import CouplingBlock, CouplingBlock2d, Flow, negative_log_likelihood


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def flow_2d() -> Flow:
    flow = Flow(CouplingBlock2d(3, 4, kernel=3), CouplingBlock2d(3, 2, kernel=1))
    for block in randomized(flow):
        nn.init.normal_(block.global_scale, mean=10.0)
    return flow


def flow_1d() -> Flow:
    return randomized(Flow(*(CouplingBlock(torch.randperm(6), hidden=5) for _ in range(2))))


@pytest.mark.parametrize(("flow", "shape"), [(flow_2d, (3, 2, 4)), (flow_1d, (6,))], ids=["2d", "1d"])
def test_the_log_determinant_is_that_of_the_jacobian(flow: object, shape: tuple[int, ...]) -> None:
    blocks = flow()
    values = torch.randn(2, *shape, dtype=torch.float64)
    _, log_determinants = blocks(values)
    for value, log_determinant in zip(values, log_determinants, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: blocks(one[None])[0][0], value)
        assert_close(torch.linalg.slogdet(jacobian.view(math.prod(shape), -1)).logabsdet, log_determinant)


def test_a_2d_block_starts_with_global_scale_1_and_offset_0() -> None:
    block = CouplingBlock2d(5, 4, kernel=3)
    nn.init.zeros_(block.conditioner[2].weight)
    nn.init.zeros_(block.conditioner[2].bias)
    maps = torch.randn(2, 5, 3, 3)
    output, log_determinant = block(maps)
    assert_close(output, maps[:, block.permutation], rtol=1e-5, atol=1e-6)
    assert_close(log_determinant, torch.zeros(2), rtol=0, atol=1e-4)


def test_a_2d_block_by_hand() -> None:
    """With biases only: log scale 2 tanh(0.1 * 5), shift 0.1 * 7."""
    block = CouplingBlock2d(2, 1, kernel=1)
    block.permutation.copy_(torch.tensor([1, 0]))
    for convolution in (block.conditioner[0], block.conditioner[2]):
        nn.init.zeros_(convolution.weight)
    block.conditioner[2].bias.data = torch.tensor([5.0, 7.0])
    output, log_determinant = block(torch.tensor([3.0, 2.0]).view(1, 2, 1, 1))
    log_scale = 2 * math.tanh(0.5)
    assert_close(output.flatten(), torch.tensor([2 * math.exp(log_scale) + 0.7, 3.0]))
    assert_close(log_determinant, torch.tensor([log_scale]))


def test_a_1d_block_by_hand() -> None:
    """Each half is scaled by exp(3 * 0.636 * atan(s / 3)) and shifted, after the permutation."""
    block = CouplingBlock(torch.tensor([1, 0]), hidden=1)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    block.conditioner2[-1].bias.data = torch.tensor([1.5, 0.25])
    block.conditioner1[-1].bias.data = torch.tensor([-3.0, 1.0])
    output, log_determinant = block(torch.tensor([[3.0, 2.0]]))
    one, two = 3 * 0.636 * math.atan(0.5), 3 * 0.636 * math.atan(-1)
    assert_close(output, torch.tensor([[2 * math.exp(one) + 0.25, 3 * math.exp(two) + 1]]))
    assert_close(log_determinant, torch.tensor([one + two]))


def invert(flow: Flow, output: Tensor) -> Tensor:
    """Invert a flow of 2-D blocks by the inverse formulas, block by block."""
    for block in reversed(flow):
        maps = torch.empty_like(output)
        maps[:, block.permutation] = output
        scale = 0.1 * 2 * torch.log1p(torch.exp(0.5 * block.global_scale))
        first, second = ((maps - block.global_offset) / scale).split(block.sizes, dim=1)
        raw, shift = (0.1 * block.conditioner(first)).float().double().chunk(2, dim=1)
        output = torch.cat([first, (second - shift) / torch.exp(2 * torch.tanh(raw))], dim=1)
    return output


def test_a_2d_flow_is_invertible() -> None:
    flow, maps = flow_2d(), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert_close(invert(flow, flow(maps)[0]), maps, rtol=1e-4, atol=1e-5)


def test_negative_log_likelihood_by_hand() -> None:
    latent = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]])
    assert_close(negative_log_likelihood(latent, torch.tensor([0.5, -1.0])), torch.tensor([2.0, 5.5]))


def test_1d_values_are_limited() -> None:
    block = CouplingBlock(torch.arange(2), hidden=1)
    assert_close(block(torch.full((1, 2), 1e9))[0].abs().max(), torch.tensor(1e6))
