"""CFA against the reference data, its loss worked out by hand, and features before the activation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.cfa import CFA, Descriptor, Settings, join
from bench.methods.parts.backbone import Backbone
from bench.methods.parts.features import FrozenFeatures

SETUP = Setup((64, 64), torch.device("cpu"), seed=0)
RESNET18 = Settings(backbone="resnet18.tv_in1k", descriptor_reduction=2, batch_size=2)  # of the reference data
TINY = Settings(
    backbone="tf_efficientnet_lite0", stages=(2, 3), features="stage", descriptor_reduction=4, epochs=3, batch_size=2
)
Reference = dict[str, Tensor]


@pytest.fixture(scope="module")
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("cfa")


@pytest.fixture
def method(
    reference: Reference, shared: Path, by_rule: Callable[..., Tensor], in_memory: Callable[[Tensor], object]
) -> CFA:
    """The method with the descriptor of the reference data, and the memory of its training images."""
    method = CFA(RESNET18, replace(SETUP, weights=shared / "weights"))
    network = method.build_network()
    network.projection.weight.data = by_rule("weight", (224, 450, 1, 1), 0).flatten(1)
    network.projection.bias.data = by_rule("bias", (224,), 1)
    images = in_memory(reference["train"])
    features = FrozenFeatures(method.extract, images, setup=SETUP)  # type: ignore[arg-type]
    method.network, method.memory = network, method.compute_memory(network, features, 6)
    return method


# ---- The reference data: numbers computed with the authors' code ----


def test_features_memory_and_descriptors_equal_the_reference(
    method: CFA, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    for i, stage in enumerate(method.backbone(reference["test"]), start=1):
        assert_relative(stage, reference[f"feature_{i}"])
    assert_relative(method.memory, reference["centres"])
    descriptors = method.describe(method.network, join(method.extract(reference["test"][:1])))
    assert_relative(descriptors.T.view(224, 16, 16), reference["descriptor_first"])


@torch.no_grad()
def test_scores_and_maps_equal_the_reference(
    method: CFA, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    distance, weight = method.distances(reference["test"])
    nearest = reference["nearest"]
    assert_relative(distance, nearest[..., 0])
    assert_relative(weight, nearest.neg().softmax(dim=3)[..., 0])
    assert_relative(distance * weight, reference["score_grid"])
    prediction = method.predict(reference["test"])
    assert_relative(prediction.maps, reference["map"])
    assert_relative(prediction.scores, reference["score"])


@pytest.mark.parametrize("case", range(4))
def test_losses_and_gradients_equal_the_reference(
    method: CFA, reference: Reference, case: int, assert_relative: Callable[..., None]
) -> None:
    network = method.network
    network.radius.data.fill_(reference["radii"][case])
    loss = method.loss(network, join(method.extract(reference["train"][:2])))
    loss.backward()
    assert network.radius.grad is not None
    assert network.projection.weight.grad is not None
    assert_relative(loss, reference["train_loss"][case])
    assert_relative(network.radius.grad, reference["radius_grad"][case], tolerance=1e-3)
    assert_relative(network.projection.weight.grad.norm(), reference["weight_grad_norm"][case], tolerance=1e-3)


# ---- Loss, descriptor and features ----


@pytest.mark.parametrize(
    ("radius", "expected"),
    [
        (0.5, ((1 - 0.25) + (4 - 0.25)) / 2),  # attraction to the squared distances 1 and 4; nothing repels
        (4.0, (16 - 9 - 0.1) / 2),  # repulsion from the squared distance 9, not from 25; nothing attracts
    ],
)
def test_the_loss_of_one_feature_is_worked_out_by_hand(radius: float, expected: float) -> None:
    method = CFA(replace(TINY, n_neighbors=2, n_hard_negatives=2, loss_weight=1.0), SETUP)
    method.memory = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    method.describe = lambda *_: torch.zeros(1, 2)  # type: ignore[method-assign]
    network = Descriptor(1, 2, radius)
    assert_close(method.loss(network, torch.empty(0)), torch.tensor(expected))


def test_a_descriptor_depends_on_row_and_column() -> None:
    network = Descriptor(1, 2, 1e-5)
    network.projection.weight.data = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    network.projection.bias.data.zero_()
    rows, columns = network(torch.zeros(1, 1, 3, 2))[0].T
    assert rows.tolist() == [-1, -1, 0, 0, 1, 1]
    assert columns.tolist() == [-1, 1, -1, 1, -1, 1]


@pytest.mark.parametrize("architecture", ["resnet18", "resnet26"])  # with basic blocks, with bottlenecks
def test_features_before_the_activation_have_the_stages_as_their_positive_part(architecture: str) -> None:
    images = torch.rand(2, 3, 64, 64, generator=Generator().manual_seed(1))
    settings = replace(TINY, backbone=f"random:{architecture}", stages=(1, 2, 3), features="pre_activation")
    changed, usual = CFA(settings, SETUP).backbone, Backbone.from_setup(settings.backbone, (1, 2, 3), SETUP)
    generator = Generator().manual_seed(2)  # timm's initial weights of residual branches are zero
    for one, other in zip(changed.parameters(), usual.parameters(), strict=True):
        one.data = other.data = 0.1 * torch.randn(one.shape, generator=generator)
    for stage, expected in zip(changed(images), usual(images), strict=True):
        assert_close(stage.relu(), expected)
        assert (stage < 0).float().mean() > 0.1


def test_joined_features_are_averages_on_the_first_grid() -> None:
    method, images = CFA(TINY, SETUP), torch.rand(2, 3, 64, 64)
    parts = [F.avg_pool2d(stage, 3, 1, 1) for stage in method.backbone(images)]
    expected = [F.interpolate(part, (8, 8), mode="bilinear", align_corners=False) for part in parts]
    assert_close(join(method.extract(images)), torch.cat(expected, dim=1), rtol=1e-4, atol=1e-4)


def test_the_memory_is_the_mean_output_of_the_untrained_descriptor(in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(5, 3, 64, 64, generator=Generator().manual_seed(1))  # the last batch is incomplete
    method = CFA(TINY, SETUP)
    method.fit(in_memory(images), lambda *_: None)  # type: ignore[arg-type]
    untrained = method.initialize(method.build_network)
    outputs = torch.stack([untrained(join(method.extract(image[None])))[0] for image in images])
    assert_close(method.memory, outputs.mean(dim=0), rtol=1e-4, atol=1e-4)


# ---- Fit ----


def test_training_reduces_the_loss_and_changes_the_radius(in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(4, 3, 64, 64, generator=Generator().manual_seed(1))
    method, losses = CFA(replace(TINY, epochs=20), SETUP), list[float]()
    method.fit(in_memory(images), lambda _done, _total, loss: losses.append(loss or 0.0))  # type: ignore[arg-type]
    assert losses[-1] < 0.8 * losses[0]
    assert float(method.info()["radius"]) > 1e-3


def test_kmeans_reduces_the_memory(in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(3, 3, 64, 64, generator=Generator().manual_seed(1))
    method = CFA(replace(TINY, memory_reduction=8), SETUP)
    method.fit(in_memory(images), lambda *_: None)  # type: ignore[arg-type]
    assert method.memory.shape == (8, 38)
    assert method.predict(images).maps.isfinite().all()


def test_a_memory_that_is_too_small_is_an_error(in_memory: Callable[[Tensor], object]) -> None:
    method = CFA(replace(TINY, memory_reduction=16), SETUP)
    with pytest.raises(BenchError, match="at least n_neighbors"):
        method.fit(in_memory(torch.rand(2, 3, 64, 64)), lambda *_: None)  # type: ignore[arg-type]


def test_pre_activations_of_another_architecture_are_errors() -> None:
    with pytest.raises(BenchError, match="requires a ResNet"):
        CFA(replace(TINY, features="pre_activation"), SETUP)


@pytest.mark.parametrize("changes", [{"radius": 0.0}, {"n_neighbors": 0}, {"loss_weight": 0.0}], ids=str)
def test_invalid_settings_are_errors(changes: dict[str, float]) -> None:
    with pytest.raises(BenchError, match=next(iter(changes))):
        replace(TINY, **changes)
