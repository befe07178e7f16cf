"""FastFlow: latent maps, log-determinants, loss, map and gradients of the public re-implementation, and its fitting."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.fastflow import FastFlow, Flows, Settings

CPU = torch.device("cpu")
SETUP = Setup((64, 64), CPU, seed=0)
TINY = Settings(backbone="tf_efficientnet_lite0", steps=2, epochs=3, batch_size=2)
SHAPES = {"wide_resnet50_2": [(256, 64, 64), (512, 32, 32), (1024, 16, 16)],
          "resnet18": [(64, 64, 64), (128, 32, 32), (256, 16, 16)]}  # fmt: skip


@pytest.fixture
def reference(load_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return load_reference("fastflow")


@pytest.fixture
def method(fill_by_rule: Callable[..., None], reference: dict[str, Tensor]) -> FastFlow:
    """A FastFlow with the weights and the permutations of the reference."""
    method = FastFlow(TINY, SETUP)
    network = method.build_network()
    fill_by_rule(network, "fastflow", "param")
    for stage, flow in enumerate(network.flows):
        for step, block in enumerate(flow):
            block.permutation.copy_(reference[f"permutation_{stage}_{step}"])
    method.network = network.eval()
    return method


def test_latent_maps_and_log_determinants_equal_the_reference(
    method: FastFlow, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    network, stages = method.network, method.extract(reference["images"])
    normed = [norm(stage.contiguous()) for norm, stage in zip(network.norms, stages, strict=True)]
    first_step, log_determinant = network.flows[2][0](normed[2])
    assert_relative(first_step, reference["first_step_of_scale_2"])
    assert_relative(log_determinant, reference["first_step_log_det"])
    for stage, (latent, log_determinant) in enumerate(network(stages)):
        assert_relative(normed[stage], reference[f"normed_{stage}"])
        assert_relative(latent, reference[f"latent_{stage}"])
        assert_relative(log_determinant, reference["log_det"][:, stage])


def test_map_and_score_equal_the_reference(
    method: FastFlow, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    prediction = method.predict(reference["images"])
    assert_relative(prediction.maps, reference["map"])
    assert_relative(prediction.scores, reference["score"])


def test_loss_and_gradients_equal_the_reference(method: FastFlow, reference: dict[str, Tensor]) -> None:
    network = method.network.train()
    loss = method.loss(network, method.extract(reference["images"]))
    assert_close(loss.detach().double(), reference["loss"], rtol=1e-4, atol=0)
    loss.backward()
    norms = torch.stack([parameter.grad.norm() for parameter in network.parameters()])
    expected = reference["grad_norms"]
    assert_close(norms.double(), expected[expected >= 0], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("backbone", "kernels", "layer_norm", "expected"),
    [
        ("wide_resnet50_2", (3, 1), True, 45_007_872),
        ("wide_resnet50_2", (3, 1), False, 45_007_872 - 3_670_016),
        ("resnet18", (3,), True, 5_574_912),
        ("resnet18", (3, 1), True, 3_510_528),
    ],
)
def test_networks_have_the_parameters_of_the_reference(
    backbone: str, kernels: tuple[int, ...], layer_norm: bool, expected: int
) -> None:
    settings = Settings(kernels=kernels, layer_norm=layer_norm)
    with torch.device("meta"):
        network = Flows(settings, SHAPES[backbone])
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_the_map_is_the_mean_density_of_the_stages_by_hand(method: FastFlow, reference: dict[str, Tensor]) -> None:
    expected = torch.zeros(2, 64, 64)
    for latent, _ in method.network(method.extract(reference["images"])):
        density = torch.exp(-latent.square().mean(dim=1) / 2)
        expected -= torch.nn.functional.interpolate(density[:, None], (64, 64), mode="bilinear")[:, 0] / 3
    assert_close(method.predict(reference["images"]).maps, expected.detach(), rtol=1e-4, atol=1e-6)


def test_training_increases_the_likelihood_of_unseen_images(in_memory: Callable[..., object]) -> None:
    images = (torch.rand(6, 3, 64, 64) + 2 * torch.linspace(0, 1, 64)) / 3
    method = FastFlow(replace(TINY, epochs=20), SETUP)
    likelihoods: list[float] = []

    def progress(_done: int, _total: int, _loss: float | None) -> None:
        with torch.no_grad():
            likelihoods.append(-float(method.loss(method.network, method.extract(images[4:]))))

    method.fit(in_memory(images[:4]), progress)
    assert likelihoods[-1] > likelihoods[0] + 1000


def test_an_incomplete_batch_is_used(in_memory: Callable[..., object]) -> None:
    """The re-implementation trains on nothing if there are fewer images than a batch has."""
    images, losses = torch.rand(3, 3, 64, 64), []
    method = FastFlow(replace(TINY, batch_size=32), SETUP)
    method.fit(in_memory(images), lambda _done, _total, loss: losses.append(loss))
    assert losses[-1] < losses[0]


def test_other_alternatives_fit_images_that_are_not_square(in_memory: Callable[..., object]) -> None:
    changes = {"layer_norm": False, "kernels": (3,), "hidden_ratio": 0.16, "downsample": 2}
    method = FastFlow(replace(TINY, **changes), replace(SETUP, size=(64, 96)))
    images = torch.rand(2, 3, 64, 96)
    method.fit(in_memory(images), lambda *_: None)
    maps = method.predict(images).maps
    assert maps.shape == (2, 64, 96)
    assert -1 <= maps.min() < maps.max() <= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"steps": 0}, "steps"), ({"kernels": ()}, "kernels"), ({"kernels": (2,)}, "kernels"), ({"lr": -1.0}, "lr"),
     ({"hidden_ratio": 0.0}, "hidden_ratio")],
)  # fmt: skip
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_estimated_memory_grows_with_the_batch() -> None:
    settings = Settings(backbone="random:resnet18")
    more, less = (FastFlow.estimate_memory(replace(settings, batch_size=batch), (64, 64), 32) for batch in (32, 16))
    values = 64 * 16 * 16 + 128 * 8 * 8 + 256 * 4 * 4
    assert more - less == 16 * 8 * 4 * 7 * values  # images, blocks, bytes, values per feature and block
