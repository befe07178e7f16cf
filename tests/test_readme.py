"""The README's own commands: the main job is run, the test command is what CI runs, the example is the file."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str) -> str:
    """The code block that follows the comment `<!-- mark -->`."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block '{mark}'"
    return found[1].strip()


def steps(mark: str) -> list[str]:
    """The commands of a one-line block, joined by && in the README."""
    (line,) = block(mark).splitlines()
    return [step.strip() for step in line.split("&&")]


def test_the_main_job_runs_as_the_readme_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *setting_up, job = steps("the main job")
    assert setting_up == ["python3 -m venv .venv", ".venv/bin/pip install -q -e ."]
    program, *words = shlex.split(job)
    assert program == ".venv/bin/bench"
    assert words == ["run", "--method", "aminet", "--protocol", "kshot", "--k", "4"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    command = [sys.executable, "-m", "bench", *words]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert found.returncode == 0, found.stderr
    for told in ("synthetic data", "reduced width, depth and epochs", "AMI-Net · demo · kshot k=4", "mean", "Next: "):
        assert told in found.stdout
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 4


@pytest.mark.slow
def test_the_python_snippet_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", block("from Python")]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert found.returncode == 0, found.stderr
    assert "metrics.image_auroc" in found.stdout
    assert (tmp_path / "image_auroc.png").stat().st_size > 5000


def test_the_test_command_is_what_ci_runs_first() -> None:
    assert steps("the tests") == [
        "python3 -m venv .venv",
        ".venv/bin/pip install -q -e '.[test]'",
        ".venv/bin/python -m pytest",
    ]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- the tests -->" in ci
    assert "-m slow" in ci


def test_the_example_of_a_method_is_the_file_itself() -> None:
    assert block("methods/meanmap.py") == (ROOT / "methods" / "meanmap.py").read_text(encoding="utf-8").strip()


def test_every_command_in_the_readme_parses(tmp_path: Path) -> None:
    commands = [line for line in README.splitlines() if line.startswith("bench ")]
    assert len(commands) >= 6
    for line in commands:
        name = shlex.split(line, comments=True)[1]
        words = [word for word in shlex.split(line, comments=True)[2:] if word.startswith("--")]
        told = subprocess.run(
            [sys.executable, "-m", "bench", name, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout
        assert all(word in told for word in words), line
