"""Every plug-in in its folder satisfies its contract; the checks detect each violation."""

import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.method_metadata import FAMILIES, method_metadata
from bench.errors import BenchError
from bench.execution import diagnostics, method_checks
from bench.method import Images, Method, Prediction
from bench.report_format import FigurePlacement
from bench.store import Store


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from imports of an external library
@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method_satisfies_the_contract(name: str) -> None:
    try:
        results = diagnostics.check_method(load_config(), name)
    except BenchError as error:
        if "needs the package" in str(error):
            pytest.skip(str(error))
        raise
    assert len(results) == 19
    problems = [f"{result.requirement} {result.problem}" for result in results if result.problem]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method_states_its_metadata(name: str) -> None:
    metadata = method_metadata(name)
    assert metadata.title
    assert metadata.family in FAMILIES
    if metadata.family not in {"external", "baseline"}:
        assert metadata.paper
        assert metadata.year > 2000
    if not metadata.is_external:
        assert metadata.profiles.keys() <= {"demo", "check", "paper"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from imports of an external library
@pytest.mark.parametrize("name", registry.names("methods"))
@pytest.mark.parametrize("sigma", [-1.0, 1e300])
def test_every_method_rejects_a_smoothing_that_no_map_can_have(name: str, sigma: float) -> None:
    try:
        settings = registry.load("methods", name).Settings
    except BenchError as error:  # an external library is not installed
        pytest.skip(str(error))
    for setting in {"smoothing", "map_smoothing"} & settings.__dataclass_fields__.keys():
        with pytest.raises(BenchError, match=rf"{setting} must be in \[0, 1000\] pixels"):
            settings(**{setting: sigma})


@pytest.mark.parametrize("name", registry.names("datasets"))
def test_every_dataset_has_a_description_and_rejects_an_empty_folder(name: str, tmp_path) -> None:
    module = registry.load("datasets", name)
    assert module.TITLE
    assert module.ABOUT
    assert isinstance(module.SYNTHETIC, bool)
    if not module.SYNTHETIC:
        with pytest.raises(BenchError, match=str(tmp_path)):
            module.samples(tmp_path)


@pytest.mark.parametrize("name", registry.names("reports"))
@pytest.mark.parametrize("table", ["", "1"])
def test_every_format_renders_a_report_without_records(name: str, table: str, tmp_path: Path) -> None:
    module = registry.load("reports", name)
    assert module.SUFFIX
    assert module.FIGURES in get_args(FigurePlacement)
    report = registry.report_content().results([], Store(tmp_path), [], table)
    try:
        assert module.render(report)
    except BenchError as error:  # a format may need an extra, which its message names
        if "maskbench[" not in str(error):
            raise
        pytest.skip(str(error))


@dataclass(frozen=True)
class Settings:
    flaw: str = ""


class Brightness(Method):
    """The simplest method, with an optional flaw."""

    learned = ("mean",)
    mean: torch.Tensor

    def fit(self, train, progress) -> None:
        mean = torch.cat(list(train.batches(4))).mean()
        if self.settings.flaw == "seed":
            mean = mean + torch.rand(1, generator=torch.Generator().manual_seed(id(self) % 2**31))[0]
        self.mean = mean
        self.unsaved = mean
        loss = float("nan") if self.settings.flaw == "loss" else None
        progress(1, 2 if self.settings.flaw == "progress" else 1, loss)

    def predict(self, images) -> Prediction:
        flaw = self.settings.flaw
        mean = vars(self).get("mean", torch.zeros(())) if flaw == "unfitted" else self.mean
        if flaw == "state":
            mean = vars(self).get("unsaved", torch.zeros(()))
        if flaw == "writes":
            images.mul_(0.5)
        maps = (images.mean(1) - mean) ** 2  # (b, h, w)
        if flaw == "batch":
            maps = maps / maps.max()
        if flaw == "unstable":
            maps = (1e5 * images.mean(1)).frac()  # digits that rounding decides
        if flaw == "shape":
            maps = maps[:, ::2]
        if flaw == "nan":
            maps = maps / 0 * 0
        if flaw == "double":
            maps = maps.double()
        if flaw == "random":
            maps = maps + torch.rand(1)
        if flaw == "buffer":
            self.buffer = maps if not hasattr(self, "buffer") else self.buffer.copy_(maps)
            maps = self.buffer
        return Prediction(maps.amax((1, 2)), maps)

    def explain(self, images) -> dict[str, torch.Tensor]:
        if self.settings.flaw == "explain":
            return {"wrong": images[:, :2]}
        return {"cells: 2" if self.settings.flaw == "picture name" else "brightness": images.mean(1)}

    def info(self):
        return {"tensor": self.mean} if self.settings.flaw == "info" else {"mean": float(self.mean)}


class Pretrained(Brightness):
    """Learns an offset from the other categories, if there are any."""

    learned = ("mean", "offset")
    pretrains = True
    offset: torch.Tensor = torch.zeros(())

    def pretrain(self, others: Mapping[str, Images], progress) -> None:
        self.offset = torch.stack([torch.cat(list(images.batches(4))).mean() for images in others.values()]).mean()
        if self.settings.flaw == "pretrain":
            self.unsaved_offset = self.offset
        progress(1, 1, None)

    def predict(self, images) -> Prediction:
        maps = (images.mean(1) - self.mean - self.offset) ** 2 + getattr(self, "unsaved_offset", 0)
        return Prediction(maps.amax((1, 2)), maps)


def failed_requirements(flaw: str, method: type[Method] = Brightness, **constants: object) -> list[str]:
    module = types.ModuleType("brightness")
    module.Settings, module.METHOD = Settings, method  # type: ignore[attr-defined]
    vars(module).update(constants)
    return [result.requirement for result in method_checks.check_method(module, Settings(flaw)) if result.problem]


@pytest.mark.parametrize("method", [Brightness, Pretrained])
def test_a_correct_method_has_no_problem(method: type[Method]) -> None:
    assert failed_requirements("", method) == []


@pytest.mark.parametrize(
    ("flaw", "requirement"),
    [
        ("unfitted", "predict and state_dict before fit raise"),
        ("progress", "fit calls progress"),
        ("loss", "fit calls progress"),
        ("shape", "predict returns float32"),
        ("nan", "predict returns float32"),
        ("double", "predict returns float32"),
        ("batch", "An image has the same score alone"),
        ("buffer", "A later predict does not overwrite"),
        ("random", "Two predict calls"),
        ("seed", "Two fits with one seed"),
        (
            "unstable",
            "Threads, batch size and noise of 1e-06 change predictions by at most 0.001 of their largest value",
        ),
        ("state", "A method that is loaded"),
        ("writes", "predict does not modify"),
        ("explain", "explain returns pictures"),
        ("picture name", "explain returns pictures"),
        ("info", "info returns values"),
    ],
)
def test_each_flaw_is_detected(flaw: str, requirement: str) -> None:
    assert any(failed.startswith(requirement) for failed in failed_requirements(flaw))


def test_what_pretraining_learns_must_be_restored() -> None:
    (requirement,) = failed_requirements("pretrain", Pretrained)
    assert requirement.startswith("A method that pretrains")


class WithoutPretrain(Brightness):
    pretrains = True


class OverridesState(Brightness):
    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}


@pytest.mark.parametrize(
    ("method", "message"), [(WithoutPretrain, "pretrain is missing"), (OverridesState, "it overrides state_dict")]
)
def test_a_class_that_does_not_follow_the_contract_is_detected(method: type[Method], message: str) -> None:
    module = types.ModuleType("brightness")
    module.Settings, module.METHOD = Settings, method  # type: ignore[attr-defined]
    (problem,) = [result.problem for result in method_checks.check_method(module, Settings()) if result.problem]
    assert message in problem


@pytest.mark.parametrize(
    "constants",
    [
        {"PROFILES": {"check": {"unknown_setting": "x"}}},
        {"PROFILES": {"demo": {"flaw": 3}}},
        {"ALIASES": {"flawed": {"title": "Flawed", "settings": {"unknown_setting": "x"}}}},
    ],
)
def test_a_profile_with_an_invalid_setting_is_detected(constants: dict[str, object]) -> None:
    (requirement,) = failed_requirements("", **constants)
    assert requirement.startswith("PROFILES and ALIASES")


def test_an_empty_file_is_reported_with_the_missing_names() -> None:
    results = method_checks.check_method(types.ModuleType("empty"), None)
    assert all(result.problem for result in results)
    assert "METHOD = YourClass" in results[1].problem
