"""RD4AD against the reference data, the published sizes of its networks, and cosine distances that are known."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.reverse_distillation_net import ReverseDistillationNet
from bench.methods.rd4ad import RD4AD, Settings, position_distances

CPU = torch.device("cpu")
RESNET18 = Settings(
    backbone="resnet18.tv_in1k", block="basic", bottleneck_blocks=2, decoder_blocks=(2, 2, 2)
)  # of the reference data
TINY = replace(RESNET18, backbone="tf_efficientnet_lite0", signed=True, epochs=3, batch_size=2)
UNUSED = ("conv4.", "bn4.")  # layers of the authors' bottleneck that no image passes
Reference = dict[str, Tensor]
LoadShapes = Callable[[str, str], list[tuple[str, tuple[int, ...]]]]


@pytest.fixture
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("rd4ad")


@pytest.fixture(scope="module")
def network_by_rule(load_shapes: LoadShapes, by_rule: Callable[..., Tensor]) -> ReverseDistillationNet:
    network = ReverseDistillationNet((64, 128, 256), "basic", 2, (2, 2, 2), 1)
    for prefix, module in (("bottleneck", network.bottleneck), ("decoder", network.decoder)):
        entries = enumerate(load_shapes("rd4ad", prefix))
        tensors = [by_rule(name, shape, j) for j, (name, shape) in entries if not name.startswith(UNUSED)]
        keys = [key for key in module.state_dict() if not key.endswith("num_batches_tracked")]
        module.load_state_dict(dict(zip(keys, tensors, strict=True)), strict=False)
    return network


@pytest.fixture
def network(network_by_rule: ReverseDistillationNet) -> ReverseDistillationNet:
    """A copy of the networks with the weights of the reference data, in eval mode."""
    return deepcopy(network_by_rule).eval()


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- The reference data: numbers computed with the authors' code ----


def test_networks_restore_the_stages_as_the_reference(
    network: ReverseDistillationNet, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    stages = [reference[f"teacher_{i}"] for i in (1, 2, 3)]
    with torch.no_grad():
        assert_relative(network.bottleneck(stages), reference["embedding"])
        for i, restored in enumerate(network(stages), start=1):
            assert_relative(restored, reference[f"student_{i}"])


def test_teacher_maps_and_scores_equal_the_reference(
    network: ReverseDistillationNet, reference: Reference, shared: Path, assert_relative: Callable[..., None]
) -> None:
    method = RD4AD(RESNET18, Setup((64, 64), CPU, seed=0, weights=shared / "weights"))
    method.network = network
    for i, stage in enumerate(method.extract(reference["images"]), start=1):
        assert_relative(stage, reference[f"teacher_{i}"])
    with torch.no_grad():
        assert_relative(method.stage_maps(reference["images"]), reference["level_maps"])
        assert_relative(method.stage_maps(reference["images"]).sum(dim=1), reference["map_unsmoothed"])
    prediction = method.predict(reference["images"])
    assert_relative(prediction.maps, reference["map"])
    assert_relative(prediction.scores, reference["score"])


@pytest.mark.parametrize(("loss", "key"), [("flattened", "train_loss"), ("per_position", "train_loss_per_position")])
def test_losses_equal_the_reference(
    network: ReverseDistillationNet, reference: Reference, loss: str, key: str, assert_relative: Callable[..., None]
) -> None:
    method = RD4AD(replace(TINY, loss=loss), Setup((64, 64), CPU, seed=0))
    stages = [reference[f"teacher_{i}"] for i in (1, 2, 3)]
    assert_relative(method.loss(network.train(), stages), reference[key])


def test_gradients_equal_the_reference(
    network: ReverseDistillationNet, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    stages = [reference[f"teacher_{i}"] for i in (1, 2, 3)]
    RD4AD(TINY, Setup((64, 64), CPU, seed=0)).loss(network.train(), stages).backward()
    for prefix, module in (("bottleneck", network.bottleneck), ("decoder", network.decoder)):
        expected = reference[f"{prefix}_grad_norms"]
        norms = torch.stack([parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None])
        assert_relative(norms, expected[expected >= 0], tolerance=1e-3)


# ---- Sizes and distances ----


@pytest.mark.parametrize(
    ("arguments", "bottleneck", "decoder"),
    [
        (((256, 512, 1024), "bottleneck", 3, (3, 4, 6), 2), 67_277_824 - 8_392_704, 24_917_504),
        (((64, 128, 256), "basic", 2, (2, 2, 2), 1), 12_205_312 - 525_312, 3_703_168),
    ],
)
def test_networks_have_as_many_parameters_as_the_authors_without_the_unused_layers(
    arguments: tuple[object, ...], bottleneck: int, decoder: int
) -> None:
    with torch.device("meta"):
        network = ReverseDistillationNet(*arguments)  # type: ignore[arg-type]
    assert (parameters(network.bottleneck), parameters(network.decoder)) == (bottleneck, decoder)


def test_a_wide_resnet_is_restored_in_the_shapes_of_its_stages() -> None:
    with torch.device("meta"):
        network = ReverseDistillationNet((256, 512, 1024), "bottleneck", 3, (3, 4, 6), 2)
        stages = [torch.empty(2, 256 * 2**i, 64 // 2**i, 64 // 2**i) for i in range(3)]
        assert [part.shape for part in network(stages)] == [stage.shape for stage in stages]
        assert network.bottleneck(stages).shape == (2, 2048, 8, 8)


def test_the_two_losses_differ_as_worked_out_by_hand() -> None:
    """Two positions: equal vectors of length 3, and opposite vectors of length 1."""
    original = torch.tensor([[[[3.0, 1.0]], [[0.0, 0.0]]]])  # (1, 2, 1, 2)
    restored = torch.tensor([[[[3.0, -1.0]], [[0.0, 0.0]]]])
    assert_close(position_distances(original, restored), torch.tensor([[[0.0, 2.0]]]))  # mean 1
    method = RD4AD(TINY, Setup((64, 64), CPU, seed=0))
    method.restore_features = lambda *_: ([original], [restored])  # type: ignore[method-assign]
    loss = method.loss(None, [])  # type: ignore[arg-type]
    assert_close(loss, torch.tensor(1 - (9 - 1) / 10))


@torch.no_grad()
def test_only_signed_decoders_restore_negative_features() -> None:
    stages = [torch.randn(1, 4 * 2**i, 16 // 2**i, 16 // 2**i, generator=Generator().manual_seed(i)) for i in range(3)]
    unsigned, signed = (
        ReverseDistillationNet((4, 8, 16), "basic", 1, (2, 1, 2), 1, signed=flag) for flag in (False, True)
    )
    signed.load_state_dict(unsigned.state_dict())
    for positive, restored in zip(unsigned.eval()(stages), signed.eval()(stages), strict=True):
        assert restored.min() < 0
        assert torch.equal(positive, restored.relu())


# ---- Fit ----


def test_training_reduces_the_loss_and_leaves_the_network_in_eval_mode(in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(4, 3, 64, 64, generator=Generator().manual_seed(1))
    losses, modes = list[float](), list[bool]()
    method = RD4AD(replace(TINY, epochs=8), Setup((64, 64), CPU, seed=0))

    def progress(_done: int, _total: int, loss: float | None) -> None:
        losses.append(loss or 0.0)
        modes.append(method.network.training)

    method.fit(in_memory(images), progress)  # type: ignore[arg-type]
    assert losses[-1] < 0.7 * losses[0]
    assert not any(modes)


def test_a_batch_of_one_image_is_trained(in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(3, 3, 64, 64, generator=Generator().manual_seed(1))  # batches of 2 and 1
    method = RD4AD(replace(TINY, epochs=1), Setup((64, 64), CPU, seed=0))
    method.fit(in_memory(images), lambda *_: None)  # type: ignore[arg-type]
    assert method.predict(images).maps.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        (replace(TINY, stages=(0, 2, 3)), (64, 64), "must double"),
        (TINY, (80, 64), "multiples of 32"),
    ],
)
def test_stages_and_sizes_that_do_not_fit_are_errors(settings: Settings, size: tuple[int, int], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        RD4AD(settings, Setup(size, CPU, seed=0))


@pytest.mark.parametrize("changes", [{"stages": (1, 2)}, {"decoder_blocks": (2, 2)}, {"batch_size": 0}], ids=str)
def test_invalid_settings_are_errors(changes: dict[str, object]) -> None:
    with pytest.raises(BenchError, match=next(iter(changes))):
        replace(TINY, **changes)
