"""The base class of methods: learned state, not-fitted check, cached properties, seeded construction, weight hashes."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, NotFittedError, Prediction, Progress, Setup
from bench.weights import find_weights

LITE = "tf_efficientnet_lite0"
SETUP = Setup((4, 4), torch.device("cpu"), seed=3)


@dataclass(frozen=True)
class Settings:
    width: int = 2
    backbone: str = "random:resnet18"


class Example(Method):
    """A tensor, a module with batch norm and an optional module; fit sets them."""

    learned = ("offset", "network", "decoder")
    offset: Tensor
    network: nn.Sequential
    decoder: nn.Linear | None = None
    n_copies: int = 0

    def build_network(self) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, self.settings.width, 1), nn.BatchNorm2d(self.settings.width))

    def build_decoder(self) -> nn.Linear:
        return nn.Linear(self.settings.width, 1)

    def fit(self, train: Images, progress: Progress) -> None:
        self.network = self.initialize(self.build_network)
        self.network(torch.rand(4, 3, 4, 4))  # changes the running statistics
        self.offset = torch.ones(2)

    @cached_property
    def inference_copy(self) -> nn.Sequential:
        self.n_copies += 1
        return self.network.eval()

    def predict(self, images: Tensor) -> Prediction:
        maps = self.inference_copy(images).mean(dim=1) + self.offset[0]
        return Prediction(maps.amax(dim=(1, 2)), maps)


def fitted(settings: Settings = Settings()) -> Example:
    method = Example(settings, SETUP)
    method.fit([], lambda *_: None)  # type: ignore[arg-type]
    return method


def test_an_attribute_that_is_not_learned_yet_raises_not_fitted() -> None:
    method = Example(Settings(), SETUP)
    for call in (lambda: method.offset, lambda: method.predict(torch.zeros(1, 3, 4, 4)), method.state_dict):
        with pytest.raises(NotFittedError, match=NOT_FITTED):
            call()
    assert method.decoder is None
    with pytest.raises(AttributeError, match="no attribute 'ofset'"):
        _ = method.ofset  # type: ignore[attr-defined]
    assert issubclass(NotFittedError, BenchError)


def test_the_state_has_every_learned_tensor_under_the_name_of_its_attribute() -> None:
    method = fitted()
    names = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    expected = {"offset", "network.0.weight", "network.0.bias", *(f"network.1.{name}" for name in names)}
    state = method.state_dict()
    assert state.keys() == expected
    state["offset"].zero_()
    state["network.0.weight"].zero_()
    assert method.offset.any()
    assert method.network[0].weight.any()
    method.decoder = method.initialize(method.build_decoder)
    assert method.state_dict().keys() == expected | {"decoder.weight", "decoder.bias"}


def test_restore_copies_the_state_and_uses_eval_mode() -> None:
    method, loaded, images = fitted(), Example(Settings(), SETUP), torch.rand(2, 3, 4, 4)
    method.decoder = method.initialize(method.build_decoder)
    state = method.state_dict()
    loaded.load_state_dict(state)
    for tensor in state.values():
        tensor.zero_()
    assert not loaded.network.training
    assert torch.equal(loaded.predict(images).maps, method.predict(images).maps)
    assert loaded.decoder is not None
    assert torch.equal(loaded.decoder.weight, method.decoder.weight)
    loaded.load_state_dict(fitted().state_dict())  # without the optional module
    assert loaded.decoder is None


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (Settings(width=3), {}, "size mismatch for 0.weight"),
        (Settings(), {"offset": None}, "no tensors for 'offset'"),
        (Settings(), {"network.0.bias": None}, "Missing key"),
        (Settings(), {"other": torch.ones(1)}, "unknown tensors, for example 'other'"),
        (Settings(), {"network.other": torch.ones(1)}, "Unexpected key"),
    ],
)
def test_a_state_that_does_not_fit_raises_an_error_in_one_line(
    settings: Settings, changes: dict[str, Tensor | None], message: str
) -> None:
    state = {name: value for name, value in (fitted().state_dict() | changes).items() if value is not None}
    with pytest.raises(BenchError, match=message) as error:
        Example(settings, SETUP).load_state_dict(state)
    assert "saved state of Example must fit its settings" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cached_property_is_computed_again_after_a_learned_attribute_is_set() -> None:
    method, images = fitted(), torch.rand(1, 3, 4, 4)
    method.predict(images)
    method.predict(images)
    assert method.n_copies == 1
    method.setup = replace(SETUP, seed=9)  # not a learned attribute
    method.predict(images)
    assert method.n_copies == 1
    method.offset = method.offset + 1
    method.predict(images)
    assert method.n_copies == 2
    method.load_state_dict(method.state_dict())
    method.predict(images)
    assert method.n_copies == 3


def test_initial_weights_depend_on_the_seed_and_the_global_generator_is_unchanged() -> None:
    method = Example(Settings(), SETUP)
    before = torch.get_rng_state()
    first, second, other = (method.initialize(method.build_network, seed)[0].weight for seed in (None, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_weights_of_a_backbone_setting_are_hashed_without_code_in_the_method() -> None:
    assert Example.file_hashes(Settings(backbone=LITE), None) == {"backbone": find_weights(LITE, None).sha256}
    assert Example.file_hashes(Settings(backbone=""), None) == {}

    class TwoBackbones(Example):
        backbone_settings: ClassVar[tuple[str, ...]] = ("backbone", "teacher")

    @dataclass(frozen=True)
    class TwoSettings(Settings):
        teacher: str = LITE

    hashes = TwoBackbones.file_hashes(TwoSettings(), None)
    assert hashes == {"backbone": "random", "teacher": find_weights(LITE, None).sha256}


def test_info_has_the_trainable_parameters_and_the_backbone() -> None:
    method = fitted(Settings(backbone=LITE))
    method.network[0].bias.requires_grad_(requires_grad=False)
    weights = find_weights(LITE, None)
    assert method.info() == {
        "trainable_parameters": 2 * 3 + 2 * 2,
        "backbone": LITE,
        "backbone_source": weights.source,
        "backbone_sha256": weights.sha256,
    }


def test_pretrain_must_be_defined_by_a_method_that_declares_it() -> None:
    with pytest.raises(NotImplementedError, match="must define pretrain"):
        fitted().pretrain({}, lambda *_: None)
