"""Half precision: what is rounded, and what stays float32."""

import pytest
import torch
from torch import Tensor, nn

from bench.method import Setup
from bench.methods.parts.inpainting import Inpainter
from bench.methods.parts.precision import Centred, autocast

SETUP = Setup((64, 64), torch.device("cpu"), 0, precision="bfloat16")


@pytest.fixture
def tokens() -> Tensor:
    """Of 2 images 50 tokens each, that differ by 1 from a mean of 100."""
    return 100 + torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(0))


def largest(apart: Tensor) -> float:
    return float(apart.abs().max())


def test_a_centred_layer_keeps_what_rounding_whole_would_drown(tokens: Tensor) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 8).requires_grad_(requires_grad=False)
    exact, centred = linear(tokens), Centred(linear, "bfloat16")
    with autocast(SETUP):
        found, whole = centred(tokens), linear(tokens)
    assert (found.dtype, whole.dtype) == (torch.float32, torch.bfloat16)
    assert largest(found - exact) < 0.01 * float(exact.std(dim=1).max())  # bfloat16 has 8 bits: a step is 1 in 256
    assert largest(whole - exact) > 20 * largest(found - exact)


def test_a_mean_alone_is_answered_in_float32(tokens: Tensor) -> None:
    linear, same = nn.Linear(40, 8), tokens[:, :1].expand(-1, 50, -1)
    assert torch.allclose(Centred(linear, "bfloat16")(same), linear(same), rtol=1e-5, atol=1e-5)


def test_a_halved_inpainter_casts_the_restoration_shares_the_rest_and_leaves_the_network_as_it_was() -> None:
    network = Inpainter(12, (2, 2), width=8, depth=2, heads=2, aggregation_depth=1, clusters=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quick = network.halved("bfloat16")
    assert network.halved("float32") is network
    cast = {name for name, value in quick.state_dict().items() if value.dtype == torch.bfloat16}
    assert {name.split(".")[0] for name in cast} == {"blocks", "prediction"}
    assert not any("norm" in name for name in cast)
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in quick.parameters()} < own  # none is counted twice
    assert type(network.embedding) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
