"""The pages in docs/ and the files about the project: what they tell to type is typed, what they point to is there."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(mark, kind, text) of each code block, in order."""
    return [(each["mark"] or "", each["kind"], each["text"]) for each in BLOCK.finditer(page.read_text("utf-8"))]


def run_bench(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def follow_new_method(folder: Path, *, only: str = "") -> str:
    """Write the files of docs/new-method.md, run its commands (or `only` one) in order, and return their output."""
    output, output_of_check = "", ""
    for mark, kind, text in blocks(ROOT / "docs" / "new-method.md"):
        purpose, _, name = mark.partition(": ")
        if purpose == "file":
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        elif purpose == "change" and not only:
            old, new = (line[1:] for line in text.splitlines())
            path = folder / name
            content = path.read_text("utf-8")
            assert content.count(old) == 1
            path.write_text(content.replace(old, new), "utf-8")
            completed = run_bench(["check", path.stem], folder)
            assert completed.returncode == 2
            output_of_check = completed.stdout
            path.write_text(content, "utf-8")
        elif purpose == "output" and not only:
            assert all(line.strip() in output_of_check for line in text.splitlines()), output_of_check
        elif kind == "bash":
            for line in text.splitlines():
                arguments = shlex.split(line, comments=True)[1:]
                if not only or " ".join(arguments) == only:
                    completed = run_bench(arguments, folder)
                    assert completed.returncode == 0, line + completed.stdout + completed.stderr
                    output += completed.stdout
    return output


def test_a_users_method_appears_in_the_list(tmp_path: Path) -> None:
    assert re.search(r"zscore +Z-score \(ours\)", follow_new_method(tmp_path, only="list methods"))


@pytest.mark.slow
def test_the_page_on_new_methods_can_be_followed(tmp_path: Path) -> None:
    output = follow_new_method(tmp_path)
    assert "failed " not in output
    assert "Z-score (ours) · demo · kshot k=4" in output
    assert "Tiny AE (ours)" in output
    report = output[output.index("# maskbench") :]
    assert report.count("Z-score (ours)") >= 2
    assert (tmp_path / "predictions" / "scores.csv").is_file()
    assert len(list((tmp_path / "runs").rglob("zscore/*/*/*.json"))) >= 12


def commands() -> list[tuple[str, str]]:
    """(page, line) of every `bench` command that a page tells to type."""
    return [
        (page.name, line.strip())
        for page in PAGES
        for _, kind, text in blocks(page)
        if kind == "bash"
        for line in re.split(r"\n|&&", text.replace("\\\n", " "))
        if line.strip().startswith("bench ")
    ]


def test_every_command_on_every_page_parses(tmp_path: Path) -> None:
    from typer.main import get_command

    from bench.cli.app import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands()) > 20
    for page, line in commands():
        name, *words = shlex.split(line, comments=True)[1:]
        if name == "--install-completion":
            continue
        assert name in known, f"{page}: {line}"
        options = {option for each in known[name].params for option in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_python_on_the_pages_compiles() -> None:
    for page in PAGES:
        for mark, kind, text in blocks(page):
            if kind == "python":
                compile(text, f"{page.name} {mark}", "exec")


def test_changelog_and_citation_are_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
