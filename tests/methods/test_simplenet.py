"""SimpleNet against the reference data, its loss and its optimizer worked out by hand."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.simplenet import Discriminator, Settings, SimpleNet, to_rows

CPU = torch.device("cpu")
SETTINGS = Settings(
    backbone="tf_efficientnet_lite0", pretrain_dim=96, target_dim=96, hidden=64
)  # of the reference data
SETUP = Setup((128, 128), CPU, seed=0)
TINY = replace(SETTINGS, pretrain_dim=24, target_dim=24, hidden=16, noise_std=0.4, epochs=4, batch_size=2)
Reference = dict[str, Tensor]
LoadShapes = Callable[[str, str], list[tuple[str, tuple[int, ...]]]]


@pytest.fixture
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("simplenet")


@pytest.fixture
def method(load_shapes: LoadShapes, by_rule: Callable[..., Tensor]) -> SimpleNet:
    """The method with the weights of the reference data."""
    network = Discriminator(96, 64)
    for prefix, module in (("adaptor", network.adaptor), ("discriminator", network.layers)):
        tensors = [by_rule(name, shape, j) for j, (name, shape) in enumerate(load_shapes("simplenet", prefix))]
        keys = [key for key in module.state_dict() if not key.endswith("num_batches_tracked")]
        module.load_state_dict(dict(zip(keys, tensors, strict=True)), strict=False)
    method = SimpleNet(SETTINGS, SETUP)
    method.network = network.eval()
    return method


# ---- The reference data: numbers computed with the authors' code ----


@torch.no_grad()
def test_embeddings_and_scores_equal_the_reference(
    method: SimpleNet, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    embedding = method.embed(reference["images"])
    assert embedding.shape == (2, 96, 16, 16)
    rows = to_rows(embedding)
    assert_relative(rows.view(2, 256, 96), reference["embeddings"])
    assert_relative(method.network.adaptor(rows[:64]), reference["projected_first"])
    assert_relative(-method.patch_scores(reference["images"]).flatten(1), reference["logits"])


def test_maps_and_image_scores_equal_the_reference(
    method: SimpleNet, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    prediction = method.predict(reference["images"])
    assert_relative(prediction.maps, reference["map"])
    assert_relative(prediction.scores, reference["score"])


def test_loss_and_gradients_equal_the_reference(
    method: SimpleNet, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    network = method.network.train()
    rows = to_rows(method.embed(reference["train"]))
    loss = method.loss(network, rows, reference["train_noise"].float())
    assert_relative(loss, reference["train_loss"])
    loss.backward()
    norms = torch.stack([parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None])
    exact_indices = [0, 2, 4, 5, 6]  # the other two are biases before a batch norm: their gradient is zero
    for index in exact_indices:
        assert_relative(norms[index], reference["grad_norms"][index], tolerance=1e-3)


def test_one_optimization_step_equals_the_reference(
    method: SimpleNet, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    network = method.network.train()
    loss = method.loss(network, to_rows(method.embed(reference["train"])), reference["train_noise"].float())
    method.training_step(network).minimize(loss, 2)
    assert_relative(network.layers[3].weight, reference["after_step_tail"])
    assert_relative(network.layers[1].weight, reference["after_step_norm_weight"])
    assert_relative(network.layers[1].running_mean, reference["after_step_running_mean"])
    assert_relative(network.adaptor.weight[:4], reference["after_step_adaptor_row"])


# ---- Loss and optimizer ----


@pytest.mark.parametrize(
    ("good", "noisy", "expected"), [(0.5, -0.5, 0.0), (2.0, -3.0, 0.0), (0.2, -0.1, 0.7), (-1.0, 1.0, 3.0)]
)
def test_the_loss_is_the_hinge_of_the_margin(good: float, noisy: float, expected: float) -> None:
    network = Discriminator(1, 1)
    network.normality = lambda adapted: torch.where(adapted[:, 0] < 5, good, noisy)  # type: ignore[method-assign]
    torch.nn.init.zeros_(network.adaptor.weight)
    torch.nn.init.zeros_(network.adaptor.bias)
    loss = SimpleNet(TINY, SETUP).loss(network, torch.ones(3, 1), torch.full((3, 1), 10.0))
    assert_close(loss, torch.tensor(expected))


def test_the_optimizer_decays_as_adamw_and_adam(method: SimpleNet) -> None:
    """After two steps, the parameters equal those of the two optimizers of the authors' code."""
    expected = deepcopy(method.network).train()
    optimizers = [
        torch.optim.AdamW(expected.adaptor.parameters(), lr=1e-4, weight_decay=0.01),
        torch.optim.Adam(expected.layers.parameters(), lr=2e-4, weight_decay=1e-5),
    ]
    network = method.network.train()
    training = method.training_step(network)
    generator = Generator().manual_seed(1)
    for _ in range(2):
        rows, noise = torch.randn(2, 8, 96, generator=generator)
        training.minimize(method.loss(network, rows, noise), 1)
        for optimizer in optimizers:
            optimizer.zero_grad()
        method.loss(expected, rows, noise).backward()
        for optimizer in optimizers:
            optimizer.step()
    for name in ("adaptor.weight", "layers.0.weight", "layers.3.weight", "layers.1.weight"):
        assert_close(network.get_parameter(name), expected.get_parameter(name), rtol=1e-5, atol=1e-7)


def test_the_network_has_as_many_parameters_as_the_authors() -> None:
    with torch.device("meta"):
        network = Discriminator(1536, 1024)
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    assert count(network.adaptor) == 1536 * 1537
    assert count(network.layers) == 1536 * 1024 + 1024 + 2 * 1024 + 1024


# ---- Fit ----


def test_training_separates_features_from_noisy_ones(in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(4, 3, 64, 64, generator=Generator().manual_seed(1))
    method = SimpleNet(replace(TINY, epochs=40, noise_std=4.0, discriminator_lr=2e-3), replace(SETUP, size=(64, 64)))
    losses, modes = list[float](), list[bool]()

    def progress(_done: int, _total: int, loss: float | None) -> None:
        losses.append(loss or 0.0)
        modes.append(method.network.training)

    method.fit(in_memory(images), progress)  # type: ignore[arg-type]
    assert losses[-1] < 0.5 * losses[0]
    assert not any(modes)
    with torch.no_grad():
        adapted = method.network.adaptor(to_rows(method.embed(images)))
        noise = 4.0 * torch.randn(adapted.shape, generator=Generator().manual_seed(5))
        good, noisy = (method.network.normality(rows) for rows in (adapted, adapted + noise))
    assert (good > noisy).float().mean() > 0.9


@pytest.mark.parametrize("changes", [{"noise_std": 0.0}, {"patch": 2}, {"hidden": 0}, {"margin": -1.0}], ids=str)
def test_invalid_settings_are_errors(changes: dict[str, float]) -> None:
    with pytest.raises(BenchError, match=next(iter(changes))):
        replace(TINY, **changes)
