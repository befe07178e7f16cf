"""Which folder may import which: the table "Layers" of ARCHITECTURE.md, checked for every file."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400

BENCH = sorted((ROOT / "bench").rglob("*.py"))
METHODS = sorted((ROOT / "methods").rglob("*.py"))
DATASETS = sorted((ROOT / "datasets").rglob("*.py"))
REPORTS = sorted((ROOT / "reports").rglob("*.py"))
ALL = [*BENCH, *METHODS, *DATASETS, *REPORTS]

CONTRACTS = {"errors", "weights", "preprocessing", "method", "training", "dataset", "report_format"}
CORE = CONTRACTS | {
    "files",
    "json_types",
    "process_state",
    "record",
    "identity",
    "store",
    "predictions_file",
    "merge",
    "registry",
    "environment",
}
# Folder or file of bench/ -> the layers of bench/ that it may import in addition to itself. Nothing imports api.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "process_state": set(),
    "json_types": set(),
    "weights": {"errors", "files"},
    "preprocessing": {"errors", "json_types"},
    "method": {"errors", "weights", "preprocessing"},
    "training": {"errors", "method"},
    "dataset": set(),
    "report_format": {"record", "store"},  # types only: a report holds records, its content reads the store
    "environment": {"errors"},
    "record": {"errors", "dataset", "json_types"},
    "identity": {"record"},
    "predictions_file": {"record"},
    "store": {"errors", "files", "record", "identity", "predictions_file"},
    "merge": {"errors", "files", "identity", "store"},
    "registry": {"errors", "process_state", "report_format"},  # types only: it returns the functions that build reports
    "config": {"errors", "registry"},
    "evaluation": {"errors", "method", "record", "identity", "environment"},
    "data": CONTRACTS | {"environment", "evaluation", "files"},
    "execution": CORE | {"config", "data", "evaluation"},
    "deploy": CORE | {"config", "data", "evaluation", "execution"},
    "tracking": {"errors", "record", "store", "files"},
    "cli": CORE | {"config", "data", "evaluation", "execution", "deploy", "tracking"},
    "notebook_figure": set(),
    "api": CORE | {"config", "data", "evaluation", "execution", "deploy", "tracking", "cli", "notebook_figure"},
    "__main__": {"cli"},
    "__init__": {"api"},
}
# Packages outside the standard library that a file or folder may import; without an entry, any except these.
ONLY_CLI = {"typer", "rich", "click"}
PACKAGES = {
    "errors": set(),
    "files": set(),
    "dataset": set(),
    "preprocessing": set(),
    "record": {"numpy"},
    "identity": set(),
    "config": set(),
    "data/protocol": set(),
    "data/fingerprint": set(),
    "data/download": set(),
    "data/archives": set(),
    "data/installation": set(),
    "evaluation": {"numpy", "scipy", "pandas"},
    "evaluation/metric_variants": {"numpy", "scipy", "sklearn"},
    "evaluation/timing": {"numpy", "torch"},
}
WITHOUT_TORCH = [
    "cli.app", "config.plan", "registry", "dataset", "data.protocol", "evaluation.metrics", "record", "report_format",
    "store", "data.decoding", "data.preprocessing", "data.value_range", "cli.dataset_images",
    "merge", "evaluation.reproduction",
    "evaluation.bootstrap", "evaluation.statistics", "evaluation.metric_variants", "evaluation.summary",
]  # fmt: skip


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def layer(path: Path) -> str:
    """Return the folder or file directly in bench/ that a file belongs to."""
    return path.relative_to(ROOT / "bench").with_suffix("").parts[0]


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the modules that a file imports: `from bench import x` is bench.x, `from .a import b` is .a."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            if start == "bench":
                modules |= {f"bench.{alias.name}" for alias in node.names}
            else:
                modules |= {start} if node.module else {start + alias.name for alias in node.names}
    return frozenset(modules)


def imported_layers(path: Path) -> set[str]:
    """Return the folders and files directly in bench/ that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.split(".")[0] == "bench" and "." in name}


