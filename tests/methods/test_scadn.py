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
from bench.methods import scadn
from bench.methods.parts.inpainting_gan import Discriminator, Generator, InstanceNorm
from bench.methods.parts.masks import stripe_masks
from bench.methods.scadn import SCADN, Settings

CPU = torch.device("cpu")
SETUP = Setup((32, 48), CPU, seed=0)
TINY = Settings(width=2, blocks=1, scales=(1, 2), epochs=2, batch_size=2, lr=1e-3)


def pictures(count: int = 3, seed: int = 1, size: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fit(in_memory: Any) -> Callable[..., SCADN]:
    def fitted(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> SCADN:
        method = SCADN(settings, setup)
        method.fit(in_memory(pictures(4) if images is None else images), lambda *_: None)
        return method

    return fitted


@pytest.fixture(scope="module")
def tiny(fit: Callable[..., SCADN]) -> SCADN:
    return fit()


# ---- The authors' code ----


@pytest.fixture(scope="module")
def stored(
    contiguous_reference: Callable[[str], dict[str, Tensor]], unpack_bits: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    tensors = contiguous_reference("scadn")
    return tensors | {"masks": unpack_bits(tensors["masks"])}


@pytest.fixture
def code(formula_weights: Callable[..., dict[str, Tensor]]) -> SCADN:
    """Return the method with the generator of the reference; a bias before an instance norm has no effect."""
    method = SCADN(Settings(width=4), Setup((128, 128), CPU, seed=0))
    network = Generator(4, 8)
    ours = [name for name in network.state_dict() if name.endswith("weight")]
    sides = [
        (4, 3, 7),
        (8, 4, 4),
        (16, 8, 4),
        (32, 16, 4),
        *[(32, 32, 3)] * 16,
        (16, 32, 3),
        (8, 16, 3),
        (4, 8, 3),
        (3, 4, 7),
    ]
    shapes = []
    for name, (after, before, side) in zip(ours, sides, strict=True):
        shapes += [(name, (after, before, side, side)), (name.replace("weight", "bias"), (after,))]
    tensors = formula_weights(shapes, 1.0)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    method.network = network.eval()
    return method


def power_method_of_the_code(norm: Any, weight: Tensor, iterations: int) -> None:
    """Iterate in the order of torch's former spectral norm: v first, then u."""
    for _ in range(iterations):
        norm._v = F.normalize(torch.mv(weight.T, norm._u), dim=0, eps=norm.eps)
        norm._u = F.normalize(torch.mv(weight, norm._v), dim=0, eps=norm.eps)


def reference_discriminator(
    formula_weights: Callable[..., dict[str, Tensor]], uniform: Callable[[int, int], Tensor]
) -> Discriminator:
    network = Discriminator(4)
    convolutions = [layer for layer in network.layers if isinstance(layer, torch.nn.Conv2d)]
    shapes = [(str(i), tuple(layer.parametrizations.weight.original.shape)) for i, layer in enumerate(convolutions)]
    with torch.no_grad():
        for layer, weight in zip(convolutions, formula_weights(shapes, 1.0).values(), strict=True):
            layer.parametrizations.weight.original.copy_(weight)
            norm = layer.parametrizations.weight[0]
            for buffer in (norm._u, norm._v):
                buffer.copy_(F.normalize(uniform(len(buffer), 1000), dim=0))
    return network


def test_masks_are_those_of_the_code(stored: dict[str, Tensor]) -> None:
    assert torch.equal(torch.cat([stripe_masks(128, 128, scale) for scale in range(4)]), stored["masks"])


def test_losses_of_both_networks_match_the_code(
    code: SCADN, stored: dict[str, Tensor], formula_weights: Any, uniform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    discriminator = reference_discriminator(formula_weights, uniform)
    norm_class = type(discriminator.layers[0].parametrizations.weight[0])
    monkeypatch.setattr(norm_class, "_power_method", power_method_of_the_code)
    original, masks = stored["images"][:2], stored["masks"][stored["train_masks"]]
    restored = code.restore_images(code.network, original, masks)
    assert_close(restored.detach(), stored["train_restored"], rtol=1e-3, atol=1e-3)
    loss = code.discriminator_loss(discriminator, original, restored.detach())
    losses = code.generator_losses(discriminator, original, restored, masks)
    assert_close(float(loss.detach()), float(stored["loss_l_dis"]), rtol=1e-4, atol=0)
    assert_close(float(losses["restoration"].detach()), float(stored["loss_l_l1"]), rtol=1e-4, atol=0)
    assert_close(1e-3 * float(losses["adversarial"].detach()), float(stored["loss_l_gen_gan"]), rtol=1e-4, atol=0)
    assert_close(float(losses["total"].detach()), float(stored["loss_l_gen_sum"]), rtol=1e-4, atol=0)


def test_error_maps_chosen_scales_and_scores_match_the_code(code: SCADN, stored: dict[str, Tensor]) -> None:
    images = stored["images"]
    with torch.no_grad():
        errors = code.errors(images)[1]
    assert_close(errors, stored["error_maps"], rtol=1e-3, atol=1e-3)
    code.normal_errors = errors[:, :2].mean(dim=(1, 2, 3))
    assert_close(code.normal_errors.double(), stored["scale_norm"], rtol=1e-4, atol=0)
    assert code.chosen_scales(errors).tolist() == stored["chosen_scale"].tolist()
    assert_close(code.predict(images).scores, stored["scores"], rtol=1e-4, atol=0)


def test_default_sizes_have_the_parameters_of_the_code() -> None:
    with torch.device("meta"):
        generator, discriminator = Generator(64, 8), Discriminator(64)
    biases = (64 + 128 + 256 + 512) + 16 * 512 + (256 + 128 + 64)  # before instance norms
    assert sum(parameter.numel() for parameter in generator.parameters()) == 42_077_955 - biases
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_763_776
    assert discriminator(torch.empty(1, 3, 512, 512, device="meta")).shape == (1, 1, 62, 62)


# ---- Masks and passes ----


@torch.no_grad()
def slow_errors(method: SCADN, image: Tensor) -> Tensor:
    """Return the error map of each scale (scales, h, w) of one image (3, h, w), mask by mask and pixel by pixel."""
    maps = torch.zeros(len(method.test_masks), *image.shape[1:])
    for scale, masks in enumerate(method.test_masks):
        for mask in masks:
            output = method.network((image * ~mask + mask * method.settings.fill)[None])[0]
            for row, column in mask.nonzero().tolist():
                error = float(((output - image)[:, row, column] ** 2).mean())
                maps[scale, row, column] = max(maps[scale, row, column], error)
    return maps


@pytest.mark.parametrize("passes", [1, 5, 100])
def test_batched_passes_equal_a_loop(tiny: SCADN, monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    monkeypatch.setattr(scadn, "passes_per_batch", lambda *_: passes)
    images = pictures(2)
    with torch.no_grad():
        errors = tiny.errors(images)[1]
    assert_close(errors[:, 1], slow_errors(tiny, images[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_instance_norm_of_channels_last_tensors_equals_the_one_of_torch(scale: float) -> None:
    features = 0.5 + scale * torch.randn(2, 8, 12, 20, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.instance_norm(features.double())
    normalized = InstanceNorm()(features.contiguous(memory_format=torch.channels_last))
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert_close(normalized, expected.float(), rtol=1e-4, atol=1e-4)


def test_masked_pixels_do_not_reach_the_network(tiny: SCADN) -> None:
    masks = tiny.test_masks[0, :1]
    images = pictures(1).requires_grad_()
    tiny.restore_images(tiny.network, images, masks).sum().backward()
    assert not images.grad[0, :, masks[0]].any()
    assert images.grad[0, :, ~masks[0]].any()


def test_scale_with_the_largest_excess_over_good_images_is_chosen(tiny: SCADN) -> None:
    errors = torch.tensor([[0.5, 0.2], [0.4, 0.4]])[:, :, None, None].expand(2, 2, 32, 48)
    tiny_copy = SCADN(TINY, SETUP)
    tiny_copy.network, tiny_copy.normal_errors = tiny.network, torch.tensor([0.3, 0.3])
    assert tiny_copy.chosen_scales(errors).tolist() == [0, 1]
    tiny_copy.normal_errors = torch.tensor([0.45, 0.3])
    assert tiny_copy.chosen_scales(errors).tolist() == [1, 1]


def test_restoration_loss_weights_masked_pixels(tiny: SCADN) -> None:
    method = SCADN(replace(TINY, adversarial_weight=0.0), SETUP)
    original, restored = torch.zeros(1, 3, 32, 48), torch.ones(1, 3, 32, 48)
    masks = torch.zeros(1, 32, 48, dtype=torch.bool)
    masks[:, :8] = True  # a quarter
    losses = method.generator_losses(Discriminator(2), original, restored, masks)
    assert float(losses["total"]) == pytest.approx((0.75 + 4 * 0.25) / 0.25)


# ---- The method ----


def test_normal_errors_are_the_mean_errors_of_the_training_images(tiny: SCADN) -> None:
    with torch.no_grad():
        errors = tiny.errors(pictures(4))[1]
    assert_close(tiny.normal_errors, errors.mean(dim=(1, 2, 3)), rtol=1e-4, atol=0)


def test_training_reduces_the_loss_and_depends_on_the_seed_alone(in_memory: Any) -> None:
    losses: list[float] = []
    images = 0.1 + 0.1 * pictures(4)
    method = SCADN(replace(TINY, epochs=10, lr=1e-2), SETUP)
    method.fit(in_memory(images), lambda _done, _total, loss: losses.append(loss or 0))
    assert losses[-1] < 0.8 * losses[0]
    before = method.predict(images[:1]).maps
    torch.manual_seed(9)
    method.fit(in_memory(images), lambda *_: None)
    assert torch.equal(method.predict(images[:1]).maps, before)


@pytest.mark.parametrize(
    "changes",
    [{"scales": (1,)}, {"fill": 0.5}, {"blocks": 2}, {"masked_weight": 1.0}, {"adversarial_weight": 0.0},
     {"adversarial_weight": 1.0}, {"scale_choice": "mean"}, {"smoothing": 2.0}, {"downsample": 1, "width": 3}],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_maps(tiny: SCADN, fit: Callable[..., SCADN], changes: dict[str, Any]) -> None:
    maps = fit(replace(TINY, **changes)).predict(pictures()).maps
    assert maps.shape == (3, 32, 48)
    assert torch.isfinite(maps).all()
    assert not torch.equal(maps, tiny.predict(pictures()).maps)


def test_discriminator_learns_with_its_own_rate(fit: Callable[..., SCADN]) -> None:
    settings = replace(TINY, adversarial_weight=1.0, epochs=3)
    slow, fast = (fit(replace(settings, lr_discriminator=lr)).predict(pictures()).maps for lr in (0.0, 1e-2))
    assert not torch.equal(slow, fast)


def test_downsampled_maps_and_pictures_have_the_size_of_the_images(fit: Callable[..., SCADN]) -> None:
    size = (64, 64)
    method = fit(replace(TINY, downsample=2), replace(SETUP, size=size), pictures(2, size=size))
    assert method.predict(pictures(1, size=size)).maps.shape == (1, *size)
    assert {picture.shape[-2:] for picture in method.explain(pictures(1, size=size)).values()} == {size}


def test_explain_shows_masks_restorations_and_errors_of_each_scale(tiny: SCADN) -> None:
    explanation, images = tiny.explain(pictures(2)), pictures(2)
    assert list(explanation) == [
        "mask", "restored 4 stripes", "error 4 stripes", "mask 8 stripes", "restored 8 stripes", "error 8 stripes",
    ]  # fmt: skip
    with torch.no_grad():
        errors = tiny.errors(images)[1]
    assert_close(explanation["error 8 stripes"], errors[1])
    assert torch.equal(explanation["mask"][0].bool(), tiny.test_masks[0, 0])


def test_info_states_passes_and_normal_errors(tiny: SCADN) -> None:
    info = tiny.info()
    assert info["passes"] == 8
    assert info["normal_error_8_stripes"] == pytest.approx(float(tiny.normal_errors[1]))


def test_half_precision_gives_similar_maps(fit: Callable[..., SCADN], tiny: SCADN) -> None:
    maps, expected = (
        method.predict(pictures()).maps for method in (fit(setup=replace(SETUP, precision="bfloat16")), tiny)
    )
    assert maps.dtype == torch.float32
    assert (maps - expected).abs().mean() < 0.2 * expected.mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 0}, "width must be >= 1"), ({"scales": ()}, "one or more"), ({"scales": (5,)}, "at most the side"),
     ({"downsample": 2}, "at least 64"), ({"lr": -1.0}, "lr must be >= 0")],
    ids=str,
)  # fmt: skip
def test_settings_that_contradict_each_other_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        SCADN(replace(TINY, **changes), SETUP)


def test_memory_grows_with_width_and_batch() -> None:
    small = SCADN.estimate_memory(TINY, (32, 48), 1)
    assert small < SCADN.estimate_memory(TINY, (32, 48), 2) < SCADN.estimate_memory(replace(TINY, width=4), (32, 48), 2)
