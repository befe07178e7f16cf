"""MKD: both networks, loss, score and gradient maps of the authors' code; the cloner's layout and the maps by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.mkd import MKD, Settings
from bench.methods.parts.cloner import Cloner, guided_relu

CPU = torch.device("cpu")
SETUP = Setup((64, 64), CPU, seed=0)
REFERENCE = Settings(backbone="random:vgg16", gradients="vanilla")
TINY = Settings(
    backbone="tf_efficientnet_lite0", stages=(0, 1, 2), normalize=True, width=4, epochs=3, batch_size=2, score_stages=2
)


@pytest.fixture(scope="module")
def vgg16() -> MKD:
    """An MKD on VGG16 with random weights."""
    return MKD(REFERENCE, Setup((128, 128), CPU, seed=0))


@pytest.fixture
def method(vgg16: MKD, by_rule: Callable[..., Tensor], fill_by_rule: Callable[..., None]) -> MKD:
    """An MKD with the weights of the reference."""
    for position, value in enumerate(vgg16.backbone.network.state_dict().values()):
        value.copy_(by_rule("weight" if value.ndim > 1 else "bias", value.shape, position))
    cloner = vgg16.build_cloner()
    fill_by_rule(cloner, "mkd", "cloner")
    vgg16.cloner = cloner.eval()
    vgg16.settings = REFERENCE
    return vgg16


@pytest.fixture
def reference(load_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return load_reference("mkd")


def test_stages_and_scores_equal_the_authors_code(
    method: MKD, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    images = reference["images"]
    targets, stages = method._extract(images), method.cloner(images)
    for number, (target, stage) in enumerate(zip(targets, stages, strict=True), start=2):
        assert_relative(target.mean(dim=(2, 3)), reference[f"source_{number}"])
        assert_relative(stage.mean(dim=(2, 3)), reference[f"cloner_{number}"])
        assert_relative(target.mean(dim=(1, 2, 3)), reference["source_means"][:, number - 2])
        assert_relative(target.flatten(1).std(dim=1), reference["source_stds"][:, number - 2], 1e-3)
    assert_relative(targets[-1], reference["source_5_full"])
    assert_relative(method.predict(images).scores, reference["score"])


def test_gradient_maps_equal_the_authors_code(method: MKD, reference: dict[str, Tensor]) -> None:
    images = reference["images"].clone().requires_grad_()
    score = method.discrepancy(method._pooled(images)[-3:], method.cloner(images)[-3:])
    (gradient,) = torch.autograd.grad(score.sum(), images)
    difference = (gradient - reference["input_gradient"]).abs() / reference["input_gradient"].abs().max()
    assert difference.flatten().quantile(0.999) < 1e-3
    for gradients in ("vanilla", "guided"):
        method.settings = replace(REFERENCE, gradients=gradients)
        difference = (method.predict(reference["images"]).maps - reference[f"map_{gradients}"]).abs()
        assert difference.max() < 2e-3 * reference[f"map_{gradients}"].max()


def test_loss_and_gradients_equal_the_authors_code(method: MKD, reference: dict[str, Tensor]) -> None:
    images, cloner = reference["images"], method.cloner.train()
    targets = method._extract(images)
    loss = method.loss(cloner, images, targets)
    assert_close(loss.detach().double(), reference["train_loss"], rtol=1e-4, atol=0)
    expected = reference["train_cos"].sum() + 0.5 * reference["train_mse"].sum()
    assert_close(loss.detach().double(), expected, rtol=1e-4, atol=0)
    loss.backward()
    norms = torch.stack([parameter.grad.norm() for parameter in cloner.parameters()])
    assert_close(norms.double(), reference["grad_norms"], rtol=0, atol=5e-3 * float(reference["grad_norms"].max()))


def test_the_cloner_of_vgg16_has_its_thin_layout() -> None:
    cloner = Cloner((128, 256, 512, 512), (4, 8, 16, 32), 16)
    widths = [module.out_channels for module in cloner.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [16, 16, 16, 128, 16, 16, 256, 16, 16, 512, 16, 16, 512]
    assert sum(parameter.numel() for parameter in cloner.parameters()) == 343_984
    stages = cloner(torch.rand(2, 3, 64, 96))
    assert [tuple(stage.shape[1:]) for stage in stages] == [(128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]


def test_a_cloner_of_width_0_has_the_layout_of_vgg16() -> None:
    cloner = Cloner((128, 256, 512, 512), (4, 8, 16, 32), 0)
    widths = [module.out_channels for module in cloner.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def test_guided_relu_passes_positive_gradients_of_positive_values() -> None:
    values = torch.tensor([-1.0, 1.0, 2.0, -2.0], requires_grad=True)
    output = guided_relu(values)
    output.backward(torch.tensor([3.0, 4.0, -5.0, -6.0]))
    assert torch.equal(output, torch.tensor([0.0, 1.0, 2.0, 0.0]))
    assert torch.equal(values.grad, torch.tensor([0.0, 4.0, 0.0, 0.0]))


def test_the_discrepancy_by_hand() -> None:
    target, stage = torch.tensor([[3.0, 4.0]]).view(1, 2, 1, 1), torch.tensor([[4.0, 3.0]]).view(1, 2, 1, 1)
    method = MKD(replace(TINY, mse_weight=0.5), SETUP)
    assert_close(method.discrepancy([target, target], [stage, target]), torch.tensor([1 - 24 / 25 + 0.5]))


@pytest.fixture
def tiny(in_memory: Callable[..., object]) -> MKD:
    method = MKD(TINY, SETUP)
    method.fit(in_memory(torch.rand(3, 3, 64, 64)), lambda *_: None)
    return method


@pytest.mark.parametrize("gradients", ["vanilla", "guided", "smooth"])
@pytest.mark.parametrize("map_range", ["image", "none"])
def test_maps_equal_a_loop_over_images(tiny: MKD, gradients: str, map_range: str) -> None:
    tiny.settings = replace(TINY, gradients=gradients, map_range=map_range, smooth_samples=2)
    images, generator = torch.rand(2, 3, 64, 64), torch.Generator().manual_seed(0)
    noise = [torch.randn(3, 64, 64, generator=generator) for _ in range(2)]
    activation = guided_relu if gradients == "guided" else F.relu

    def map_of(inputs: Tensor) -> np.ndarray:
        inputs = inputs.clone().requires_grad_()
        score = tiny.discrepancy(tiny._pooled(inputs)[-2:], tiny.cloner(inputs, activation)[-2:])
        values = torch.autograd.grad(score.sum(), inputs)[0][0].abs().sum(dim=0).numpy()
        low, high = values.min(), np.percentile(values, 99)
        return np.clip((values - low) / (high - low), 0, 1) if map_range == "image" else values

    maps = tiny.predict(images).maps
    for image, map_ in zip(images, maps, strict=True):
        inputs = (image[None] - tiny.backbone.mean) / tiny.backbone.std
        std = (0.05 / (inputs.max() - inputs.min())) ** 2
        expected = map_of(inputs)
        if gradients == "smooth":
            expected = (map_of(inputs + std * noise[0]) + map_of(inputs + std * noise[1])) / 2
        if gradients != "vanilla" and map_range == "image":
            expected = (expected - expected.min()) / (expected.max() - expected.min())
        expected = gaussian_filter(expected, 4)
        assert np.abs(map_.numpy() - expected).max() < 2e-3 * expected.max()


def test_training_reduces_the_loss_and_leaves_the_teacher_unchanged(in_memory: Callable[..., object]) -> None:
    method, losses = MKD(replace(TINY, epochs=20, downsample=2, mse_weight=0.0), SETUP), []
    before = [parameter.clone() for parameter in method.backbone.parameters()]
    method.fit(in_memory(torch.rand(4, 3, 64, 64)), lambda _done, _total, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert all(map(torch.equal, before, method.backbone.parameters()))


def test_estimated_memory_per_image_by_hand() -> None:
    """Three values per output of each convolution, and the targets."""
    settings = Settings(backbone="random:vgg16")
    per_image = (MKD.estimate_memory(settings, (128, 128), 2) - MKD.estimate_memory(settings, (128, 128), 1)) / 4
    outputs = 32 + (16 + 128) / 4 + (32 + 256) / 16 + (32 + 512) / 64 + (32 + 512) / 256  # per pixel
    targets = 128 * 32**2 + 256 * 16**2 + 512 * 8**2 + 512 * 4**2
    assert per_image == 3 * 128**2 * outputs + targets


@pytest.mark.parametrize(
    ("changes", "message"), [({"score_stages": 4}, "score_stages"), ({"mse_weight": -1.0}, "mse_weight")]
)
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_sizes_that_are_not_a_multiple_raise_an_error() -> None:
    with pytest.raises(BenchError, match="multiples of 16 pixels"):
        MKD(TINY, replace(SETUP, size=(64, 72)))
