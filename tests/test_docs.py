"""The pages in docs/ and the files about the project: their commands run, their links and examples are valid."""

import ast
import csv
import importlib.util
import json
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
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "ARCHITECTURE.md")
PAGES = [*DOCS, *(ROOT / name for name in FILES)]
BLOCK = re.compile(r"(?:<!-- (?P<comment>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return (comment, language, text) of each code block, in order."""
    matches = BLOCK.finditer(page.read_text("utf-8"))
    return [(match["comment"] or "", match["language"], match["text"]) for match in matches]


def run_bench(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def run_page(name: str, folder: Path, *, only: str = "") -> str:
    """Write the files of a page and run its commands in order; return their output.

    The comment before a block states what it is: `file: PATH` and `run: PATH` (a script that is run) are written;
    `broken: PATH` is a change of one line with which `bench check` fails, and the next block `output` is a part of its
    output. With `only`, the files are written and one command is run.
    """
    output, failed_check = "", ""
    for comment, language, text in blocks(ROOT / "docs" / name):
        purpose, _, path = comment.partition(": ")
        if purpose in {"file", "run"}:
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, "utf-8")
            if purpose == "run" and not only:
                subprocess.run([sys.executable, path], cwd=folder, check=True)
        elif purpose == "broken" and not only:
            failed_check = check_with_change(folder / path, text, folder)
        elif purpose == "output" and not only:
            assert all(line.strip() in failed_check for line in text.splitlines()), failed_check
        elif language == "bash":
            for line in text.splitlines():
                arguments = shlex.split(line, comments=True)[1:]
                if not only or " ".join(arguments) == only:
                    result = run_bench(arguments, folder)
                    assert result.returncode == 0, line + result.stdout + result.stderr
                    output += result.stdout
    return output


def check_with_change(path: Path, change: str, folder: Path) -> str:
    """Replace one line of a file, and return the output of the failing check; the file is restored."""
    old, new = (line[1:] for line in change.splitlines())
    original = path.read_text("utf-8")
    assert original.count(old) == 1
    path.write_text(original.replace(old, new), "utf-8")
    result = run_bench(["check", path.stem], folder)
    assert result.returncode == 2
    path.write_text(original, "utf-8")
    return result.stdout


@pytest.mark.parametrize(
    ("page", "kind", "pattern"),
    [
        ("new-method.md", "methods", r"zscore +Z-score \(ours\)"),
        ("new-dataset.md", "datasets", r"lids +Lids"),
    ],
)
def test_the_plug_in_of_a_page_is_listed(tmp_path: Path, page: str, kind: str, pattern: str) -> None:
    assert re.search(pattern, run_page(page, tmp_path, only=f"--trust list {kind}"))


@pytest.mark.slow
def test_the_page_on_new_methods_runs(tmp_path: Path) -> None:
    output = run_page("new-method.md", tmp_path)
    assert "Z-score (ours) · demo · kshot k=4" in output
    report = output[output.index("# maskbench") :]
    assert report.count("Z-score (ours)") >= 2
    assert (tmp_path / "predictions" / "scores.csv").is_file()
    assert len(list((tmp_path / "runs").rglob("zscore/*/*/*.json"))) >= 12


@pytest.mark.slow
def test_the_page_on_new_datasets_runs(tmp_path: Path) -> None:
    output = run_page("new-dataset.md", tmp_path)
    assert "lid: 4 training images, 4 good and 4 defective test images (scratch 4; 4 with a mask)" in output
    assert "Mean map (baseline) · lids · one-for-one" in output


@pytest.mark.slow
def test_the_page_on_new_report_formats_runs(tmp_path: Path) -> None:
    output = run_page("new-report.md", tmp_path)
    report = (tmp_path / "report" / "report.txt").read_text("utf-8")
    assert report in output
    assert re.search(r"^Mean map \(baseline\) +\d", report, re.MULTILINE)
    assert "\n[a] synthetic data\n" in report


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    output = run_page("tutorial.md", tmp_path)
    assert "washer: 24 training images, 8 good and 8 defective test images (scratch 8; 8 with a mask)" in output
    assert "PatchCore" in output
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "washer" in page
    scores = (tmp_path / "predictions" / "scores.csv").read_text("utf-8").splitlines()
    assert len(scores) == 3
    assert len(list((tmp_path / "predictions" / "overlays").iterdir())) == 2


@pytest.mark.slow
def test_the_site_is_built_strictly_without_network(tmp_path: Path) -> None:
    """A link to a missing page or heading, or a page that is not in the navigation, fails the build."""
    pytest.importorskip("material", reason="needs maskbench[docs]")
    dead = "http://127.0.0.1:9"
    environment = {**os.environ, "http_proxy": dead, "https_proxy": dead, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    pages = {page.relative_to(ROOT / "docs") for page in DOCS}
    for page in pages:
        name = "index.html" if page.stem == "README" else f"{page.stem}/index.html"
        assert (tmp_path / "site" / page.parent / name).is_file(), page
    loaded = re.compile(r"""<(?:script|img|iframe)[^>]+src=["']?https?:|<link[^>]+stylesheet[^>]+href=["']?https?:""")
    for html in (tmp_path / "site").rglob("*.html"):
        assert not loaded.search(html.read_text("utf-8")), html  # reading the site needs no network either


def commands() -> list[tuple[str, str]]:
    """Return (page, line) of every `bench` command on the pages."""
    return [
        (page.name, line.strip())
        for page in PAGES
        for _, language, text in blocks(page)
        if language == "bash"
        for line in re.split(r"\n|&&", text.replace("\\\n", " "))
        if line.strip().startswith("bench ")
    ]


def test_every_command_on_every_page_has_valid_options() -> None:
    from typer.main import get_command

    from bench.cli.app import app

    registered_commands = get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands()) > 20
    for page, line in commands():
        name, *arguments = [word for word in shlex.split(line, comments=True)[1:] if word != "--trust"]
        if name == "--install-completion":
            continue
        assert name in registered_commands, f"{page}: {line}"
        command = registered_commands[name]
        if hasattr(command, "commands"):  # a group, as `bench data get`
            command = command.commands[arguments[0]]
        options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        assert {word for word in arguments if word.startswith("--")} <= options, f"{page}: {line}"


def test_the_page_of_options_is_generated_from_their_definitions() -> None:
    from bench.cli.options_page import options_page

    page = (ROOT / "docs" / "options.md").read_text("utf-8")
    assert page == options_page(), "run: python -m bench.cli.options_page > docs/options.md"


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("settings_page", "docs/settings.md"),
        ("methods_page", "docs/methods/README.md"),
        ("results_page", "benchmarks/RESULTS.md"),
    ],
)
def test_a_generated_page_is_the_output_of_its_script(script: str, name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py")]
    generated = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / name).read_text("utf-8") == generated, f"run: python benchmarks/{script}.py > {name}"


