"""`--compile`: compiled networks give the same predictions, and a method without a network raises an error."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.method_metadata import method_metadata
from bench.config.plan import make_plan
from bench.config.settings import resolve
from bench.errors import BenchError
from bench.execution import schedule
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup
from bench.methods.parts import compile as compile_part

SETUP = Setup((64, 64), torch.device("cpu"), 0, compile=True)


def fitted(name: str, setup: Setup) -> Any:
    module = registry.load("methods", name)
    values = dict(method_metadata(name).profiles["check"])
    values |= {"backbone": "random:resnet10t"} if "backbone" in values else {}
    settings, _ = resolve(module.Settings, {key: (value, "") for key, value in values.items()}, name)
    method = module.METHOD(settings, setup)
    method.fit(SyntheticImages(count=2), lambda *_: None)
    return method


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aminet", "patchcore", "riad", "autoencoder"])
def test_a_compiled_method_gives_the_same_predictions_and_does_not_overwrite_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_calls = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled_calls.append(graph)
        return graph.forward

    monkeypatch.setattr(compile_part, "BACKEND", backend)
    images = SyntheticImages(count=3).pixels
    plain, compiled = (fitted(name, dataclasses.replace(SETUP, compile=flag)) for flag in (False, True))
    with torch.no_grad():
        first = compiled.predict(images[:1])
        copy = first.maps.clone()
        compiled.predict(images[1:])
        assert compiled_calls
        assert torch.equal(first.maps, copy)
        for part in (images[:1], images):
            one, other = plain.predict(part), compiled.predict(part)
            torch.testing.assert_close(one.maps, other.maps, rtol=1e-5, atol=1e-5 * float(one.maps.max()))
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)
    assert plain.state_dict().keys() == compiled.state_dict().keys()


def test_the_compiled_copy_shares_its_tensors_and_the_network_is_not_modified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_part, "BACKEND", "eager")
    network = nn.Linear(3, 2)
    copy = compile_part.with_compiled_methods(network, SETUP, "forward")
    features = torch.ones(1, 3)
    assert "forward" not in vars(network)
    assert torch.equal(copy(features), network(features))
    with torch.no_grad():
        network.weight.zero_()  # as in a training step
    assert torch.equal(copy(features)[0], network.bias)
    assert compile_part.with_compiled_methods(network, dataclasses.replace(SETUP, compile=False), "forward") is network


def test_a_network_that_cannot_be_compiled_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_backend(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(compile_part, "BACKEND", failing_backend)
    copy = compile_part.with_compiled_methods(nn.Linear(3, 2), SETUP, "forward")
    with pytest.raises(BenchError, match=r"no compiler on this machine.*Leave out --compile"):
        copy(torch.ones(1, 3))


def test_a_method_without_a_network_cannot_be_compiled() -> None:
    plan = make_plan(load_config(), registry.names("methods"), options={"method": ("meanmap",), "compile": True})
    with pytest.raises(BenchError, match="does not support --compile"):
        schedule.make_schedule(plan)
