"""The registry: plug-ins from files, folders of the user and entry points; an error affects one plug-in only."""

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.registry import add_folder, installed, load, names, read_constant, source_file

REPORT = 'SUFFIX = "txt"\nFIGURES = "never"\n\ndef render(records):\n    return "text"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of reports, which is removed from the registry after the test."""
    package = import_module("bench.reports")
    before, loaded = list(package.__path__), set(sys.modules)
    reports = tmp_path / "my-reports"
    reports.mkdir()
    (reports / "plain.py").write_text(REPORT, "utf-8")
    yield reports
    package.__path__ = before
    for name in set(sys.modules) - loaded:
        if name.startswith("bench.reports."):
            del sys.modules[name]
            vars(package).pop(name.rpartition(".")[2], None)


def test_the_shipped_plug_ins_are_found_by_file_name() -> None:
    assert {"aminet", "patchcore"} <= set(names("methods"))
    assert {"demo", "folder", "mvtec", "btad"} <= set(names("datasets"))
    assert "markdown" in names("reports")
    assert names("methods") == sorted(names("methods"))


def test_subfolders_and_private_files_are_not_plug_ins(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "shared.py").write_text("", "utf-8")
    for name in ("_private.py", ".hidden.py", "notes.txt"):
        (folder / name).write_text("", "utf-8")
    add_folder("reports", folder)
    assert set(names("reports")) & {"parts", "shared", "_private", ".hidden", "notes", "plain"} == {"plain"}


def test_listing_names_imports_nothing(folder: Path) -> None:
    (folder / "broken.py").write_text("raise RuntimeError", "utf-8")
    add_folder("reports", folder)
    assert "broken" in names("reports")
    assert "bench.reports.broken" not in sys.modules


def test_a_plug_in_of_the_user_can_import_from_its_own_parts_folder(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "shared.py").write_text('WORD = "shared"\n', "utf-8")
    (folder / "using.py").write_text("from .parts.shared import WORD\n" + REPORT, "utf-8")
    add_folder("reports", folder)
    invalidate_caches()  # the path of a namespace package would lose the folder here
    assert load("reports", "plain").render([]) == "text"
    assert load("reports", "using").WORD == "shared"
    assert load("reports", "markdown").SUFFIX == "md"


def test_adding_a_folder_twice_adds_it_once(folder: Path) -> None:
    for path in (folder, folder / ".." / folder.name, folder):
        add_folder("reports", path)
    assert [str(path) for path in import_module("bench.reports").__path__].count(str(folder.resolve())) == 1


def test_a_missing_folder_is_an_error(folder: Path) -> None:
    for path in (folder / "missing", folder / "plain.py"):
        with pytest.raises(BenchError, match=rf"\[paths\] reports must name folders; {path} is not one"):
            add_folder("reports", path)


def test_a_plug_in_of_the_user_must_not_have_a_shipped_name(folder: Path) -> None:
    (folder / "markdown.py").write_text(REPORT, "utf-8")
    with pytest.raises(BenchError, match=r"my-reports has markdown\.py and reports/ has it as well\. Rename"):
        add_folder("reports", folder)
    assert "plain" not in names("reports")


def test_an_unknown_name_is_an_error_with_the_known_names() -> None:
    message = r"'aminett' must be one of the methods\. Did you mean 'aminet'\? Known: .*aminet.*patchcore"
    with pytest.raises(BenchError, match=message):
        load("methods", "aminett")