def test_the_pages_of_methods_and_settings_name_every_method() -> None:
    names = [path.stem for path in (ROOT / "methods").glob("[!_]*.py")]
    settings = (ROOT / "docs" / "settings.md").read_text("utf-8")
    methods = (ROOT / "docs" / "methods" / "README.md").read_text("utf-8")
    assert all(f"\n`{name}`, " in settings and f"`{name}`" in methods for name in names)


def test_pictures_of_the_documentation_are_small() -> None:
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix in {".png", ".jpg", ".svg"}:
            assert path.stat().st_size < 150_000, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_existing_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_python_code_on_the_pages_is_valid() -> None:
    for page in PAGES:
        for _, language, text in blocks(page):
            if language == "python":
                ast.parse(text, page.name)


def test_the_citation_has_the_newest_version_of_the_changelog_which_has_a_section_for_the_next() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert "\n## Unreleased\n" in changelog
    (version,) = re.findall(r"^version: (\d+\.\d+\.\d+)$", citation, re.MULTILINE)
    released = re.findall(r"^## (\d+\.\d+\.\d+) - ", changelog, re.MULTILINE)
    assert version == (released[0] if released else "0.1.0")
    for key in ("cff-version", "title", "abstract", "authors", "license", "url", "repository-code", "references"):
        assert re.search(rf"^{key}:", citation, re.MULTILINE), key


def test_release_notes_are_the_section_of_the_version() -> None:
    script = ROOT / ".github" / "release_notes.py"
    spec = importlib.util.spec_from_file_location("release_notes", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    changelog = (
        "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2026-01-02\n\n### Added\n\n- x\n\n## 1.1.0 - 2025-01-02\n\n- old\n"
    )
    assert module.release_notes("1.2.0", changelog, "version: 1.2.0\n") == "### Added\n\n- x\n"
    assert module.release_notes("1.1.0", changelog, "version: 1.1.0\n") == "- old\n"
    with pytest.raises(ValueError, match="CHANGELOG"):
        module.release_notes("1.3.0", changelog, "version: 1.3.0\n")
    with pytest.raises(ValueError, match="CITATION"):
        module.release_notes("1.2.0", changelog, "version: 1.1.0\n")


def test_each_published_table_has_its_license_and_its_source() -> None:
    folder = ROOT / "reports" / "published"
    package = json.loads((folder / "datapackage.json").read_text("utf-8"))
    assert package["licenses"]
    assert sorted(each["path"] for each in package["resources"]) == sorted(path.name for path in folder.glob("*.csv"))
    for resource in package["resources"]:
        assert resource["title"]
        assert all(source["path"].startswith("https://") for source in resource["sources"])
        header, *rows = csv.reader((folder / resource["path"]).read_text("utf-8").splitlines())
        if resource["path"] != "average_checks.csv":  # computed from the others
            assert all(row[header.index("source")] for row in rows), resource["path"]


def test_the_constraints_cover_the_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    assert {re.split(r"[><=]", dependency)[0] for dependency in project["dependencies"]} <= pinned