def packages(path: Path) -> set[str]:
    """Return the installed packages that a file imports."""
    roots = {name.split(".")[0] for name in imports(path) if not name.startswith(".")}
    return roots - {"bench", "_typeshed"} - sys.stdlib_module_names  # _typeshed exists for type checkers only


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=map(relative, paths))


def test_the_import_reader_recognizes_every_form(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import torch.nn as nn\nfrom bench import registry\nfrom bench.data.images import read\n"
        "from .parts.maps import score\nfrom . import parts\nfrom .. import bench\ndef late():\n    import rich\n",
        "utf-8",
    )
    expected = {"torch.nn", "bench.registry", "bench.data.images", ".parts.maps", ".parts", "..bench", "rich"}
    assert imports(path) == expected
    assert imported_layers(path) == {"registry", "data"}
    assert packages(path) == {"torch", "rich"}


@each(BENCH)
def test_a_file_of_bench_imports_only_the_layers_below_it(path: Path) -> None:
    assert imported_layers(path) <= ALLOWED[layer(path)] | {layer(path)}
    assert not packages(path) & {"methods", "datasets", "reports"}
    assert not any(name.startswith(".") for name in imports(path))


@each([path for path in BENCH if path.parent.name != "bench"])
def test_every_file_of_a_folder_of_bench_is_a_known_layer(path: Path) -> None:
    assert layer(path) in ALLOWED


@each([path for path in BENCH if layer(path) in PACKAGES or relative(path)[6:-3] in PACKAGES])
def test_files_with_few_dependencies_import_only_the_packages_of_the_table(path: Path) -> None:
    assert packages(path) <= PACKAGES.get(relative(path)[6:-3], PACKAGES.get(layer(path), set()))


@each(METHODS)
def test_methods_import_only_their_contract_and_their_folder(path: Path) -> None:
    assert imported_layers(path) <= {"method", "training", "weights", "errors", "files"}


@each(DATASETS)
def test_datasets_import_only_their_contract_and_no_torch(path: Path) -> None:
    assert imported_layers(path) <= {"dataset", "errors", "files"}
    assert packages(path) <= {"numpy", "PIL", "scipy"}


@each([*METHODS, *DATASETS, *REPORTS])
def test_a_plug_in_imports_only_the_parts_of_its_folder(path: Path) -> None:
    is_part = "parts" in path.parts
    relative_imports = {name for name in imports(path) if name.startswith(".")}
    assert not any(name.startswith("..") for name in relative_imports)
    assert is_part or all(name == ".parts" or name.startswith(".parts.") for name in relative_imports)


@each(REPORTS)
def test_reports_import_no_torch(path: Path) -> None:
    assert not imported_layers(path) & {"method", "methods", "datasets", "execution", "data", "deploy", "cli", "api"}
    assert not packages(path) & {"torch", "torchvision", "timm"}


@each([path for path in ALL if path.parent.name != "cli"])
def test_only_the_command_line_uses_typer_and_rich_and_prints(path: Path) -> None:
    assert not packages(path) & ONLY_CLI
    calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call, ast.Name) and call.id in {"print", "eval", "exec"}]


@each(ALL)
def test_no_file_is_too_long_or_has_a_name_without_meaning(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "helpers", "common", "base", "misc"}


def test_the_plug_in_folders_are_not_packages() -> None:
    assert not [relative(path) for path in (*METHODS, *DATASETS, *REPORTS) if path.name == "__init__.py"]


def test_help_listings_and_reports_do_not_import_torch() -> None:
    modules = [f"bench.{name}" for name in WITHOUT_TORCH]
    for files, kind in ((DATASETS, "datasets"), (REPORTS, "reports")):
        modules += [f"bench.{kind}.{path.stem}" for path in files if path.parent.name == kind]
    code = f"import sys\nfor name in {modules!r}:\n    __import__(name)\nprint('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.strip() == "False"


def test_the_command_line_starts_without_numpy() -> None:
    code = "import sys, bench.cli.app\nprint('numpy' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.strip() == "False"
