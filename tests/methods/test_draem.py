"""DRAEM: both networks, Perlin noise, blending, losses and gradients of the authors' code; its simulated defects."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.draem import DRAEM, Settings, focal_loss, ssim_loss
from bench.methods.parts.draem_networks import ReconstructionNetwork, SegmentationNetwork
from bench.methods.parts.perlin import perlin_noise
from bench.methods.parts.simulated_defects import blend

CPU = torch.device("cpu")
SETUP = Setup((64, 64), CPU, seed=0)
TINY = Settings(reconstruction_width=2, segmentation_width=2, epochs=2, batch_size=2)


@pytest.fixture
def reference(data: Path) -> dict[str, Tensor]:
    with np.load(data / "draem_reference.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind not in "US"}
    images = {key: arrays[key].permute(0, 3, 1, 2).double() / 255 for key in ("images", "textures")}
    return arrays | images


@pytest.fixture
def method(fill_by_hash: Callable[..., None]) -> DRAEM:
    """A DRAEM with the weights of the reference."""
    method = DRAEM(replace(TINY, reconstruction_width=8, segmentation_width=8), SETUP)
    networks = method.build_reconstruction(), method.build_segmentation()
    for network in networks:
        fill_by_hash(network)
    method.reconstruction, method.segmentation = networks[0].eval(), networks[1].eval()
    return method


def test_networks_map_and_score_equal_the_authors_code(
    method: DRAEM, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    images = reference["images"].float()
    assert_relative(method.reconstruction.encode(images), reference["latent"])
    restored = method.reconstruction(images)
    assert_relative(restored, reference["reconstruction"])
    assert_relative(method.segmentation(torch.cat([restored, images], dim=1)), reference["logits"])
    prediction = method.predict(images)
    assert_relative(prediction.maps, reference["maps"])
    assert_relative(prediction.scores, reference["scores"])


def test_perlin_noise_equals_the_authors_code(reference: dict[str, Tensor]) -> None:
    for number in range(3):
        noise = perlin_noise((64, 64), reference[f"perlin{number}_draws"])
        assert_close(noise, reference[f"perlin{number}"], rtol=1e-4, atol=1e-5)


def test_blending_equals_the_authors_code(reference: dict[str, Tensor]) -> None:
    masks = (reference["train_noise"] > 0.5)[:, None] * torch.tensor([1, 1, 0])[:, None, None, None]
    assert torch.equal(masks.to(torch.uint8), reference["train_mask"])
    assert torch.equal(masks.flatten(1).any(dim=1), reference["train_has"] > 0)
    defective = blend(reference["images"], reference["textures"], masks.double(), reference["train_beta"])
    assert_close(defective.float(), reference["train_augmented"], rtol=1e-4, atol=1e-5)


def test_losses_and_gradients_equal_the_authors_code(
    method: DRAEM, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    reconstruction, segmentation = method.reconstruction.double().train(), method.segmentation.double().train()
    augmented, masks = reference["train_augmented"].double(), reference["train_mask"].double()
    losses = method.losses(reconstruction, segmentation, reference["images"], augmented, masks)
    for loss, name in zip(losses, ("l2", "ssim", "focal"), strict=True):
        assert_close(loss.detach(), reference[f"train_{name}"], rtol=1e-5, atol=0)
    total = torch.stack(losses).sum()
    assert_close(total.detach(), reference["train_total"], rtol=1e-5, atol=0)
    total.backward()
    assert_relative(reconstruction.encoder[0][0].weight.grad, reference["grad_rec_first"], 1e-3)
    assert_relative(segmentation.head.weight.grad, reference["grad_seg_last"], 1e-3)


def test_ssim_equals_the_authors_code_and_its_range_follows_the_reconstruction(reference: dict[str, Tensor]) -> None:
    one, two = reference["images"][:1], reference["images"][1:2]
    assert_close(ssim_loss(one, two), reference["ssim_pair"], rtol=1e-5, atol=0)
    for shifted, value_range in ((one - 1.2, 2.0), (one + 129, 255.0)):
        moments = [gaussian_filter(value.numpy(), (0, 0, 1.5, 1.5), mode="constant", truncate=5 / 1.5)
                   for value in (shifted, two, shifted**2, two**2, shifted * two)]  # fmt: skip
        a, b, aa, bb, ab = moments
        c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
        ssim = (2 * a * b + c1) * (2 * (ab - a * b) + c2) / ((a * a + b * b + c1) * (aa - a * a + bb - b * b + c2))
        assert_close(ssim_loss(shifted, two), torch.tensor(1 - ssim.mean()).double(), rtol=1e-5, atol=1e-7)


def test_the_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.0, np.log(3.0)]).view(1, 2, 1, 1)
    for mask, true in ((1.0, 0.75), (0.0, 0.25)):
        p = true * (1 - 1e-5) + (1 - true) * 1e-5 + 1e-5
        expected = torch.tensor(-((1 - p) ** 2) * np.log(p)).float()
        assert_close(focal_loss(logits.float(), torch.full((1, 1, 1, 1), mask)), expected)


def test_networks_have_the_parameters_of_the_authors_code(reference: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        networks = ReconstructionNetwork(128), SegmentationNetwork(64)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts == reference["params_full"].tolist()


def test_the_score_is_the_maximum_of_a_mean_that_counts_zeros_beyond_the_border(method: DRAEM) -> None:
    prediction = method.predict(torch.rand(2, 3, 64, 64))
    padded = np.pad(prediction.maps.numpy(), ((0, 0), (10, 10), (10, 10)))
    means = [[padded[:, i : i + 21, j : j + 21].mean(axis=(1, 2)) for j in range(64)] for i in range(64)]
    assert_close(prediction.scores, torch.from_numpy(np.max(means, axis=(0, 1))), rtol=1e-4, atol=0)


def test_outside_of_the_mask_nothing_changes_and_half_of_the_images_are_clean() -> None:
    method = DRAEM(replace(TINY, rotation_probability=0.0, perlin_threshold=0.2), SETUP)
    images = torch.rand(40, 3, 64, 64)
    clean, defective, masks = method.make_defects(images, images.flip(0), Generator().manual_seed(0))
    assert torch.equal(clean, images)
    assert torch.equal(defective * (1 - masks), images * (1 - masks))
    has_defect = masks.flatten(1).any(dim=1)
    assert 10 <= has_defect.sum() <= 30
    assert ((defective - clean).abs().amax(dim=(1, 2, 3))[has_defect] > 0.01).all()
    opaque = DRAEM(replace(TINY, rotation_probability=0.0, opacity=(1.0, 1.0)), SETUP)
    assert_close(opaque.make_defects(images, images, Generator().manual_seed(0))[1], images)


def test_three_tenths_of_the_images_are_rotated() -> None:
    images = torch.rand(100, 3, 32, 32)
    clean, _, _ = DRAEM(TINY, SETUP).make_defects(images, images, Generator().manual_seed(1))
    is_rotated = (clean != images).flatten(1).any(dim=1)
    assert 15 <= is_rotated.sum() <= 45
    is_black_somewhere = clean[is_rotated].amin(dim=(1, 2, 3)) == 0
    assert is_black_somewhere.float().mean() > 0.8  # at the corners, unless the angle is tiny


def test_a_folder_of_textures_is_used_and_hashed(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "white.png")
    settings = replace(TINY, textures=str(tmp_path), opacity=(0.0, 0.0), clean_fraction=0.0, rotation_probability=0.0)
    method = DRAEM(settings, SETUP)
    images = torch.full((6, 3, 64, 64), 0.4)
    _, defective, masks = method.make_defects(images, images, Generator().manual_seed(0))
    inside = masks.expand_as(defective) > 0
    assert torch.equal(defective[~inside], images[~inside])
    assert not (defective[inside] == images[inside]).all()
    assert set(DRAEM.file_hashes(settings, None)) == {"textures"}
    assert DRAEM.file_hashes(TINY, None) == {}
    with pytest.raises(BenchError, match="textures=DIR"):
        DRAEM(replace(TINY, textures=str(tmp_path / "missing")), SETUP)


def test_training_reduces_the_loss_with_the_rate_of_its_schedule(in_memory: Callable[..., object]) -> None:
    images, losses = torch.rand(1, 3, 32, 32).expand(4, -1, -1, -1).contiguous(), []
    settings = replace(TINY, reconstruction_width=4, segmentation_width=4, epochs=30, lr=5e-3, lr_drop_epochs=(25,))
    method = DRAEM(settings, replace(SETUP, size=(32, 32)))
    method.fit(in_memory(images), lambda _done, _total, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    results = []
    for factor, drops in ((0.0, (2,)), (0.5, (2,)), (0.5, ())):  # with a rate of 0 the second epoch changes no weight
        changed = DRAEM(replace(TINY, lr_factor=factor, lr_drop_epochs=drops), replace(SETUP, size=(32, 32)))
        results.append(weights_by_epoch(changed, in_memory(images)))
    assert torch.equal(results[0][0], results[0][1])
    assert not torch.equal(results[1][0], results[1][1])
    assert not torch.equal(results[1][1], results[2][1])


def weights_by_epoch(method: DRAEM, images: object) -> list[Tensor]:
    weights: list[Tensor] = []
    method.fit(images, lambda *_: weights.append(method.segmentation.head.weight.detach().clone()))
    return weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"opacity": (0.5, 0.2)}, "opacity"), ({"score_window": 4}, "score_window"), ({"clean_fraction": 2.0}, "clean"),
     ({"textures": ""}, "textures")],
)  # fmt: skip
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_sizes_that_are_not_a_multiple_raise_an_error() -> None:
    with pytest.raises(BenchError, match="multiples of 64"):
        DRAEM(replace(TINY, downsample=2), replace(SETUP, size=(64, 96)))


def test_memory_is_estimated_for_full_size() -> None:
    """16 bytes per weight, and more than the outputs of the first blocks per image."""
    estimate = DRAEM.estimate_memory(Settings(), (256, 256), 8)
    assert estimate > 16 * 97_422_725 + 8 * 4 * 256 * 256 * (128 + 64) * 4
