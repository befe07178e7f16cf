"""One file judges every method that the folder holds; its author writes none of this."""

import types
from dataclasses import dataclass
from typing import get_args

import pytest
import torch

from bench import registry
from bench.config.bench_toml import load_config
from bench.errors import BenchError
from bench.execution import diagnostics, method_checks
from bench.method import Method, Prediction
from bench.report import FigurePlacement
from bench.store import Store


@pytest.mark.filterwarnings("ignore::FutureWarning")  # a hosted library imports what it imports
@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method_keeps_what_every_method_promises(name: str) -> None:
    try:
        findings = diagnostics.check_method(load_config(), name)
    except BenchError as error:
        if "needs the package" in str(error):
            pytest.skip(str(error))
        raise
    assert len(findings) == 15
    broken = [f"{finding.requirement} {finding.problem}" for finding in findings if finding.problem]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", registry.names("datasets"))
def test_every_data_set_says_what_it_is_and_refuses_an_empty_folder(name: str, tmp_path) -> None:
    module = registry.load("datasets", name)
    assert module.TITLE
    assert module.ABOUT
    assert isinstance(module.SYNTHETIC, bool)
    if not module.SYNTHETIC:
        with pytest.raises(BenchError, match=str(tmp_path)):
            module.samples(tmp_path)


@pytest.mark.parametrize("name", registry.names("reports"))
def test_every_report_makes_a_text_of_no_records(name: str, tmp_path) -> None:
    module = registry.load("reports", name)
    assert module.SUFFIX
    assert module.FIGURES in get_args(FigurePlacement)
    assert module.render([], Store(tmp_path), [])
    assert module.render([], Store(tmp_path), [], "1")


@dataclass(frozen=True)
class Settings:
    flaw: str = ""


class Brightness(Method):
    """The simplest method there is, with one flaw on demand."""

    def fit(self, train, progress) -> None:
        self.mean = torch.cat(list(train.batches(4))).mean()
        if self.settings.flaw == "seed":
            self.mean = self.mean + torch.rand(1, generator=torch.Generator().manual_seed(id(self) % 2**31))[0]
        loss = float("nan") if self.settings.flaw == "loss" else None
        progress(1, 2 if self.settings.flaw == "progress" else 1, loss)

    def predict(self, images) -> Prediction:
        if not getattr(self, "mean", None) and self.settings.flaw != "unfitted":
            raise BenchError("fit first")
        mean = getattr(self, "mean", torch.zeros(()))
        flaw = self.settings.flaw
        if flaw == "writes":
            images.mul_(0.5)
        maps = (images.mean(1) - mean) ** 2  # (b, h, w)
        if flaw == "batch":
            maps = maps / maps.max()
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
        return {"wrong": images[:, :2]} if self.settings.flaw == "explain" else {"brightness": images.mean(1)}

    def facts(self):
        return {"tensor": self.mean} if self.settings.flaw == "facts" else {"mean": float(self.mean)}

    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.mean = state["mean"] * (2 if self.settings.flaw == "state" else 1)


def broken_by(flaw: str) -> list[str]:
    module = types.ModuleType("brightness")
    module.Settings, module.METHOD = Settings, Brightness  # type: ignore[attr-defined]
    return [finding.requirement for finding in method_checks.check_method(module, Settings(flaw)) if finding.problem]


def test_a_sound_method_breaks_no_promise() -> None:
    assert broken_by("") == []


@pytest.mark.parametrize(
    ("flaw", "promise"),
    [
        ("unfitted", "predict before fit is refused"),
        ("progress", "fit tells its progress"),
        ("loss", "fit tells its progress"),
        ("shape", "predict answers float32"),
        ("nan", "predict answers float32"),
        ("double", "predict answers float32"),
        ("batch", "An image scores the same alone"),
        ("buffer", "A prediction stays as it is"),
        ("random", "predict asked twice"),
        ("seed", "Two fits with one seed"),
        ("state", "state and restore"),
        ("writes", "predict leaves the images"),
        ("explain", "explain gives pictures"),
        ("facts", "facts are plain values"),
    ],
)
def test_each_flaw_breaks_its_promise(flaw: str, promise: str) -> None:
    assert any(found.startswith(promise) for found in broken_by(flaw))


def test_a_file_without_settings_and_method_is_told_what_it_lacks() -> None:
    found = method_checks.check_method(types.ModuleType("empty"), None)
    assert [bool(finding.problem) for finding in found] == [True, True]
    assert "METHOD = YourClass" in found[1].problem
