"""`--compile`: the same answers through compiled networks, and a clear word where there is nothing to compile."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.config.settings import resolve
from bench.errors import BenchError
from bench.execution import schedule
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup
from bench.methods.parts import compiled as parts

SETUP = Setup((64, 64), torch.device("cpu"), 0, compile=True)


def fitted(name: str, setup: Setup) -> Any:
    module = registry.load("methods", name)
    given = dict(load_config().tables["profile"]["check"]["set"][name])
    given |= {"backbone": "random:resnet10t"} if "backbone" in given else {}
    settings, _ = resolve(module.Settings, {key: (value, "") for key, value in given.items()}, name)
    method = module.METHOD(settings, setup)
    method.fit(SyntheticImages(count=2), lambda *_: None)
    return method


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aminet", "patchcore", "riad", "autoencoder"])
def test_a_compiled_method_answers_as_the_plain_one_and_an_answer_outlives_the_next(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_calls = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled_calls.append(graph)
        return graph.forward

    monkeypatch.setattr(parts, "BACKEND", backend)
    images = SyntheticImages(count=3).pixels
    plain, quick = (fitted(name, dataclasses.replace(SETUP, compile=asked)) for asked in (False, True))
    with torch.no_grad():
        first = quick.predict(images[:1])
        kept = first.maps.clone()
        quick.predict(images[1:])
        assert compiled_calls
        assert torch.equal(first.maps, kept)
        for some in (images[:1], images):
            one, other = plain.predict(some), quick.predict(some)
            torch.testing.assert_close(one.maps, other.maps, rtol=1e-5, atol=1e-5 * float(one.maps.max()))
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)
    assert plain.state().keys() == quick.state().keys()


def test_the_twin_shares_its_tensors_and_the_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "BACKEND", "eager")
    network = nn.Linear(3, 2)
    twin = parts.compiled(network, SETUP, "forward")
    given = torch.ones(1, 3)
    assert "forward" not in vars(network)
    assert torch.equal(twin(given), network(given))
    with torch.no_grad():
        network.weight.zero_()  # as a training step would change it
    assert torch.equal(twin(given)[0], network.bias)
    assert parts.compiled(network, dataclasses.replace(SETUP, compile=False), "forward") is network


def test_a_network_that_can_not_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(parts, "BACKEND", refuse)
    twin = parts.compiled(nn.Linear(3, 2), SETUP, "forward")
    with pytest.raises(BenchError, match=r"no compiler on this machine.*Leave out --compile"):
        twin(torch.ones(1, 3))


def test_a_method_without_a_network_refuses_to_be_compiled() -> None:
    plan = make_plan(load_config(), registry.names("methods"), options={"method": ("meanmap",), "compile": True})
    with pytest.raises(BenchError, match="has nothing that --compile would compile"):
        schedule.make_schedule(plan)
