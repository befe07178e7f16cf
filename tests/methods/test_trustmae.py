"""Our reading of TrustMAE: memory, trust regions and distances, by hand and against loops; there is no reference."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.maps import gaussian_filter
from bench.methods.parts.memory_autoencoder import MemoryAutoencoder, margin_loss, trust_region_loss
from bench.methods.parts.similarity import ssim
from bench.methods.trustmae import Settings, TrustMAE

SETUP = Setup((64, 64), torch.device("cpu"), seed=0)
TINY = Settings(
    backbone="tf_efficientnet_lite0", channels=8, n_slots=10, warmup_epochs=1, epochs=3, batch_size=2, lr=1e-3
)


@pytest.fixture(scope="module")
def fit(in_memory: Any, random_images: Any) -> Callable[..., TrustMAE]:
    def fitted(settings: Settings = TINY, count: int = 4, losses: list[float] | None = None) -> TrustMAE:
        method = TrustMAE(settings, SETUP)
        record = (lambda _done, _total, loss: losses.append(loss)) if losses is not None else lambda *_: None
        method.fit(in_memory(random_images(count, (64, 64))), record)
        return method

    return fitted


# ---- Memory ----


def test_trust_region_attracts_near_vectors_repels_doubtful_ones_and_leaves_far_ones() -> None:
    squared = torch.tensor([0.5, 1.0, 1.5, 2.5])
    latent, slots = squared.sqrt()[:, None].requires_grad_(), torch.zeros(4, 1, requires_grad=True)
    loss = trust_region_loss(latent, slots, torch.tensor(1.0), torch.tensor(2.0))
    assert float(loss.detach()) == pytest.approx((0.5 + 1.0 - 1.5 + 0) / 4, abs=1e-6)
    loss.backward()
    slopes = squared.sqrt() * 2 / 4
    assert_close(latent.grad[:, 0], slopes * torch.tensor([1.0, 1, 0, 0]))  # a slot does not repel a latent vector
    assert_close(slots.grad[:, 0], slopes * torch.tensor([-1.0, -1, 1, 0]))


def test_margin_separates_the_two_nearest_slots() -> None:
    assert float(margin_loss(torch.tensor([[0.2, 1.5]]))) == 0
    assert float(margin_loss(torch.tensor([[0.2, 0.7]]))) == pytest.approx(0.5)
    assert float(margin_loss(torch.tensor([[0.2, 1.5, 9], [0.2, 0.7, 9]]))) == pytest.approx(0.25)


def test_one_nearest_slot_replaces_the_latent_vector() -> None:
    memory, latent = MemoryAutoencoder(4, 6, 1), torch.randn(5, 4)
    address = memory.address(latent)
    nearest = torch.cdist(latent, memory.slots).argmin(dim=1)
    assert_close(address.combined, memory.slots[nearest])
    assert torch.equal(address.indices[:, 0], nearest)
    assert address.squared.shape == (5, 2)  # the margin needs two


def test_all_slots_have_the_weights_of_a_softmax() -> None:
    memory, latent = MemoryAutoencoder(4, 6, 6), torch.randn(5, 4)
    weights = torch.stack([-(latent - slot).square().sum(dim=1) for slot in memory.slots], dim=1).softmax(dim=1)
    assert_close(memory.address(latent).combined, weights @ memory.slots, rtol=1e-4, atol=1e-5)


def test_weights_of_the_nearest_slots_are_those_of_all_divided_by_their_sum() -> None:
    memory, latent = MemoryAutoencoder(4, 9, 3), torch.randn(5, 4)
    for vector, combined in zip(latent, memory.address(latent).combined, strict=True):
        squared = (vector - memory.slots).square().sum(dim=1)
        order, weights = squared.argsort()[:3], torch.exp(-squared)
        assert_close(combined, (weights[order] @ memory.slots[order]) / weights[order].sum(), rtol=1e-4, atol=1e-5)


def test_gradients_reach_encoder_slots_and_decoder_through_the_memory() -> None:
    network = MemoryAutoencoder(8, 10, 3)
    restored, nearest = network(torch.rand(2, 3, 32, 48))
    assert restored.shape == (2, 3, 32, 48)
    assert nearest.shape == (2, 2, 3)
    restored.sum().backward()
    for part in (network.encoder[0].weight, network.decoder[0].weight, network.slots):
        assert part.grad.abs().max() > 0


def test_latent_vectors_are_in_order_of_rows() -> None:
    network = MemoryAutoencoder(8, 10, 3).eval()
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        latent, maps = network.encode(images), network.encoder(images)
    assert_close(latent.view(2, 2, 3, 8)[1, 0, 2], maps[1, :, 0, 2])
    with torch.no_grad():
        assert_close(network.decode(latent, (32, 48)), network.decoder(maps))


# ---- Distances ----


def test_perceptual_distance_equals_a_loop_over_positions(random_images: Callable[..., Tensor]) -> None:
    method = TrustMAE(TINY, SETUP)
    first, second = random_images(1, (64, 64)), random_images(1, (64, 64), seed=2)
    for maps, one, two in zip(
        method.perceptual_distances(first, second), method.backbone(first), method.backbone(second), strict=True
    ):
        pair = [F.pad(F.normalize(stage[0].double(), dim=0), (1, 1, 1, 1), mode="replicate") for stage in (one, two)]
        for row, column in ((0, 0), (3, 5), (maps.shape[1] - 1, 2)):
            means = [stage[:, row : row + 3, column : column + 3].mean(dim=(1, 2)) for stage in pair]
            expected = 1 - F.cosine_similarity(*means, dim=0)
            assert float(maps[0, row, column]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


def test_perceptual_distance_is_0_for_equal_images_and_has_gradients_for_the_restored_one(
    random_images: Callable[..., Tensor],
) -> None:
    method = TrustMAE(TINY, SETUP)
    images = random_images(2, (64, 64))
    assert all(maps.abs().max() < 1e-5 for maps in method.perceptual_distances(images, images))
    restored = (images * 0.9).requires_grad_()
    method.reconstruction_loss(images, restored).backward()
    assert restored.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in method.backbone.parameters())


def test_loss_is_the_weighted_sum_of_its_terms(random_images: Callable[..., Tensor]) -> None:
    images, restored = random_images(2, (64, 64)), random_images(2, (64, 64), seed=2)
    settings = replace(TINY, mse_weight=2.0, ssim_weight=3.0, perceptual_weight=4.0)
    method = TrustMAE(settings, SETUP)
    perceptual = sum(maps.mean() for maps in method.perceptual_distances(images, restored)) / 2
    expected = 2 * (images - restored).square().mean() + 3 * (1 - ssim(images, restored).mean()) + 4 * perceptual
    assert_close(method.reconstruction_loss(images, restored), expected)


@pytest.mark.parametrize("distance", ["perceptual", "mse", "ssim"])
def test_map_is_the_smoothed_distance(fit: Any, random_images: Callable[..., Tensor], distance: str) -> None:
    method = TrustMAE(replace(TINY, distance=distance, smoothing=2.0), SETUP)
    method.network = fit().network
    images = random_images(2, (64, 64), seed=3)
    _, restored, _ = method.reconstruct(images)
    prediction = method.predict(images)
    if distance == "perceptual":
        stages = method.perceptual_distances(images, restored)
        expected = sum(F.interpolate(maps[:, None], (64, 64), mode="bilinear")[:, 0] for maps in stages) / 2
    elif distance == "mse":
        expected = (images - restored).square().mean(dim=1)
    else:
        expected = 1 - ssim(images, restored).mean(dim=1)
    assert_close(prediction.maps, gaussian_filter(expected, 2.0), rtol=1e-4, atol=1e-5)
    assert_close(prediction.scores, prediction.maps.amax(dim=(1, 2)))


# ---- Training ----


def test_training_reduces_the_loss_and_restores_smooth_images(in_memory: Any) -> None:
    ramp = torch.linspace(0, 1, 64).expand(4, 3, 64, 64) * torch.tensor([0.3, 0.6, 0.9])[:, None, None]
    method, losses = TrustMAE(replace(TINY, epochs=20, warmup_epochs=2, lr=3e-3), SETUP), []
    method.fit(in_memory(ramp), lambda _done, _total, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert method.info()["slots"] == 10
    defective = ramp[:1].clone()
    defective[:, :, 20:36, 20:36] = torch.tensor([1.0, 0, 0])[:, None, None]
    prediction = method.predict(torch.cat([ramp[:1], defective]))
    assert prediction.scores[1] > 1.5 * prediction.scores[0]
    assert prediction.maps[1, 16:40, 16:40].mean() > 2 * prediction.maps[1, 44:, 44:].mean()


def test_the_slots_do_not_change_in_the_warm_up(in_memory: Any, random_images: Any, monkeypatch: Any) -> None:
    slots: list[Tensor] = []
    choose = TrustMAE._choose_slots

    def record(self: TrustMAE, network: MemoryAutoencoder, train: Any) -> None:
        slots.append(network.slots.detach().clone())
        choose(self, network, train)
        slots.append(network.slots.detach().clone())
        latent = network.encode(train.images).detach()
        assert torch.cdist(slots[-1], latent).min(dim=1).values.max() < 1e-3

    monkeypatch.setattr(TrustMAE, "_choose_slots", record)
    method = TrustMAE(replace(TINY, warmup_epochs=2, epochs=3), SETUP)
    method.fit(in_memory(random_images(4, (64, 64))), lambda *_: None)
    assert len(slots) == 4
    assert torch.equal(slots[1], slots[2])
    assert not torch.equal(method.network.slots, slots[3])


def test_radii_are_running_means_of_quantiles() -> None:
    method = TrustMAE(replace(TINY, inner=0.5, outer=0.75, radius_momentum=0.9), SETUP)
    first = method.update_radii(None, torch.tensor([0.0, 1, 2, 3, 4]))
    assert first.tolist() == [2, 3]
    second = method.update_radii(first, torch.tensor([10.0, 11, 12, 13, 14]))
    assert second.tolist() == pytest.approx([3, 4])


def test_weights_of_trust_and_margin_change_the_fit(fit: Callable[..., TrustMAE]) -> None:
    slots = [
        fit(replace(TINY, trust_weight=trust, margin_weight=margin)).network.slots.detach()
        for trust, margin in ((0.1, 0.1), (0.0, 0.1), (0.1, 0.0))
    ]
    assert not torch.equal(slots[0], slots[1])
    assert not torch.equal(slots[0], slots[2])


def test_images_are_averaged_before_the_network(fit: Callable[..., TrustMAE], random_images: Any) -> None:
    method = fit(replace(TINY, downsample=2, n_slots=4))
    images = random_images(2, (64, 64), seed=3)
    original, restored, nearest = method.reconstruct(images)
    assert original.shape == restored.shape == (2, 3, 32, 32)
    assert nearest.shape == (2, 2, 2)
    assert_close(original[0, 0, 0, 0], images[0, 0, :2, :2].mean())
    assert method.predict(images).maps.shape == (2, 64, 64)
    pictures = method.explain(images)
    assert {name: picture.shape for name, picture in pictures.items()} == {
        "reconstruction": (2, 3, 64, 64), "reconstruction error": (2, 64, 64),
        "distance to the nearest slot": (2, 64, 64),
    }  # fmt: skip


def test_too_few_latent_vectors_raise_an_error(fit: Callable[..., TrustMAE]) -> None:
    with pytest.raises(BenchError, match=r"n_slots must be <= 16, the latent vectors.*got 17"):
        fit(replace(TINY, n_slots=17), count=1)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        ((64, 72), {}, "multiples of 16"), ((64, 48), {"downsample": 2}, "multiples of 32"),
        ((64, 64), {"n_slots": 2}, "n_slots"), ((64, 64), {"inner": 0.99}, "inner"),
        ((64, 64), {"outer": 1.1}, "outer"),
        ((64, 64), {"perceptual_window": 2}, "perceptual_window"), ((64, 64), {"warmup_epochs": 3}, "warmup_epochs"),
        ((64, 64), {"radius_momentum": 1.0}, "radius_momentum"),
    ],
)  # fmt: skip
def test_invalid_settings_raise_an_error(size: tuple[int, int], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        TrustMAE(replace(TINY, **changes), replace(SETUP, size=size))
