"""The machine: devices, seeds, and what a record says of where it was made."""

import getpass
import json
import platform
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import environment
from bench.errors import BenchError

CPU = torch.device("cpu")


def test_a_device_has_a_name_and_auto_is_one_that_is_there() -> None:
    assert environment.device("cpu") == CPU
    assert environment.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu0", "0"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(BenchError, match=rf"--device names a device that works here; '{name}' does not") as refusal:
        environment.device(name)
    assert "\n" not in str(refusal.value)


def test_a_device_that_no_clock_waits_for_is_refused() -> None:
    with pytest.raises(BenchError, match="--device is one of cpu, cuda, mps"):
        environment.device("meta")


def test_a_tasks_seed_is_the_same_on_every_machine() -> None:
    assert environment.derive_seed(0, "bottle") == 0x6351B19E  # the first 4 bytes of sha256("0/bottle")


@given(seed=st.integers(), task=st.text())
def test_a_tasks_seed_fits_every_generator(seed: int, task: str) -> None:
    environment.seed_everything(environment.derive_seed(seed, task))


def test_seeds_differ_by_seed_and_by_task() -> None:
    assert len({environment.derive_seed(seed, task) for seed in range(20) for task in ("bolt", "tile", "all")}) == 60
    assert environment.derive_seed(0, "sch\udcf6n") != environment.derive_seed(0, "schön")


def test_seeding_everything_repeats_python_numpy_and_torch() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    environment.seed_everything(5)
    first = draw()
    assert draw() != first
    environment.seed_everything(5)
    assert draw() == first


def test_the_description_is_plain_json_and_names_neither_host_nor_user() -> None:
    torch.set_num_threads(1)
    found = environment.describe(CPU)
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == 1
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found.keys() >= {"device", "cores", "system", "python", "timm", "maskbench", "tf32", "cudnn_benchmark"}
    assert "cuda" not in found
    assert not {platform.node(), getpass.getuser()} & {str(value) for value in found.values()}


def test_a_package_that_is_not_there_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise environment.PackageNotFoundError(package)

    monkeypatch.setattr(environment, "version", version)
    assert environment.describe(CPU)["timm"] == "not installed"


@pytest.fixture
def fresh_commit():
    environment.commit.cache_clear()
    yield
    environment.commit.cache_clear()


@pytest.mark.usefixtures("fresh_commit")
def test_the_commit_is_marked_where_files_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"rev-parse": "a" * 40, "status": ""}
    monkeypatch.setattr(environment, "_run_command", lambda *command: said[command[3]])
    assert environment.commit() == "a" * 40
    environment.commit.cache_clear()
    said["status"] = " M bench/cli.py"
    assert environment.commit() == "a" * 40 + "+"


@pytest.mark.usefixtures("fresh_commit")
@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def said(*command: str) -> str:
        raise error

    monkeypatch.setattr(environment, "_run_command", said)
    assert environment.commit() == ""


def test_memory_is_measured_in_bytes() -> None:
    assert 1 << 20 < environment.free_memory() < 1 << 50
    assert 1 << 20 < environment.peak_memory(CPU)["host"] < 1 << 50
    assert environment.peak_memory(CPU).keys() == {"host"}


def test_a_peak_is_seen_after_the_memory_is_free_again() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        pytest.skip("this system does not let a process reset its peak")
    environment.reset_peak(CPU)
    before = environment.peak_memory(CPU)["host"]
    block = np.ones(64 << 20, dtype=np.uint8)
    del block
    assert environment.peak_memory(CPU)["host"] >= before + (32 << 20)


def test_memory_is_told_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        usual = getattr(Path, name)

        def ask(self: Path, *given: Any, **options: Any) -> Any:
            if self.is_relative_to("/proc"):
                raise FileNotFoundError(self)
            return usual(self, *given, **options)

        monkeypatch.setattr(Path, name, ask)

    gone("read_text")
    gone("write_text")
    environment.reset_peak(CPU)
    assert environment.free_memory() > 1 << 20
    assert environment.peak_memory(CPU)["host"] > 1 << 20
    assert environment.describe(CPU)["device"]


def test_a_processor_without_half_precision_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    for has in (True, False):
        monkeypatch.setattr(environment.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert environment.emulates(cpu, "bfloat16") is not has
        assert not environment.emulates(cpu, "float32")
    assert not environment.emulates(torch.device("cuda"), "bfloat16")
