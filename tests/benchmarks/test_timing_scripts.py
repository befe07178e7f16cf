"""The timing scripts of benchmarks/ run at a tiny size on a CPU and tell what they measured on what."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench.evaluation import timing

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_authors_habit_gives_a_ratio_beside_the_published_one(script, tmp_path: Path, capsys) -> None:
    words = "--backbone random:resnet18 --size 32 --width 24 --heads 2 --depth 1 --images 2 --warmup 1 --passes 3"
    path = tmp_path / "out.json"
    told = script("papers_timing").main([*words.split(), "--json", str(path), "--device", "cpu"])
    assert json.loads(path.read_text()) == told
    assert told["ratio"] == told["patchcore"]["median_ms"] / told["aminet"]["median_ms"]
    assert len(told["aminet"]["samples_ms"]) == 3
    assert told["published"]["ratio"] == pytest.approx(4.28, abs=0.01)
    assert told["backbone"] == {"tag": "random:resnet18", "weights": "random"}
    assert told["machine"]["torch"] == torch.__version__
    assert "published  AMI-Net 11.48 ms : PatchCore 49.14 ms = 1 : 4.3" in capsys.readouterr().out


def test_one_command_tells_what_a_device_reaches_beside_floor_and_target(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("gpu")
    monkeypatch.setattr(module, "latency", lambda *given, **_: timing.latency(*given, warmup=1, passes=3))
    path = tmp_path / "out.json"
    told = module.main(["--small", "--json", str(path), "--device", "cpu"])
    assert json.loads(path.read_text()) == told
    assert told["results"].keys() == module.TARGETS.keys()
    assert told["what"].startswith("small")
    assert told["epochs"] == 2
    assert told["images"] == {"count": 9, "source": "drawn, 90 x 90"}
    for row in told["results"].values():
        assert 0 < row["floor"] < row["reached"]
        assert row["peak_memory"]["host"] > 0
    fit = told["results"]["aminet_fit_s"]
    assert fit["bytes"] == 36 * 2 * 9 / 8 * _learned(module)


def _learned(module: ModuleType) -> int:
    """Trainable numbers of the small AMI-Net."""
    settings = module.aminet.Settings(backbone="random:resnet18", width=32, heads=2, depth=1, patch=2, jitter=True)
    setup = module.Setup((64, 64), torch.device("cpu"), 0)
    return int(module.aminet.AMINet(settings, setup).method_info()["trainable_parameters"])


def test_a_floor_is_the_larger_of_computing_and_moving(script) -> None:
    ceilings = {"flops_per_second": 100.0, "bytes_per_second": 10.0}
    assert script("gpu")._floor(500, 20, ceilings) == 5
    assert script("gpu")._floor(500, 80, ceilings) == 8
