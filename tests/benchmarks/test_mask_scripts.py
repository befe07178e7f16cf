"""The scripts that measure masks and passes: what they compute, on tiny methods."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from bench.record import Predictions, Record

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_batched_passes_give_the_maps_of_the_plain_loop(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ["--profile", "check", "--size", "32", "--rounds", "2", "--json", str(path)]
    result = script("batched_passes").main(options)
    assert {name: each["passes_per_image"] for name, each in result["results"].items()} == {
        "intra": 16, "scadn": 12, "ssm": 2 * 2 * 3
    }  # fmt: skip
    for each in result["results"].values():
        assert each["largest_relative_difference"] < 1e-4
        assert each["bound_seconds"] > 0
        assert len(each["comparison"]["batched"]["cpu"]["seconds"]) == 2
        assert each["comparison"]["plain loop"]["cpu"]["speedup"] == 1
    assert json.loads(path.read_text())["results"] == json.loads(json.dumps(result["results"]))


@pytest.mark.parametrize(("name", "calls"), [("scadn", 24), ("ssm", 24)])
def test_the_plain_loop_calls_the_network_once_for_each_pass_and_image(
    script: Callable[[str], ModuleType], name: str, calls: int
) -> None:
    module = script("batched_passes")
    method = module.build_method(name, "check", 32)
    batch_sizes: list[int] = []
    method.network.register_forward_pre_hook(lambda _network, inputs: batch_sizes.append(len(inputs[0])))
    images = torch.rand(2, 3, 32, 32)
    module.predict_in_loop(method, images)
    assert batch_sizes == [1] * calls
    batch_sizes.clear()
    method.predict(images)
    assert len(batch_sizes) < calls
    assert sum(batch_sizes) == calls


def test_scores_that_do_not_depend_on_the_seed_have_no_change(script: Callable[[str], ModuleType]) -> None:
    change = script("mask_seeds").relative_score_change
    scores = np.array([1.0, 3.0])  # standard deviation 1
    assert change([scores, scores, scores]) == 0
    assert change([scores, scores + 0.5]) == pytest.approx(0.5)
    assert change([scores, scores + 0.5, scores + 1]) == pytest.approx((0.5 + 1 + 0.5) / 3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("riad", {"": True}),
        ("ssm", {"": True}),
        ("mfrnet", {"": True}),
        ("stmae", {"complementary": True, "checkerboard": False}),
        ("mstunet", {"complementary": True, "none": False}),
        ("aminet", {"adaptive": False, "none": False, "random": True, "complementary": True}),
        ("scadn", {}),
        ("intra", {}),
        ("uniad", {}),
        ("differnet", {}),
    ],
)
def test_a_method_is_evaluated_with_each_of_its_masks_and_with_seeds_if_they_are_random(
    script: Callable[[str], ModuleType],
    make_record: Callable[..., Record],
    name: str,
    variants: dict[str, bool],
) -> None:
    mask_variants = script("mask_seeds").mask_variants(make_record(method=name, name=name))
    assert {changes.get("mask_at_test", ""): is_random for changes, is_random in mask_variants} == variants


def test_another_seed_changes_the_masks_and_not_the_network(script: Callable[[str], ModuleType]) -> None:
    passes, seeds = script("batched_passes"), script("mask_seeds")
    method = passes.build_method("ssm", "check", 32)
    same, other = (seeds.with_settings(method, {"test_seed": seed}) for seed in (0, 1))
    assert torch.equal(same.test_masks, method.test_masks)
    assert not torch.equal(other.test_masks, method.test_masks)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.state_dict().items())


def test_metrics_are_compared_over_seeds(
    script: Callable[[str], ModuleType], make_predictions: Callable[..., Predictions]
) -> None:
    method = script("batched_passes").build_method("ssm", "check", 32)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = np.stack([np.eye(32, dtype=bool) & (index % 2 == 1) for index in range(4)])
    stored = make_predictions([0], 1.0, count=4, maps=None, masks=masks)
    images = SimpleNamespace(batches=pixels.split)
    same = script("mask_seeds").compare_seeds(method, images, stored, {}, [3, 3])
    assert same["range"] == {"image_auroc": 0, "pixel_auroc": 0, "aupro_30": 0}
    assert same["relative_score_change"] == 0
    assert script("mask_seeds").compare_seeds(method, images, stored, {}, [3])["relative_score_change"] is None
    different = script("mask_seeds").compare_seeds(method, images, stored, {}, [3, 4])
    assert different["relative_score_change"] > 0
    first, second = different["percent_by_seed"]["pixel_auroc"]
    assert first == same["percent_by_seed"]["pixel_auroc"][0]
    assert different["range"]["pixel_auroc"] == pytest.approx(abs(first - second), abs=0.011)
