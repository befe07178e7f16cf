"""Who may import whom: the table "Never" of ARCHITECTURE.md, held against every file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES = 400

ENGINE = sorted((ROOT / "bench").glob("*.py"))
METHODS = sorted((ROOT / "methods").rglob("*.py"))
DATASETS = sorted((ROOT / "datasets").rglob("*.py"))
REPORTS = sorted((ROOT / "reports").rglob("*.py"))
ALL = [*ENGINE, *METHODS, *DATASETS, *REPORTS]

PURE = {"protocol", "metrics", "counting", "statistics", "record", "errors"}
PURE_MAY = {"numpy", "scipy", "bench.dataset", *(f"bench.{name}" for name in PURE)}
FACE = {"cli.py", "cli_list.py", "cli_model.py", "cli_report.py", "cli_time.py", "console.py", "screen.py"}
WITHOUT_TORCH = [
    "cli", "config", "choices", "settings", "sweep", "registry", "dataset", "protocol", "metrics", "record", "report",
    "store", "statistics", "dialects"
]  # fmt: skip


def of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a file imports anywhere: `from bench import x` is bench.x, `from .a import b` is .a."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            if start == "bench":
                found |= {f"bench.{alias.name}" for alias in node.names}
            else:
                found |= {start} if node.module else {start + alias.name for alias in node.names}
    return frozenset(found)


def engine(path: Path) -> set[str]:
    """What a file imports from the engine, as bench.x."""
    return {".".join(name.split(".")[:2]) for name in imports(path) if name.split(".")[0] == "bench"}


def packages(path: Path) -> set[str]:
    """The top packages that a file imports from outside the house and the standard library."""
    roots = {name.split(".")[0] for name in imports(path) if not name.startswith(".")}
    return roots - {"bench"} - sys.stdlib_module_names


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=map(of, paths))


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "import torch.nn as nn\nfrom bench import runner\nfrom bench.record import Run\nfrom .parts.maps import score\n"
        "from . import parts\nfrom .. import bench\ndef late():\n    import rich\n",
        "utf-8",
    )
    assert imports(path) == {"torch.nn", "bench.runner", "bench.record", ".parts.maps", ".parts", "..bench", "rich"}
    assert engine(path) == {"bench.runner", "bench.record"}
    assert packages(path) == {"torch", "rich"}


@each(ENGINE)
def test_the_engine_imports_no_plug_in(path: Path) -> None:
    assert not engine(path) & {"bench.methods", "bench.datasets", "bench.reports"}
    assert not packages(path) & {"methods", "datasets", "reports"}
    assert not any(name.startswith(".") for name in imports(path))


@each(METHODS)
def test_methods_know_their_contract_the_error_and_their_own_folder(path: Path) -> None:
    assert engine(path) <= {"bench.method", "bench.errors"}


@each(DATASETS)
def test_data_sets_know_their_contract_the_error_and_no_torch(path: Path) -> None:
    assert engine(path) <= {"bench.dataset", "bench.errors"}
    assert packages(path) <= {"numpy", "PIL", "scipy"}


@each([*METHODS, *DATASETS, *REPORTS])
def test_a_plug_in_imports_its_own_shared_parts_only(path: Path) -> None:
    inside = "parts" in path.parts
    own = {name for name in imports(path) if name.startswith(".")}
    assert not any(name.startswith("..") for name in own)
    assert inside or all(name == ".parts" or name.startswith(".parts.") for name in own)


@each(REPORTS)
def test_reports_are_made_from_records_alone(path: Path) -> None:
    never = {"method", "methods", "datasets", "runner", "executor", "campaign", "images", "timing", "machine", "cli"}
    assert not engine(path) & {f"bench.{name}" for name in never}
    assert not packages(path) & {"torch", "torchvision", "timm", "typer", "rich"}


@each([path for path in ENGINE if path.stem in PURE])
def test_the_pure_heart_knows_numbers_and_paths_only(path: Path) -> None:
    assert engine(path) | packages(path) <= PURE_MAY


def test_the_runner_is_handed_objects() -> None:
    never = {"registry", "config", "settings", "store", "cli", "campaign", "executor"}
    assert not engine(ROOT / "bench" / "runner.py") & {f"bench.{name}" for name in never}


@each([path for path in ALL if path.name not in {"__main__.py", "cli.py"}])
def test_nobody_imports_the_command_line(path: Path) -> None:
    assert not any(name.startswith("bench.cli") for name in engine(path))


@each([path for path in ALL if path.name not in FACE])
def test_only_the_face_knows_typer_and_rich_and_prints(path: Path) -> None:
    assert not packages(path) & {"typer", "rich", "click"}
    calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call, ast.Name) and call.id in {"print", "eval", "exec"}]


@each(ALL)
def test_no_file_is_too_long_or_a_drawer_for_odds_and_ends(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LINES
    assert path.stem not in {"utils", "util", "helpers", "common", "base", "misc"}


def test_the_plug_in_folders_are_no_packages_of_their_own() -> None:
    assert not [of(path) for path in (*METHODS, *DATASETS, *REPORTS) if path.name == "__init__.py"]


def _torch_free() -> Iterator[str]:
    yield from (f"bench.{name}" for name in WITHOUT_TORCH)
    for folder, kind in ((DATASETS, "datasets"), (REPORTS, "reports")):
        yield from (f"bench.{kind}.{path.stem}" for path in folder if path.parent.name == kind)


def test_help_listings_and_reports_do_without_torch() -> None:
    code = f"import sys\nfor name in {[*_torch_free()]!r}:\n    __import__(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_the_command_line_answers_without_numpy() -> None:
    code = "import sys, bench.cli\nprint('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
