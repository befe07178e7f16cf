"""The environment: devices, seeds, and its description in a record."""

import getpass
import json
import os
import platform
import random
import subprocess
import sys
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
    with pytest.raises(BenchError, match="--device must be one of cpu, cuda, which"):
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
@pytest.mark.parametrize(
    ("file", "is_marked"),
    [
        ("bench/store.py", True), ("methods/new.py", True), ("pyproject.toml", True), ("runs/demo/a.json", False),
        ("notes.md", False), ("docs/tutorial.md", False),
    ],
)  # fmt: skip
def test_only_changes_of_the_code_mark_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, is_marked: bool
) -> None:
    for name in ("bench/store.py", "methods/old.py", "pyproject.toml", "docs/tutorial.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before", "utf-8")
    identity = ["-c", "user.name=name", "-c", "user.email=name@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "Add files"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("after", "utf-8")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "bench" / "environment.py"))
    assert environment.commit().endswith("+") == is_marked
    assert len(environment.commit()) == 40 + is_marked


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


PEAK = """
import numpy as np
import torch
from bench import environment
cpu = torch.device("cpu")
environment.reset_peak(cpu)
before = environment.peak_memory(cpu)["host"]
block = np.ones(256 << 20, dtype=np.uint8)
del block
print(environment.peak_memory(cpu)["host"] - before)
"""


def test_the_peak_includes_memory_that_was_freed() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        pytest.skip("this system does not permit a process to reset its peak")
    # In a new process: one that has freed much memory uses that again.
    result = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(result.stdout) >= 128 << 20


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


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_is_the_memory_of_the_machine(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    root = tmp_path / ("memory" if version == 1 else "")
    root.mkdir(exist_ok=True)
    for name, value in zip(names, ("3000000", "1500000", "0"), strict=True):
        (root / name).write_text(value, "ascii")
    (root / "memory.stat").write_text(f"cache 7\n{names[2]} 500000\n", "ascii")
    groups = tmp_path / "cgroup"
    groups.write_text("9:name=systemd:/\n4:memory:/job/7\n" if version == 1 else "0::/job/7\n", "utf-8")
    paths = {"/proc/self/cgroup": groups, "/sys/fs/cgroup": tmp_path}

    def path(first: str, *others: str) -> Path:
        return Path(paths.get(first, first), *others)

    monkeypatch.setattr(environment, "Path", path)
    assert environment.total_memory(CPU) == 3_000_000
    assert environment.free_memory() == 2_000_000  # the limit, without what is used except file caches


def test_memory_is_unknown_on_a_system_that_does_not_measure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "Path", lambda *parts: Path("/missing", *(part.strip("/") for part in parts)))
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert environment.total_memory(CPU) is None
    assert environment.free_memory() is None
    assert environment.peak_memory(CPU) == {}


def test_a_cpu_has_no_number() -> None:
    with pytest.raises(BenchError, match="A CPU has no number, got --device cpu:99"):
        environment.device("cpu:99")


def test_texts_of_a_record_have_no_private_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, data = tmp_path / "home" / "jane", tmp_path / "data"
    (home / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "project")
    text = f"{data}/bolt/000.png {home}/project/runs {home}/weights/net.pth /usr/share/x"
    expected = "bolt/000.png runs ~/weights/net.pth /usr/share/x"
    assert environment.without_private_paths(text, data) == expected
