"""The timing scripts of benchmarks/ at a small size on a CPU."""

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


def test_the_authors_procedure_gives_a_ratio_to_compare_with_the_published_one(script, tmp_path: Path, capsys) -> None:
    arguments = "--backbone random:resnet18 --size 32 --width 24 --heads 2 --depth 1 --images 2 --warmup 1 --passes 3"
    path = tmp_path / "out.json"
    result = script("papers_timing").main([*arguments.split(), "--json", str(path), "--device", "cpu"])
    assert json.loads(path.read_text()) == result
    assert result["ratio"] == result["patchcore"]["median_ms"] / result["aminet"]["median_ms"]
    assert len(result["aminet"]["samples_ms"]) == 3
    assert result["published"]["ratio"] == pytest.approx(4.28, abs=0.01)
    assert result["backbone"] == {"tag": "random:resnet18", "weights": "random"}
    assert result["machine"]["torch"] == torch.__version__
    assert "published  AMI-Net 11.48 ms : PatchCore 49.14 ms = 1 : 4.3" in capsys.readouterr().out


def test_the_gpu_script_reports_times_lower_bounds_and_targets(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("gpu")
    monkeypatch.setattr(module, "latency", lambda *args, **_: timing.latency(*args, warmup=1, passes=3))
    path = tmp_path / "out.json"
    result = module.main(["--small", "--json", str(path), "--device", "cpu"])
    assert json.loads(path.read_text()) == result
    assert result["results"].keys() == module.TARGETS.keys()
    assert result["description"].startswith("small")
    assert result["epochs"] == 2
    assert result["images"] == {"count": 9, "source": "synthetic, 90 x 90"}
    for row in result["results"].values():
        assert 0 < row["floor"] < row["reached"]
        assert row["peak_memory"]["host"] > 0
    fit = result["results"]["aminet_fit_s"]
    assert fit["bytes"] == 36 * 2 * 9 / 8 * _n_trainable(module)


def _n_trainable(module: ModuleType) -> int:
    """Return the number of trainable parameters of the small AMI-Net."""
    settings = module.aminet.Settings(backbone="random:resnet18", width=32, heads=2, depth=1, patch=2, jitter=True)
    setup = module.Setup((64, 64), torch.device("cpu"), 0)
    network = module.aminet.AMINet(settings, setup).build_network()
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def test_the_lower_bound_is_the_larger_of_both_times(script) -> None:
    ceilings = {"flops_per_second": 100.0, "bytes_per_second": 10.0}
    assert script("gpu").lower_bound(500, 20, ceilings) == 5
    assert script("gpu").lower_bound(500, 80, ceilings) == 8
