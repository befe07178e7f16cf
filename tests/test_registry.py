"""The registry: a file is a plug-in, a broken file breaks its own name only, a user's folder is searched as well."""

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.registry import add_folder, load, names

REPORT = 'SUFFIX = "txt"\nFIGURES = "never"\n\ndef render(records):\n    return "mine"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of reports of the user's own, forgotten after the test."""
    package = import_module("bench.reports")
    before, loaded = list(package.__path__), set(sys.modules)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "plain.py").write_text(REPORT, "utf-8")
    yield mine
    package.__path__ = before
    for name in set(sys.modules) - loaded:
        if name.startswith("bench.reports."):
            del sys.modules[name]
            vars(package).pop(name.rpartition(".")[2], None)


def test_the_shipped_plug_ins_are_found_by_their_files() -> None:
    assert {"aminet", "patchcore"} <= set(names("methods"))
    assert {"demo", "folder", "mvtec", "btad"} <= set(names("datasets"))
    assert "markdown" in names("reports")
    assert names("methods") == sorted(names("methods"))


def test_a_folder_of_parts_and_a_private_file_are_no_plug_ins(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "shared.py").write_text("", "utf-8")
    for name in ("_private.py", ".hidden.py", "notes.txt"):
        (folder / name).write_text("", "utf-8")
    add_folder("reports", folder)
    assert set(names("reports")) & {"parts", "shared", "_private", ".hidden", "notes", "plain"} == {"plain"}


def test_names_imports_nothing(folder: Path) -> None:
    (folder / "broken.py").write_text("raise RuntimeError", "utf-8")
    add_folder("reports", folder)
    assert "broken" in names("reports")
    assert "bench.reports.broken" not in sys.modules


def test_a_users_folder_comes_after_the_shipped_plug_ins_and_can_use_its_own_parts(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "mine_shared.py").write_text('WORD = "shared"\n', "utf-8")
    (folder / "using.py").write_text("from .parts.mine_shared import WORD\n" + REPORT, "utf-8")
    add_folder("reports", folder)
    invalidate_caches()  # by which a namespace package's own path would forget the folder
    assert load("reports", "plain").render([]) == "mine"
    assert load("reports", "using").WORD == "shared"
    assert load("reports", "markdown").SUFFIX == "md"


def test_adding_a_folder_twice_adds_it_once(folder: Path) -> None:
    for path in (folder, folder / ".." / folder.name, folder):
        add_folder("reports", path)
    assert [str(path) for path in import_module("bench.reports").__path__].count(str(folder.resolve())) == 1


def test_adding_what_is_no_folder_is_refused(folder: Path) -> None:
    for path in (folder / "gone", folder / "plain.py"):
        with pytest.raises(BenchError, match=rf"\[paths\] reports names folders of plug-ins; {path} is none"):
            add_folder("reports", path)


def test_a_users_plug_in_may_not_take_a_shipped_name(folder: Path) -> None:
    (folder / "markdown.py").write_text(REPORT, "utf-8")
    with pytest.raises(BenchError, match=r"mine has markdown\.py as reports/ has\. Rename it"):
        add_folder("reports", folder)
    assert "plain" not in names("reports")


def test_an_unknown_name_is_told_with_those_that_there_are() -> None:
    told = r"methods/ has no 'aminett'\. Did you mean 'aminet'\? There are: .*aminet.*patchcore"
    with pytest.raises(BenchError, match=told):
        load("methods", "aminett")


@pytest.mark.parametrize("name", ["parts", "../cli", "parts.surface", "", "__init__"])
def test_only_a_plug_ins_name_is_loaded(name: str) -> None:
    with pytest.raises(BenchError, match="datasets/ has no"):
        load("datasets", name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def render(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("from bench.record import Rekord\n", "cannot import name 'Rekord'"),
    ],
    ids=["syntax", "crash", "exit", "name"],
)
def test_a_broken_file_breaks_its_own_name_only_and_is_told_with_its_traceback(
    folder: Path, content: str, words: str
) -> None:
    (folder / "broken.py").write_text(content, "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match=r"reports/broken\.py can't be imported; mend the file") as refusal:
        load("reports", "broken")
    assert words in str(refusal.value)
    assert "broken.py" in str(refusal.value).split("\n", 1)[1]
    assert load("reports", "plain").render([]) == "mine"


@pytest.mark.parametrize(("package", "mend"), [("a_lost_one", "pip install a_lost_one"), ("os.lost", "mend the file")])
def test_a_file_whose_package_is_not_installed_tells_how_to_get_it(folder: Path, package: str, mend: str) -> None:
    (folder / "broken.py").write_text(f"import {package}\n", "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match=mend):
        load("reports", "broken")


def test_a_broken_file_is_loaded_once_it_is_mended(folder: Path) -> None:
    path = folder / "broken.py"
    path.write_text("raise RuntimeError('not yet')\n", "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match="not yet"):
        load("reports", "broken")
    path.write_text(REPORT, "utf-8")
    invalidate_caches()
    assert load("reports", "broken").render([]) == "mine"


def test_a_file_that_lacks_what_its_kind_defines_is_told(folder: Path) -> None:
    (folder / "lacking.py").write_text("def render(records):\n    return ''\n", "utf-8")
    add_folder("reports", folder)
    with pytest.raises(BenchError, match=r"reports/ defines SUFFIX, FIGURES, render; lacking\.py lacks SUFFIX"):
        load("reports", "lacking")


def test_every_shipped_data_set_and_report_loads() -> None:
    for name in names("datasets"):
        assert callable(load("datasets", name).samples)
    for name in names("reports"):
        assert callable(load("reports", name).render)
