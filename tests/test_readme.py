"""The commands of README.md: the main job, the test command of CI, and the example of a method."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str, page: str = README) -> str:
    """Return the code block after the comment `<!-- name -->`."""
    match = re.search(rf"<!-- {re.escape(name)} -->\n```\w*\n(.*?)```", page, re.DOTALL)
    assert match, f"the page must have a block '{name}'"
    return match[1].strip()


def steps(name: str) -> list[str]:
    """Return the commands of a block of one line, which README.md joins with &&."""
    (line,) = block(name).splitlines()
    return [step.strip() for step in line.split("&&")]


def run_bench(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Call `bench` in a new folder and return its output."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "160")
    command = [sys.executable, "-m", "bench", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def main_job() -> list[str]:
    """Return the arguments of `bench` in the main job."""
    *installation, job = steps("the main job")
    assert installation == ["python3 -m venv .venv", ".venv/bin/pip install -q -e ."]
    program, *arguments = shlex.split(job)
    assert program == ".venv/bin/bench"
    return arguments


@pytest.mark.slow
def test_the_main_job_runs_as_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = main_job()
    assert arguments == ["run", "--method", "aminet", "--protocol", "kshot", "--k", "4"]
    output = run_bench(arguments, tmp_path, monkeypatch)
    for text in ("synthetic data", "reduced width, depth and epochs", "AMI-Net · demo · kshot k=4", "mean", "Next: "):
        assert text in output
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 4


def test_a_small_version_of_the_main_job_runs(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command with the smallest settings, on a dataset that does not need to be generated."""
    reduced = [
        "--dataset",
        "folder",
        "--data",
        str(parts),
        "--category",
        "bolt",
        "--profile",
        "check",
        "--threads",
        "1",
    ]
    output = run_bench([*main_job(), *reduced], tmp_path, monkeypatch)
    for text in ("check profile", "AMI-Net · folder-parts · kshot k=4", "bolt", "mean", "Next: "):
        assert text in output
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 1


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", block("from Python")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    assert "metrics.image_auroc" in result.stdout
    assert (tmp_path / "image_auroc.png").stat().st_size > 5000


def test_ci_runs_the_test_command_linters_types_and_slow_tests() -> None:
    assert steps("the tests") == [
        "python3 -m venv .venv",
        ".venv/bin/pip install -q -e '.[test]'",
        ".venv/bin/python -m pytest",
    ]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for text in ("<!-- the tests -->", "ruff check .", "ruff format --check .", "mypy", "-m slow"):
        assert text in ci
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")


def test_the_example_of_a_method_is_the_file() -> None:
    page = (ROOT / "docs" / "new-method.md").read_text("utf-8")
    assert block("methods/meanmap.py", page) == (ROOT / "methods" / "meanmap.py").read_text(encoding="utf-8").strip()


def test_the_readme_is_about_a_page_with_two_small_pictures() -> None:
    assert len(README.splitlines()) <= 90
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    assert all((ROOT / picture).stat().st_size < 150_000 for picture in pictures)
