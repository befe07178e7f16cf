"""DifferNet: features, flow, loss, scores, gradient map and one step of the authors' code; its rotations."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.differnet import DifferNet, Settings
from bench.methods.parts.differentiable_features import AlexNet, differentiable_stages
from bench.methods.parts.flows import CouplingBlock
from bench.methods.parts.rotation import rotate
from bench.training import TrainingStep

CPU = torch.device("cpu")
SETUP = Setup((64, 64), CPU, seed=0)
TINY = Settings(
    backbone="tf_efficientnet_lite0", blocks=2, width=16, epochs=3, batch_size=2, transforms=2, test_transforms=3,
    map_transforms=2,
)  # fmt: skip
REFERENCE = Settings(blocks=3, width=32, test_transforms=4, test_rotations="fixed", map_transforms=4)


@pytest.fixture
def reference(load_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return load_reference("differnet")


@pytest.fixture
def weights(tmp_path: Path, fill_by_hash: Callable[..., None]) -> Path:
    """A folder with an AlexNet whose weights are those of the reference."""
    network = AlexNet()
    fill_by_hash(network)
    classifier = {"classifier.6.bias": torch.zeros(1000)}
    save_file(network.state_dict() | classifier, tmp_path / "alexnet-reference.safetensors")
    return tmp_path


@pytest.fixture
def method(weights: Path, by_hash: Callable[[int, int], Tensor]) -> DifferNet:
    """A DifferNet with the weights of the reference."""
    method = DifferNet(REFERENCE, Setup((256, 256), CPU, seed=0, weights=weights))
    network = method.build_network()
    position = 0  # in the reference's state dict, where five tensors of an unused batch norm follow each network
    for block in network:
        for conditioner in (block.conditioner1, block.conditioner2):
            for name, value in conditioner.state_dict().items():
                uniform = by_hash(value.numel(), position).view(value.shape)
                scale = (6 / value.shape[1]) ** 0.5 if name.endswith("weight") else 0.1
                value.copy_(uniform * scale * (0.1 if name == "6.weight" else 1))
                position += 1
            position += 5
    method.network = network
    return method


def quarter_turns(images: Tensor) -> Tensor:
    """Four copies of each image."""
    return torch.stack([torch.rot90(image, turns, (1, 2)) for image in images for turns in range(4)])


def test_features_and_latent_values_equal_the_authors_code(
    method: DifferNet, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    features = method.features(method._normalize(quarter_turns(reference["images"])))
    assert_relative(features, reference["features"])
    for block, permutation in zip(method.network, reference["permutations"], strict=True):
        assert torch.equal(block.permutation, permutation.long())
    latent, log_determinant = method.network(reference["features"])
    assert_relative(latent, reference["z"])
    assert_relative(log_determinant, reference["log_jacobian"])


def test_scores_and_gradient_map_equal_the_authors_code(
    method: DifferNet, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    prediction = method.predict(reference["images"])
    assert_relative(prediction.scores, reference["scores"])
    assert_relative(prediction.maps[1, ::4, ::4], reference["gradient_map"], 1e-2)


def test_loss_gradients_and_a_step_equal_the_authors_code(
    method: DifferNet, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    network, features = method.network, reference["features"]
    training = TrainingStep(
        method.setup, torch.optim.Adam, network.parameters(), lr=REFERENCE.lr, betas=REFERENCE.betas,
        eps=REFERENCE.eps, weight_decay=REFERENCE.weight_decay,
    )  # fmt: skip
    loss = method.loss(network, features)
    assert_close(loss.detach().double(), reference["loss"], rtol=1e-4, atol=0)
    training.minimize(loss, 8)
    assert_relative(network[0].conditioner1[0].weight.grad[:8, :32], reference["grad_first"], 1e-3)
    assert_relative(network[2].conditioner2[6].bias.grad, reference["grad_last_bias"], 1e-3)
    after = method.loss(network, features).detach().double()
    assert_close(after, reference["loss_after_one_step"], rtol=1e-4, atol=0)


@pytest.fixture
def tiny(in_memory: Callable[..., object]) -> DifferNet:
    method = DifferNet(TINY, SETUP)
    method.fit(in_memory(torch.rand(3, 3, 64, 64)), lambda *_: None)
    return method


def test_batched_scores_and_maps_equal_a_loop_over_images_and_rotations(
    tiny: DifferNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, network = torch.rand(3, 3, 64, 64), tiny.network
    monkeypatch.setattr("bench.methods.differnet.COPIES", 6)  # two images of three rotations, then one
    prediction = tiny.predict(images)
    angles = tiny._test_angles
    assert len(angles.unique()) == 3
    assert (angles.abs() <= 180).all()
    for image, score, map_ in zip(images, prediction.scores, prediction.maps, strict=True):
        values, gradients = [], []
        for angle in angles:
            copy = rotate(image[None], angle[None], "nearest")
            values.append(network(tiny.features(tiny._normalize(copy)))[0].square().mean())
        assert_close(score, torch.stack(values).mean().detach(), rtol=1e-4, atol=1e-6)
        for angle in (0.0, 180.0):
            copy = tiny._normalize(rotate(image[None], torch.tensor([angle]), "nearest")).requires_grad_()
            tiny.loss(network, tiny.features(copy)).backward()
            gradients.append(rotate(copy.grad / 2, torch.tensor([-angle]), "bicubic"))
        smooth = gaussian_filter(torch.cat(gradients).numpy(), (0, 0, 3, 3))
        expected = torch.from_numpy(smooth).abs().mean(dim=(0, 1))
        assert_close(map_, expected, rtol=1e-3, atol=1e-8)


def test_random_rotations_depend_on_test_seed_only() -> None:
    angles = [DifferNet(replace(TINY, test_seed=seed), SETUP)._test_angles for seed in (0, 0, 1)]
    assert torch.equal(angles[0], angles[1])
    assert not torch.equal(angles[0], angles[2])
    assert_close(
        DifferNet(replace(TINY, test_rotations="fixed"), SETUP)._test_angles, torch.tensor([0.0, 120.0, 240.0])
    )


def test_cached_rotations_are_drawn_from_the_fixed_ones(in_memory: Callable[..., object]) -> None:
    method = DifferNet(replace(TINY, train_rotations=4, transforms=4), SETUP)
    image, feature_batches = torch.rand(1, 3, 64, 64), []
    loss = method.loss
    method.loss = lambda network, features: (feature_batches.append(features), loss(network, features))[1]
    method.fit(in_memory(image), lambda *_: None)
    expected = method.features(method._normalize(quarter_turns(image)))
    assert_close(feature_batches[0].sort(dim=0).values, expected.sort(dim=0).values, rtol=1e-4, atol=1e-5)
    assert not torch.equal(feature_batches[0], feature_batches[1])


def test_training_reduces_the_loss(in_memory: Callable[..., object]) -> None:
    method, losses = DifferNet(replace(TINY, epochs=15, train_rotations=4, lr=1e-3), SETUP), []
    method.fit(in_memory(torch.rand(4, 3, 64, 64)), lambda _done, _total, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.01


def test_differentiable_stages_equal_those_of_the_backbone(tiny: DifferNet) -> None:
    images, backbone = torch.rand(2, 3, 64, 64), tiny.pooled._backbone
    inputs = ((images - backbone.mean) / backbone.std).requires_grad_()
    stages = differentiable_stages(backbone, inputs)
    assert_close(stages[0].detach(), backbone(images)[0])
    stages[0].sum().backward()
    assert inputs.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_info_and_hashes_name_alexnets_file(method: DifferNet, weights: Path) -> None:
    hashes = DifferNet.file_hashes(REFERENCE, weights)
    info = method.info()
    assert info["backbone_source"] == "file alexnet-reference.safetensors"
    assert hashes == {"backbone": info["backbone_sha256"]}
    assert len(info["backbone_sha256"]) == 64


def test_missing_or_damaged_weights_of_alexnet_raise_an_error(tmp_path: Path) -> None:
    setup = replace(SETUP, weights=tmp_path)
    with pytest.raises(BenchError, match="must be one file in the weights folder, got 0"):
        DifferNet(Settings(), setup)
    torch.save({}, tmp_path / "alexnet-owt-7be5be79.pth")
    with pytest.raises(BenchError, match="must begin with 7be5be79"):
        DifferNet(Settings(), setup)
    (tmp_path / "alexnet-owt-7be5be79.pth").unlink()
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet.safetensors")
    with pytest.raises(BenchError, match=r"lacks features\.0\.bias"):
        DifferNet(Settings(), setup)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"blocks": 0}, "blocks"), ({"train_rotations": 1}, "train_rotations"), ({"map_transforms": 0}, "map_transforms")],
)
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_the_default_flow_has_eight_blocks_of_two_networks() -> None:
    with torch.device("meta"):
        blocks = [CouplingBlock(torch.arange(768), Settings().width) for _ in range(Settings().blocks)]
    per_network = 384 * 2048 + 2048 + 2 * (2048 * 2048 + 2048) + 2048 * 768 + 768
    assert sum(parameter.numel() for block in blocks for parameter in block.parameters()) == 16 * per_network
    copies = 4 * 24 * 25 * 448 * 448  # of 24 images, in values
    assert DifferNet.estimate_memory(Settings(), (448, 448), 200) == 16 * 16 * per_network + 4 * copies