@pytest.mark.parametrize("name", ["parts", "../cli", "parts.surface", "", "__init__"])
def test_only_names_of_plug_ins_can_be_loaded(name: str) -> None:
    with pytest.raises(BenchError, match="must be one of the datasets"):
        load("datasets", name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def render(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("from bench.record import Rekord\n", "cannot import name 'Rekord'"),
    ],
    ids=["syntax", "crash", "exit", "name"],
)
def test_a_failing_import_affects_one_plug_in_and_shows_the_traceback(folder: Path, content: str, message: str) -> None:
    (folder / "broken.py").write_text(content, "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match=r"reports/broken cannot be imported; fix the file") as error:
        load("reports", "broken")
    assert message in str(error.value)
    assert "broken.py" in str(error.value).split("\n", 1)[1]
    assert load("reports", "plain").render([]) == "text"


@pytest.mark.parametrize(
    ("package", "message"), [("not_installed", "pip install not_installed"), ("os.missing", "fix the file")]
)
def test_a_missing_package_is_an_error_with_the_install_command(folder: Path, package: str, message: str) -> None:
    (folder / "broken.py").write_text(f"import {package}\n", "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match=message):
        load("reports", "broken")


def test_a_fixed_file_can_be_loaded(folder: Path) -> None:
    path = folder / "broken.py"
    path.write_text("raise RuntimeError('not yet')\n", "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match="not yet"):
        load("reports", "broken")
    path.write_text(REPORT, "utf-8")
    invalidate_caches()
    assert load("reports", "broken").render([]) == "text"


def test_a_missing_definition_is_an_error(folder: Path) -> None:
    (folder / "incomplete.py").write_text("def render(records):\n    return ''\n", "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match=r"reports/ must define SUFFIX, FIGURES, render; incomplete lacks SUFFIX"):
        load("reports", "incomplete")


def test_every_shipped_dataset_and_report_loads() -> None:
    for name in names("datasets"):
        assert callable(load("datasets", name).samples)
    for name in names("reports"):
        assert callable(load("reports", name).render)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with one dataset as an entry point; the path of its module."""
    module = tmp_path / "site" / "lids_package" / "lids.py"
    module.parent.mkdir(parents=True)
    (module.parent / "__init__.py").touch()
    module.write_text('TITLE = "Lids"\nSYNTHETIC = False\nABOUT = "none"\ndef samples(root):\n    return []\n', "utf-8")
    information = tmp_path / "site" / "lids_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lids-package\nVersion: 1.0\n", "utf-8")
    (information / "entry_points.txt").write_text("[maskbench.datasets]\nlids = lids_package.lids\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    installed.cache_clear()
    yield module
    installed.cache_clear()
    for name in ("lids_package", "lids_package.lids"):
        sys.modules.pop(name, None)


def test_an_entry_point_of_an_installed_package_is_a_plug_in(package: Path) -> None:
    assert "lids" in names("datasets")
    assert "lids" not in names("methods")
    assert source_file("datasets", "lids") == package
    assert read_constant("datasets", "lids", "TITLE") == "Lids"
    assert "lids_package.lids" not in sys.modules  # not imported before it is loaded
    assert load("datasets", "lids").samples(Path()) == []


def test_a_failing_import_of_an_entry_point_shows_the_traceback(package: Path) -> None:
    package.write_text("1 / 0\n", "utf-8")
    with pytest.raises(BenchError, match=r"datasets/lids cannot be imported(.|\n)*ZeroDivisionError"):
        load("datasets", "lids")


def test_an_entry_point_must_not_have_the_name_of_a_file(package: Path) -> None:
    entry_points = next(package.parents[1].glob("*.dist-info")) / "entry_points.txt"
    entry_points.write_text("[maskbench.datasets]\nmvtec = lids_package.lids\n", "utf-8")
    installed.cache_clear()
    with pytest.raises(BenchError, match=r"'mvtec' is .*mvtec\.py and an entry point of lids-package"):
        load("datasets", "mvtec")


def test_a_constant_is_read_without_importing_the_file(folder: Path) -> None:
    (folder / "broken.py").write_text("def render(:\n", "utf-8")
    add_folder("reports", folder)
    assert read_constant("reports", "plain", "SUFFIX") == "txt"
    assert read_constant("reports", "plain", "TITLE") == ""
    assert read_constant("reports", "broken", "SUFFIX") == ""
