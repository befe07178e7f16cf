"""Metadata of a method: literal constants of its file, read without importing it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from bench import registry
from bench.config.bench_toml import Config
from bench.config.method_metadata import FAMILIES, method_metadata
from bench.config.plan import make_plan
from bench.errors import BenchError
from bench.registry import add_folder

FILE = """
raise RuntimeError("a file is read without importing it")

TITLE = "Flow ‡"
FAMILY: str = "flow"
PAPER = "Somebody: A flow, " "https://example.org"
YEAR = 2021
NEEDS = ("a GPU",)
PROFILES = {"demo": {"lr": 2e-3, "stages": [1, 2]}, "paper": {"lr": -1}}
ALIASES = {"flow_large": {"title": "Flow L", "settings": {"width": 64}}, "flow2": {"title": "Flow 2"}}
OTHER = FILE + 1
"""
TABLES = {"profile": {"demo": {"set": {"flow": {"lr": 5}}}, "paper": {}, "none": {}}}


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Write a method file flow.py into a plug-in folder, which is removed after the test."""
    package = import_module("bench.methods")
    before = list(package.__path__)
    folder = tmp_path / "plugins"
    folder.mkdir()

    def write_file(text: str, name: str = "flow") -> None:
        (folder / f"{name}.py").write_text(text, "utf-8")
        add_folder("methods", folder)

    yield write_file
    package.__path__ = before


def spec_of(name: str, profile: str, tables: dict | None = None):
    methods = registry.names("methods")
    plan = make_plan(Config(tables or TABLES), methods, options={"method": name}, profile=profile)
    return plan.method_specs[0]


def test_the_constants_are_read_without_importing_the_file(write: Callable[..., None]) -> None:
    write(FILE)
    metadata = method_metadata("flow")
    assert (metadata.title, metadata.family, metadata.year, metadata.needs) == ("Flow ‡", "flow", 2021, ("a GPU",))
    assert metadata.paper == "Somebody: A flow, https://example.org"
    assert metadata.profiles["demo"] == {"lr": 0.002, "stages": [1, 2]}
    assert metadata.path == "plugins/flow.py"
    assert not metadata.is_external


def test_a_file_without_constants_and_a_name_without_a_file_have_empty_metadata(write: Callable[..., None]) -> None:
    write("X = 1\n")
    assert method_metadata("flow").title == ""
    assert method_metadata("flow").profiles == {}
    assert method_metadata("nothing").path == ""
    write("def fit(:\n")  # a syntax error is reported when the file is imported
    assert method_metadata("flow").title == ""


def test_a_modified_file_is_read_again(write: Callable[..., None]) -> None:
    write('TITLE = "First"\n')
    assert method_metadata("flow").title == "First"
    write('TITLE = "Second title"\n')
    assert method_metadata("flow").title == "Second title"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('NAME = "x"\nTITLE = f"{NAME}"\n', r"plugins/flow\.py, line 2: TITLE must be a literal"),
        ("PROFILES = {'demo': dict(lr=1)}\n", r"line 1: PROFILES must be a literal"),
        ("TITLE = 3\n", r"TITLE.*3"),
        ('FAMILY = "flows"\n', r"FAMILY.*flow"),
        ("YEAR = 'now'\n", "YEAR.*now"),
        ("PROFILES = {'demo': 3}\n", r"PROFILES\.demo"),
        ("ALIASES = {'a': {'titel': 'x'}}\n", "titel"),
        ("ALIASES = {'../a': {'title': 'x'}}\n", r"name of an alias must consist of .* got '\.\./a'"),
        ('FAMILY = "external"\nTITLE = "Library"\n', r'TITLE must contain "\{model\}" if and only if'),
        ('TITLE = "{model} (library)"\n', r'TITLE must contain "\{model\}" if and only if'),
    ],
)
def test_a_wrong_constant_raises_an_error(write: Callable[..., None], text: str, message: str) -> None:
    write(text)
    with pytest.raises(BenchError, match=message):
        method_metadata("flow")
    with pytest.raises(BenchError, match=message):
        spec_of("flow", "demo")


def test_a_wrong_file_does_not_affect_other_methods(
    write: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    write("TITLE = 3\n")
    assert spec_of("riad", "demo").title == "RIAD"
    assert "TITLE" in caplog.text


def test_settings_come_from_the_file_and_bench_toml_replaces_them(write: Callable[..., None]) -> None:
    write(FILE)
    assert spec_of("flow", "demo").settings == {
        "lr": (5, "profile demo"),
        "stages": ([1, 2], "profile demo in plugins/flow.py"),
    }
    assert spec_of("flow", "paper").settings == {"lr": (-1, "profile paper in plugins/flow.py")}
    assert spec_of("flow", "none").settings == {}


def test_an_alias_in_the_file_has_a_title_and_settings(write: Callable[..., None]) -> None:
    write(FILE)
    spec = spec_of("flow_large", "paper")
    assert (spec.name, spec.method, spec.title) == ("flow_large", "flow", "Flow L")
    assert spec.settings["width"] == (64, "alias flow_large in plugins/flow.py")
    assert spec.settings["lr"] == (-1, "profile paper in plugins/flow.py")


def test_a_table_of_bench_toml_replaces_title_and_settings_of_an_alias(write: Callable[..., None]) -> None:
    write(FILE)
    alias = {"flow_large": {"title": "Flow XL", "set": {"width": 96}}, "flow": {"title": "Flow (ours)"}}
    tables = TABLES | {"alias": alias}
    assert spec_of("flow_large", "demo", tables).settings["width"] == (96, "alias flow_large")
    assert spec_of("flow_large", "demo", tables).title == "Flow XL"
    assert spec_of("flow", "demo", tables).title == "Flow (ours)"
    other = TABLES | {"alias": {"flow_large": {"method": "riad"}}}
    assert (spec_of("flow_large", "demo", other).method, spec_of("flow_large", "demo", other).title) == (
        "riad",
        "flow_large",
    )


def test_all_leaves_out_a_file_that_has_an_alias_without_settings(write: Callable[..., None]) -> None:
    write(FILE)
    methods = ["flow", "riad"]
    plan = make_plan(Config(TABLES), methods, options={"method": "all"}, profile="demo")
    assert [spec.name for spec in plan.method_specs] == ["flow2", "flow_large", "riad"]


@pytest.mark.parametrize("alias", ["aminet_jitter", "riad"])
def test_an_alias_with_the_name_of_another_method_raises_an_error(write: Callable[..., None], alias: str) -> None:
    write(f"ALIASES = {{'{alias}': {{'title': 'x'}}}}\n")
    with pytest.raises(BenchError, match=f"'{alias}'"):
        spec_of("flow", "demo")


def test_every_family_is_documented() -> None:
    assert len(FAMILIES) == len(set(FAMILIES)) == 9


def test_listing_the_methods_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom bench.config.bench_toml import load_config\nprint(load_config().aliases()['riad'].title)\n"
        "print('torch' in sys.modules)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["RIAD", "False"]
