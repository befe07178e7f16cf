"""VT-ADL: tokens, reconstructions, likelihoods, losses and gradients of the authors' code; densities by hand."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from math import log, pi

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.distributions import Normal
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.token_density import (
    CapsuleDecoder,
    MixtureDensity,
    TokenAttention,
    TokenEncoder,
    component_nll,
    mixture_nll,
    weighted_nll,
)
from bench.methods.vtadl import VTADL, Settings

CPU = torch.device("cpu")
TINY = Settings(
    patch=16, width=16, depth=1, heads=2, hidden=16, components=2, decoder_width=1, epochs=2, batch_size=2,
    reconstruction_weight=0, ssim_weight=0, score="map",
)  # fmt: skip
Reference = dict[str, Tensor]


@pytest.fixture(scope="module")
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("vtadl")


@pytest.fixture(scope="module")
def images(reference: Reference) -> Tensor:
    return reference["images"].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).contiguous()


@pytest.fixture(scope="module")
def method(fill_by_hash: Callable[..., None], by_hash: Callable[[int, int], Tensor]) -> VTADL:
    """A method with the weights of the reference data.

    The order of our tensors is the authors' order, except that their capsules are the last entry and have the shape
    (1, 4096, 512, 8).
    """
    method = VTADL(Settings(depth=2), Setup((512, 512), CPU, seed=0))
    network, density = method.build_network(), method.build_density()
    fill_by_hash(network.encoder)
    fill_by_hash(network.decoder.layers, len(network.encoder.state_dict()))
    capsules = by_hash(4096 * 512 * 8, 63).view(4096, 512, 8) * (6 / (4096 * 512 * 8)) ** 0.5
    network.decoder.capsule.data = capsules.permute(1, 0, 2).reshape(512, -1).float()
    fill_by_hash(density, 1000)
    method.network, method.density, method.best_epoch = network.eval(), density, torch.tensor(1)
    return method


# ---- The reference data: numbers of the authors' code ----


@torch.no_grad()
def test_tokens_reconstruction_and_likelihoods_equal_the_reference(
    method: VTADL, reference: Reference, images: Tensor, assert_relative: Callable[..., None]
) -> None:
    tokens, nll = method.encode(images)
    assert_relative(tokens[:, ::8, ::4], reference["encoded"])
    log_weights, _, _ = method.density(tokens)
    assert_relative(log_weights.exp()[:, ::8], reference["weights"])
    assert_relative(nll, reference["patch_nll"])
    restored = method._decode(method.network.decoder, tokens)
    assert_relative(restored[:, :, ::8, ::8], reference["reconstruction"])
    assert_relative((restored - images).square().mean(dim=(1, 2, 3)), reference["mse"])
    prediction = method.predict(images)
    assert_relative(prediction.maps[:, ::8, ::8], reference["map"])
    assert_relative(prediction.scores, reference["scores"])
    similarity = prediction.scores.double() - reference["mse"] - nll.amax(dim=1)
    assert_close(similarity, reference["ssim"].double(), rtol=0, atol=1e-3)  # differences of 3e3 in float32


def test_losses_and_gradients_equal_the_reference(
    method: VTADL,
    reference: Reference,
    images: Tensor,
    by_hash: Callable[[int, int], Tensor],
    assert_relative: Callable[..., None],
) -> None:
    network, density = deepcopy(method.network).train(), deepcopy(method.density)
    noise = (0.2 * 3**0.5 * by_hash(2 * 64 * 512, 4242)).view(2, 64, 512).float()
    error, similarity, nll, total = method.losses(network, density, images, noise)
    assert_close(error.detach().double(), reference["train_mse"], rtol=1e-4, atol=0)
    assert_close(-similarity.detach().double(), reference["train_neg_ssim"], rtol=1e-4, atol=1e-6)
    assert_close(nll.detach().double(), reference["train_nll"], rtol=1e-4, atol=0)
    assert_close(total.detach().double(), reference["train_total"], rtol=1e-4, atol=0)
    total.backward()
    assert_relative(density.weights.weight.grad[:, ::8], reference["grad_pi"], 1e-3)
    pos_embed_grad = network.encoder.pos_embed.grad[0]
    assert_relative(network.decoder.layers[-2].weight.grad[:, :, ::4, ::4], reference["grad_last"], 1e-3)
    for row, expected in zip(
        pos_embed_grad[:8, ::16], reference["grad_pos"], strict=True
    ):  # the class token's is larger
        assert_relative(row, expected, 1e-3)


# ---- Networks ----


def test_attention_equals_a_loop_over_heads_with_the_scale_of_the_whole_width() -> None:
    attention, tokens = TokenAttention(12, 3), torch.randn(2, 5, 12)
    query, key, value = (tokens @ part.T for part in attention.qkv.weight.chunk(3))
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (query[:, :, part] @ key[:, :, part].transpose(1, 2) * 12**-0.5).softmax(dim=2)
        heads.append(weights @ value[:, :, part])
    assert_close(attention(tokens), attention.out(torch.cat(heads, dim=2)))


def test_linear_layers_of_the_encoder_start_with_hes_weights() -> None:
    encoder = TokenEncoder(4, 8, 64, 1, 4, 256)
    assert float(encoder.embedding.weight.detach().std()) == pytest.approx((2 / 192) ** 0.5, rel=0.05)
    assert encoder.blocks[0].mlp[0].bias.abs().max() == 0
    assert float(encoder.pos_embed.detach().std()) == pytest.approx(1, rel=0.2)
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 4, 64)


def test_the_capsule_equals_dynamic_routing() -> None:
    """Three rounds of the published routing, with capsules of 8 numbers and one output capsule."""
    decoder, tokens = CapsuleDecoder(2, 16, 1), torch.randn(3, 2, 16)
    decoder.capsule.data *= 10
    votes = torch.einsum("iod,bid->bio", decoder.capsule.view(512, 4, 8).permute(1, 0, 2), tokens.reshape(3, 4, 8))
    logits = torch.zeros(3, 4)
    for _ in range(3):
        coupling = logits[:, None].softmax(dim=1)[:, 0]  # over output capsules
        summed = (coupling[..., None] * votes).sum(dim=1)
        squared = summed.square().sum(dim=1, keepdim=True)
        output = squared / (1 + squared) * summed / squared.sqrt()
        logits = logits + (output[:, None] * votes).sum(dim=2)
    received = []
    decoder.layers = nn.Sequential(Recorder(received))
    decoder(tokens)
    assert_close(received[0].flatten(1), output, rtol=1e-4, atol=1e-6)


class Recorder(nn.Module):
    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        return images


# ---- Densities ----


def test_negative_tokens_do_not_reach_the_density_network() -> None:
    density = MixtureDensity(4, 3)
    tokens = torch.tensor([[[1.0, -2.0, 0.5, -0.1]]])
    for one, other in zip(density(tokens), density(tokens.relu()), strict=True):
        assert_close(one, other)
    assert (density(tokens)[2] >= 0).all()


def test_the_value_of_a_component_is_worked_out_by_hand() -> None:
    tokens, means = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[[0.0], [4.0]]]])
    log_variances = torch.tensor([[[[0.0], [log(2.0)]]]])
    expected = 0.5 * (log(2 * pi) + (0 + 1) + (log(2.0) + 4 / 2))
    assert component_nll(tokens, means, log_variances).item() == pytest.approx(expected)
    normal = -Normal(means[0, 0, :, 0], (log_variances[0, 0, :, 0] / 2).exp()).log_prob(tokens[0, 0]).sum()
    assert expected + 0.5 * log(2 * pi) == pytest.approx(normal.item())  # which counts log 2 pi per dimension


def test_the_mixture_is_at_most_the_weighted_sum() -> None:
    log_weights, nll = torch.randn(2, 3, 4).log_softmax(dim=2), 5 * torch.rand(2, 3, 4)
    mixture = mixture_nll(log_weights, nll)
    assert_close(mixture, -(log_weights.exp() * (-nll).exp()).sum(dim=2).log())
    assert (mixture < weighted_nll(log_weights, nll)).all()
    equal = nll[:, :, :1].expand(2, 3, 4)
    assert_close(mixture_nll(log_weights, equal), weighted_nll(log_weights, equal))


# ---- Fit ----


@pytest.fixture
def few_images() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=Generator().manual_seed(1))


def test_training_reduces_the_loss(few_images: Tensor, in_memory: Callable[..., object]) -> None:
    losses: list[float] = []
    method = VTADL(replace(TINY, epochs=20, lr=1e-2), Setup((64, 64), CPU, seed=0))
    method.fit(in_memory(few_images), lambda _done, _total, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]


def test_the_epoch_of_the_lowest_loss_is_kept(
    few_images: Tensor, in_memory: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("bench.methods.vtadl.TrainingStep.epoch_loss", lambda _: next(losses))
    method, weights = VTADL(replace(TINY, epochs=3), Setup((64, 64), CPU, seed=0)), []
    keep = lambda *_: weights.append(method.network.encoder.pos_embed.detach().clone())
    method.fit(in_memory(few_images), keep)
    assert method.info()["kept_epoch"] == 2
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    losses = iter([3.0, 1.0, 2.0])
    method.settings = replace(method.settings, keep="last")
    method.fit(in_memory(few_images), keep)
    assert method.info()["kept_epoch"] == 3


def test_images_of_other_sizes_are_decoded_and_resized(few_images: Tensor, in_memory: Callable[..., object]) -> None:
    settings = replace(TINY, epochs=1, reconstruction_weight=5, ssim_weight=0.5, score="code")
    method = VTADL(settings, Setup((64, 64), CPU, seed=0))
    method.fit(in_memory(few_images[:2]), lambda *_: None)
    pictures = method.explain(few_images[:1])
    assert pictures["decoded image"].shape == (1, 3, 64, 64)
    with torch.no_grad():
        _, nll = method.encode(few_images[:1])
    assert_close(pictures["value of a token"][0, ::16, ::16], nll[0].view(4, 4))
    coded = method.predict(few_images[:1])
    method.settings = replace(TINY, epochs=1)
    assert method.explain(few_images[:1]).keys() == {"value of a token"}
    mapped = method.predict(few_images[:1])
    assert_close(mapped.maps, coded.maps)
    assert_close(mapped.scores, mapped.maps.amax(dim=(1, 2)))
    assert (coded.scores - nll.amax(dim=1)).abs().max() < 2  # error and SSIM


def test_the_size_of_the_networks_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        method = VTADL(Settings(), Setup((512, 512), CPU, seed=0))
        networks = method.build_network(), method.build_density()
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts[1] == 512 * (10 + 2 * 5120)
    assert sum(counts) == pytest.approx(41e6, rel=0.02)
    assert VTADL.estimate_memory(Settings(), (512, 512), 8) > 20 * sum(counts)


@pytest.mark.parametrize(
    ("changes", "message"), [({"width": 12, "heads": 8}, "multiple of heads"), ({"noise": -1}, "noise")]
)
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_images_must_consist_of_whole_patches() -> None:
    with pytest.raises(BenchError, match="multiples of patch = 16, got 64 x 60"):
        VTADL(TINY, Setup((64, 60), CPU, seed=0))
