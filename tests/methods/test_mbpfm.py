"""MBPFM: mappers, losses, gradients, map and score of the authors' code, and its fitting."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.mbpfm import MBPFM, Mapper, Settings, normalized_pairs

CPU = torch.device("cpu")
SETUP = Setup((64, 64), CPU, seed=0)
TINY = Settings(
    small_backbone="tf_efficientnet_lite0", large_backbone="random:resnet18", stages=(1, 2), latents=(4, 8),
    lrs=(3e-3, 3e-3), epochs=2, batch_size=2,
)  # fmt: skip


@pytest.fixture
def reference(load_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return load_reference("mbpfm")


@pytest.fixture
def mappers(fill_by_hash: Callable[..., None]) -> nn.ModuleList:
    """Mappers with the weights of the reference."""
    modules = nn.ModuleList(Mapper(64 * 2**stage, 256 * 2**stage, 8 * 2**stage) for stage in range(3))
    for stage, mapper in enumerate(modules):
        fill_by_hash(mapper, 100 * stage)
    return modules


@pytest.fixture
def stages(by_hash: Callable[[int, int], Tensor]) -> list[Tensor]:
    """Features by the formula of the reference, those of both networks after a ReLU, before they are normalized."""
    features = []
    for seed, channels in ((3001, 64), (3011, 256)):
        for stage in range(3):
            shape = (2, channels * 2**stage, 16 // 2**stage, 16 // 2**stage)
            features.append(by_hash(torch.Size(shape).numel(), seed + stage).view(shape).float().clamp(min=0))
    return features


def test_restored_features_equal_the_authors_code(
    mappers: nn.ModuleList, stages: list[Tensor], reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    for stage, (mapper, pair) in enumerate(zip(mappers.eval(), normalized_pairs(stages), strict=True)):
        small, large = mapper(*pair)
        assert_relative(small[:, ::8, ::2, ::2], reference[f"restored_small{stage}"])
        assert_relative(large[:, ::32, ::2, ::2], reference[f"restored_large{stage}"])


def test_losses_and_gradients_equal_the_authors_code(
    mappers: nn.ModuleList, stages: list[Tensor], reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    method = MBPFM(TINY, SETUP)
    for stage, (mapper, pair) in enumerate(zip(mappers.train(), normalized_pairs(stages), strict=True)):
        loss = method.loss(mapper, *pair)
        assert_close(loss.detach().double(), reference[f"loss{stage}"], rtol=1e-4, atol=0)
        loss.backward()
        assert_relative(mapper.shared.weight.grad[:, :, 0, 0], reference[f"grad_shared{stage}"], 1e-3)


def test_map_and_score_equal_the_authors_code(
    mappers: nn.ModuleList, stages: list[Tensor], reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    method = MBPFM(TINY, SETUP)
    method.mappers = mappers.eval()
    method.extract = lambda _images: stages
    prediction = method.predict(torch.zeros(2, 3, 64, 64))
    assert_relative(prediction.maps, reference["maps"])
    assert_relative(prediction.scores, reference["scores"])


def test_mappers_have_the_parameters_of_the_authors_code() -> None:
    with torch.device("meta"):
        modules = [Mapper(64, 256, 200), Mapper(128, 512, 400), Mapper(256, 1024, 900)]
    counts = [sum(parameter.numel() for parameter in mapper.parameters()) for mapper in modules]
    assert counts == [894_312, 3_559_888, 17_100_532]


def test_features_have_norm_1_at_each_position_and_are_paired_by_stage() -> None:
    stages = [torch.randn(2, channels, 4, 4) for channels in (3, 5, 7, 9)]
    stages[0][0, :, 0, 0] = 0
    pairs = normalized_pairs(stages)
    assert [(small.shape[1], large.shape[1]) for small, large in pairs] == [(3, 7), (5, 9)]
    norms = pairs[0][0].norm(dim=1)
    assert norms[0, 0, 0] == 0
    assert_close(norms.flatten()[1:], torch.ones(31))


def test_each_stage_has_its_learning_rate(in_memory: Callable[..., object]) -> None:
    images, states = torch.rand(2, 3, 64, 64), []
    for lrs in ((0.0, 3e-3), (3e-3, 3e-3)):
        method = MBPFM(replace(TINY, lrs=lrs, weight_decay=0.0), SETUP)
        initial = method.initialize(method.build_mappers).state_dict()
        method.fit(in_memory(images), lambda *_: None)
        changed = {key for key, value in method.mappers.state_dict().items() if not torch.equal(value, initial[key])}
        states.append({key.partition(".")[0] for key in changed if key.endswith("weight")})
    assert states == [{"1"}, {"0", "1"}]


def test_training_reduces_the_loss(in_memory: Callable[..., object]) -> None:
    method, losses = MBPFM(replace(TINY, epochs=20, downsample=2), SETUP), []
    method.fit(in_memory(torch.rand(4, 3, 64, 64)), lambda _done, _total, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
    info = method.info()
    assert info["large_backbone_sha256"] == "random"
    assert len(info["small_backbone_sha256"]) == 64


@pytest.mark.parametrize(
    ("changes", "message"), [({"latents": (4,)}, "latents"), ({"lrs": (1e-3, -1.0)}, "lrs"), ({"epochs": 0}, "epochs")]
)
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_backbones_of_other_strides_raise_an_error() -> None:
    with pytest.raises(BenchError, match="must have the same strides"):
        MBPFM(replace(TINY, small_backbone="random:vgg11"), SETUP)


def test_estimated_memory_contains_weights_features_and_a_batch() -> None:
    settings = Settings(small_backbone="random:resnet18", large_backbone="random:resnet50")
    weights = 16 * (894_312 + 3_559_888 + 17_100_532)
    features = 4 * 16 * (64**2 * 320 + 32**2 * 640 + 16**2 * 1280)
    assert MBPFM.estimate_memory(settings, (256, 256), 16) > weights + 2 * features
