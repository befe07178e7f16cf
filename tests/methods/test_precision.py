"""Half precision: which values are rounded, and which stay float32."""

import pytest
import torch
from torch import Tensor, nn

from bench.method import Setup
from bench.methods.parts.inpainting import Inpainter
from bench.methods.parts.precision import MeanCenteredLinear, autocast

SETUP = Setup((64, 64), torch.device("cpu"), 0, precision="bfloat16")


@pytest.fixture
def tokens() -> Tensor:
    """Return 50 tokens of each of 2 images, with a mean of 100 and a standard deviation of 1."""
    return 100 + torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(0))


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def test_a_mean_centered_layer_preserves_what_rounding_whole_tokens_would_lose(tokens: Tensor) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 8).requires_grad_(requires_grad=False)
    exact, centered_linear = linear(tokens), MeanCenteredLinear(linear, "bfloat16")
    with autocast(SETUP):
        centered, whole = centered_linear(tokens), linear(tokens)
    assert (centered.dtype, whole.dtype) == (torch.float32, torch.bfloat16)
    assert largest(centered - exact) < 0.01 * float(exact.std(dim=1).max())  # bfloat16 has 8 bits: a step is 1 in 256
    assert largest(whole - exact) > 20 * largest(centered - exact)


def test_the_product_with_the_mean_is_float32(tokens: Tensor) -> None:
    linear, same = nn.Linear(40, 8), tokens[:, :1].expand(-1, 50, -1)
    assert torch.allclose(MeanCenteredLinear(linear, "bfloat16")(same), linear(same), rtol=1e-5, atol=1e-5)


def test_the_half_precision_copy_casts_the_restoration_and_shares_the_other_tensors() -> None:
    network = Inpainter(12, (2, 2), width=8, depth=2, heads=2, aggregation_depth=1, clusters=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    half = network.half_precision_copy("bfloat16")
    assert network.half_precision_copy("float32") is network
    cast = {name for name, value in half.state_dict().items() if value.dtype == torch.bfloat16}
    assert {name.split(".")[0] for name in cast} == {"blocks", "prediction"}
    assert not any("norm" in name for name in cast)
    shared = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in half.parameters()} < shared  # none is counted twice
    assert type(network.embedding) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
