"""The environment: devices, seeds, and its description in a record."""

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


def test_a_device_is_found_by_name_and_auto_is_an_available_one() -> None:
    assert environment.device("cpu") == CPU
    assert environment.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu0", "0"])
def test_an_unavailable_device_is_an_error_in_one_line(name: str) -> None:
    with pytest.raises(BenchError, match=rf"--device must be available on this machine; '{name}' is not") as error:
        environment.device(name)
    assert "\n" not in str(error.value)


def test_a_device_that_cannot_be_timed_is_an_error() -> None:
    with pytest.raises(BenchError, match="--device must be one of cpu, cuda, mps"):
        environment.device("meta")


def test_the_seed_of_a_task_is_the_same_on_every_machine() -> None:
    assert environment.derive_seed(0, "bottle") == 0x6351B19E  # the first 4 bytes of sha256("0/bottle")


@given(seed=st.integers(), task=st.text())
def test_the_seed_of_a_task_is_valid_for_every_generator(seed: int, task: str) -> None:
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


def test_the_description_is_json_and_has_no_host_or_user_name() -> None:
    torch.set_num_threads(1)
    description = environment.describe(CPU)
    assert json.loads(json.dumps(description)) == description
    assert description["threads"] == 1
    assert description["torch"] == torch.__version__
    assert description["numpy"] == np.__version__
    assert description.keys() >= {"device", "cores", "system", "python", "timm", "maskbench", "tf32", "cudnn_benchmark"}
    assert "cuda" not in description
    assert not {platform.node(), getpass.getuser()} & {str(value) for value in description.values()}


def test_a_package_that_is_not_installed_is_described_so(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_commit_is_marked_if_files_are_modified(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"rev-parse": "a" * 40, "status": ""}

    def run(command: tuple[str, ...], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, outputs[command[3]])

    monkeypatch.setattr(subprocess, "run", run)
    assert environment.commit() == "a" * 40
    environment.commit.cache_clear()
    outputs["status"] = " M bench/cli/app.py"
    assert environment.commit() == "a" * 40 + "+"


@pytest.mark.usefixtures("fresh_commit")
@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*command: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment.commit() == ""


def test_memory_is_measured_in_bytes() -> None:
    assert 1 << 20 < environment.free_memory() < 1 << 50
    assert 1 << 20 < environment.peak_memory(CPU)["host"] < 1 << 50
    assert environment.peak_memory(CPU).keys() == {"host"}


def test_the_peak_includes_memory_that_was_freed() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        pytest.skip("this system does not permit a process to reset its peak")
    environment.reset_peak(CPU)
    before = environment.peak_memory(CPU)["host"]
    block = np.ones(64 << 20, dtype=np.uint8)
    del block
    assert environment.peak_memory(CPU)["host"] >= before + (32 << 20)


def test_memory_is_measured_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_proc(name: str) -> None:
        original = getattr(Path, name)

        def call(self: Path, *arguments: Any, **options: Any) -> Any:
            if self.is_relative_to("/proc"):
                raise FileNotFoundError(self)
            return original(self, *arguments, **options)

        monkeypatch.setattr(Path, name, call)

    remove_proc("read_text")
    remove_proc("write_text")
    environment.reset_peak(CPU)
    assert environment.free_memory() > 1 << 20
    assert environment.peak_memory(CPU)["host"] > 1 << 20
    assert environment.describe(CPU)["device"]


def test_a_processor_without_half_precision_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    for is_supported in (True, False):
        monkeypatch.setattr(environment.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda value=is_supported: value)
        assert environment.emulates(cpu, "bfloat16") is not is_supported
        assert not environment.emulates(cpu, "float32")
    assert not environment.emulates(torch.device("cuda"), "bfloat16")
