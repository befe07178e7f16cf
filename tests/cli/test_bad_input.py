"""Bad input of every kind: a short error, exit code 2, and everything else is still computed.

Each case runs the whole command line in this process.
"""

import json
import logging
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import registry
from bench.cli import app
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.errors import BenchError
from bench.execution import schedule
from bench.store import Store

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
RUN = ("run", "--dataset", "folder", "--data", "parts", "--profile", "check", "--no-time", "--threads", "1",
       "--protocol", "one-for-one")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """Exit code and output of a call."""

    code: int
    text: str
    stdout: str


@pytest.fixture
def bench(parts: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> Iterator[Callable[..., Result]]:
    """Call `bench` in the folder of `parts`, with the plug-in method `faulty`."""
    monkeypatch.chdir(parts.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(parts.parent / "cache"))
    monkeypatch.setenv("COLUMNS", "10000")
    Path("bench.toml").write_text(f'[paths]\nmethods = ["{PLUGINS}"]\n', "utf-8")

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["bench", "--trust", *arguments])
        caplog.clear()
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        output = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), "\n".join([output.out, output.err, *caplog.messages]), output.out)

    with caplog.at_level(logging.WARNING):
        yield call
    import_module("bench.methods").__path__ = [str(registry.plugin_folders("methods")[0])]


def lines(result: Result, text: str) -> list[str]:
    """Return the lines with the text, at least one."""
    matching = [line for line in result.text.splitlines() if text in line]
    assert matching, result.text
    return matching


def succeeded() -> set[tuple[str, str]]:
    """Return method and category of each record without failure."""
    return {(record.run.name, record.category) for record in Store(Path("runs")).records() if not record.failure}


def save_png(pixels: np.ndarray, path: Path, mode: str | None = None) -> None:
    Image.fromarray(pixels).convert(mode or "RGB").save(path, "PNG")


# ---- files

GRAY = np.full((64, 64, 3), 100, np.uint8)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _enlarge(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20000, 20000)  # the header's width and height
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "empty": lambda path: path.write_bytes(b""),
    "of zeros": lambda path: path.write_bytes(bytes(1000)),
    "text": lambda path: path.write_text("no image", "utf-8"),
    "of 20,000 pixels a side": _enlarge,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("image_path", ["train/good/000.png", "test/spot/001.png"])
def test_an_unreadable_image_fails_its_category_only(bench, parts: Path, how: str, image_path: str) -> None:
    DAMAGE[how](parts / "bolt" / image_path)
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 2
    (line,) = lines(result, "failed: ")
    assert line.startswith("Mean map (baseline) bolt, seed 0 failed: An image must be complete and readable; ")
    assert image_path in line
    assert line.endswith("Fix or remove it.")
    assert succeeded() == {("meanmap", "plate")}


FORMATS: dict[str, Callable[[Path], object]] = {
    "a JPEG called .png": lambda path: Image.fromarray(GRAY).save(path, "JPEG"),
    "16 bit": lambda path: Image.fromarray(np.full((64, 64), 25_700, np.uint16)).save(path),
    "CMYK": lambda path: Image.fromarray(GRAY).convert("CMYK").save(path, "TIFF"),
    "1 x 1": lambda path: save_png(GRAY[:1, :1], path),
    "gray": lambda path: save_png(GRAY, path, "L"),
    "a palette": lambda path: save_png(GRAY, path, "P"),
}


@pytest.mark.parametrize("how", FORMATS)
def test_images_of_all_formats_are_read(bench, parts: Path, how: str) -> None:
    for file in ("train/good/000.png", "test/good/001.png"):
        FORMATS[how](parts / "bolt" / file)
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 0, result.text
    assert succeeded() == {("meanmap", "bolt"), ("meanmap", "plate")}


def test_a_mask_of_another_shape_fails_its_category_only(bench, parts: Path) -> None:
    save_png(GRAY[:10], parts / "bolt" / "ground_truth" / "spot" / "001_mask.png", "L")
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 2
    (line,) = lines(result, "failed: ")
    assert "001_mask.png is not: it has 64 x 10 pixels, its image 64 x 64" in line
    assert succeeded() == {("meanmap", "plate")}


def test_missing_masks_and_images_are_warnings(bench, parts: Path) -> None:
    (parts / "bolt" / "ground_truth" / "spot" / "001_mask.png").unlink()
    (parts / "plate" / "test" / "spot" / "001.png").unlink()
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 0, result.text
    assert lines(result, "bolt")
    records = {record.category: record for record in Store(Path("runs")).records()}
    assert set(records) == {"bolt", "plate"}
    assert any("mask" in warning for warning in records["bolt"].warnings)
    assert len(records["plate"].test_files) == 5


def test_an_empty_category_is_skipped_with_a_warning(bench, parts: Path) -> None:
    for path in [*(parts / "bolt" / "train").rglob("*.png"), *(parts / "bolt" / "test").rglob("*.png")]:
        path.unlink()
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 0, result.text
    lines(result, "bolt")
    assert succeeded() == {("meanmap", "plate")}


def test_a_category_with_a_file_that_cannot_be_opened_is_skipped(bench, parts: Path) -> None:
    image = parts / "bolt" / "train" / "good" / "000.png"
    image.unlink()
    image.symlink_to(parts / "missing.png")
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 2
    (line,) = lines(result, "bolt is skipped: ")
    assert f"{image.relative_to(parts.parent)} is not: No such file or directory. Fix or remove it." in line
    lines(result, "Skipped: bolt.")
    assert succeeded() == {("meanmap", "plate")}


# ---- folders


def _add_second_file_of_a_stem(parts: Path) -> None:
    save_png(GRAY, parts / "bolt" / "train" / "good" / "000.bmp")


def _add_second_category_of_a_name(parts: Path) -> None:
    path = parts / "line2" / "bolt" / "train" / "good" / "000.png"
    path.parent.mkdir(parents=True)
    save_png(GRAY, path)


def _replace_by_file(parts: Path) -> None:
    parts.rename(parts.parent / "moved")
    parts.write_text("a file", "utf-8")


def _remove(parts: Path) -> None:
    parts.rename(parts.parent / "moved")


@pytest.mark.parametrize(
    ("change", "message"),
    [(_add_second_file_of_a_stem, "000"),
     (_add_second_category_of_a_name, "Categories must have different names; 'bolt'"),
     (_replace_by_file, "is a file"), (_remove, "does not exist")],
    ids=["two files of a stem", "two categories of a name", "a file", "missing"],
)  # fmt: skip
def test_an_invalid_dataset_is_an_error_in_one_line(
    bench, parts: Path, change: Callable[[Path], None], message: str
) -> None:
    change(parts)
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 2
    (line,) = result.text.strip().splitlines()
    assert message in line


def test_an_unreadable_folder_is_an_error_in_one_line(bench, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.iterdir

    def denied(self: Path) -> Iterator[Path]:
        if self.name == "spot":  # root may read everything, so file permissions would have no effect
            raise PermissionError(13, "Permission denied", str(self))
        return original(self)

    monkeypatch.setattr(Path, "iterdir", denied)
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 2
    (line,) = result.text.strip().splitlines()
    assert "spot" in line
    assert "ermission denied" in line


def test_links_to_a_parent_folder_are_harmless(bench, parts: Path) -> None:
    (parts / "bolt" / "test" / "loop").symlink_to(parts / "bolt")
    (parts / "parent").symlink_to(parts)
    (parts / "self").symlink_to(parts / "self")
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 0, result.text
    assert succeeded() == {("meanmap", "bolt"), ("meanmap", "plate")}


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--protocol", "kshot", "--k", "6"),
            "k must not exceed the number of training images; k is 6 and 'bolt' has 5.",
        ),
        (("--protocol", "kshot", "--k", "0"), "k must be >= 1, got 0."),
        (("--protocol", "kshot", "--k", "-2"), "k must be >= 1, got -2."),
        (("--set", "smoothin=3"), "'smoothin' is not a setting of meanmap. Did you mean 'smoothing'?"),
        (("--set", "smoothing=wide"), "smoothing (--set) must be"),
        (("--category", "blot"), "'blot' is not a category of folder. Did you mean 'bolt'?"),
        (("--timeout", "-3"), "timeout must be >= 0; --timeout gives -3.0."),
        (("--seed", "18446744073709551616"), "--seed must be an integer of 64 bits, got one of 65 bits. Change it."),
        (("--limit", "-9223372036854775808"), "--limit must be an integer of 64 bits, got one of 64 bits. Change it."),
        (("--calibrate", "1e-320"), "A false positive rate must be >= 1e-09 and < 1, got 1e-320."),
        (("--executor", "slurm"), "--executor must be one of local, process, ray"),
        (
            ("--gpus-per-task", "0"),
            "gpus_per_task must be a fraction of one GPU or a whole number; --gpus-per-task gives 0.",
        ),
    ],
)
def test_an_invalid_argument_is_an_error_in_one_line(bench, arguments: tuple[str, ...], message: str) -> None:
    run = RUN[:-2] if "--protocol" in arguments else RUN  # an option must be given once
    result = bench(*run, "--method", "meanmap", *arguments)
    assert result.code == 2
    (line,) = result.text.strip().splitlines()
    assert line.startswith(message)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("[paths\n", "must be readable TOML"), ("[paths]\nrun = 'x'\n", "Did you mean 'runs'?"),
     ("[profil.x]\n", "Did you mean 'profile'?"), ("\udcff", "must be readable TOML"),
     ("[dataset.foldr]\ndepth = 12\n", "'foldr' is not a dataset, in [dataset] of bench.toml. Did you mean 'folder'?"),
     ("[paths.data]\nfoldr = 'x'\n", "'foldr' is not a dataset, in [paths.data]"),
     ("[category.foldr.bolt]\nmeanmap = {smoothing = 1}\n", "'foldr' is not a dataset, in [category]")],
)  # fmt: skip
def test_an_invalid_bench_toml_is_an_error_in_one_line(bench, text: str, message: str) -> None:
    Path("bench.toml").write_bytes(text.encode(errors="surrogateescape"))
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 2
    (line,) = result.text.strip().splitlines()
    assert message in line


def test_settings_for_a_category_that_the_images_do_not_have_are_a_warning(bench) -> None:
    Path("bench.toml").write_text("[category.folder.blot]\nmeanmap = {smoothing = 1}\n", "utf-8")
    result = bench(*RUN, "--method", "meanmap")
    assert result.code == 0
    lines(result, "[category.folder.blot], but the images have no such category; they have bolt, plate.")


# ---- a user's method


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("NaN scores", "must be finite"),
        ("infinite maps", "must be finite"),
        ("wrong shape", "(6, 64, 64)"),
        ("wrong type", "AttributeError"),
        ("raises", "ZeroDivisionError: the divisor is 0"),
        ("exits", "SystemExit: the method called sys.exit"),
        ("MemoryError", "MemoryError: no memory is left"),
    ],
)
def test_a_faulty_method_does_not_affect_the_others(bench, fault: str, message: str) -> None:
    result = bench(*RUN, "--method", "faulty,meanmap", "--set", f"faulty.fault={fault}")
    assert result.code == 2
    assert {line.partition(",")[0] for line in lines(result, "failed:")} == {"Faulty bolt", "Faulty plate"}
    assert lines(result, message)
    assert succeeded() == {("meanmap", "bolt"), ("meanmap", "plate")}
    report = bench("report")
    assert report.code == 0
    assert "failed in bolt, seed 0: " in report.text
    assert "2 failed" in bench("list", "runs").text


def test_a_method_may_print(bench) -> None:
    result = bench(*RUN, "--method", "faulty", "--set", "fault=prints")
    assert result.code == 0, result.text
    assert "printed by the method" in result.text
    assert succeeded() == {("faulty", "bolt"), ("faulty", "plate")}


def test_what_a_method_prints_does_not_mix_with_json(bench) -> None:
    result = bench(*RUN, "--method", "faulty", "--set", "fault=prints", "--category", "bolt", "--json")
    assert json.loads(result.stdout)[0]["category"] == "bolt"
    assert "printed by the method" in result.text  # on stderr


def test_a_plug_in_with_a_syntax_error_is_skipped(bench) -> None:
    Path("my-methods").mkdir()
    Path("my-methods/broken.py").write_text("def fit(:\n", "utf-8")
    Path("bench.toml").write_text('[paths]\nmethods = ["my-methods"]\n', "utf-8")
    result = bench(*RUN, "--method", "broken,meanmap")
    assert result.code == 2
    lines(result, "broken")
    lines(result, "SyntaxError")
    assert succeeded() == {("meanmap", "bolt"), ("meanmap", "plate")}
    assert bench(*RUN, "--method", "broken").code == 2


# ---- the store


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("how", ["truncated", "empty", "of zeros", "text"])
def test_a_damaged_file_in_the_store_is_skipped(bench, suffix: str, how: str) -> None:
    assert bench(*RUN, "--method", "meanmap,faulty").code == 0
    (path,) = Path("runs").rglob(f"meanmap/*/*/bolt.{suffix}")
    DAMAGE[how](path)
    result = bench("report")
    assert result.code == 0, result.text
    assert "Traceback" not in result.text
    assert "Mean map (baseline)" in result.text
    if suffix == "json":
        (line,) = lines(result, f"{path.name} is skipped: ")
        assert str(path) in line
        assert bench(*RUN, "--method", "meanmap").code == 0  # and it is computed again
        assert ("meanmap", "bolt") in succeeded()


def test_a_report_of_damaged_records_only_is_an_error(bench) -> None:
    assert bench(*RUN, "--method", "meanmap").code == 0
    for path in Path("runs").rglob("*.json"):
        DAMAGE["truncated"](path)
    result = bench("report")
    assert result.code == 2
    assert "runs has 2 files of records, and none can be read." in result.text


def test_a_record_of_another_schema_is_skipped(bench) -> None:
    assert bench(*RUN, "--method", "meanmap").code == 0
    (path,) = Path("runs").rglob("bolt.json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"schema": 99}), "utf-8")
    result = bench("report")
    assert result.code == 0
    assert lines(result, "got 99. Update maskbench.")
    assert "plate" in result.text


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), content=st.binary(max_size=20), file=st.sampled_from(["bolt.json", "bolt.npz"]))
def test_a_report_is_written_with_any_damage_of_the_store(bench, at: float, content: bytes, file: str) -> None:
    if not Path("runs").exists():
        assert bench(*RUN, "--method", "meanmap").code == 0
    (path,) = Path("runs").rglob(file)
    original = path.read_bytes()
    start = int(at * len(original))
    path.write_bytes(original[:start] + content + original[start + len(content) :])
    try:
        result = bench("report")
    finally:
        path.write_bytes(original)
    assert result.code == 0
    assert "plate" in result.text


NAMES = st.sampled_from(["train", "test", "good", "spot", "ground_truth", "bolt", "Good", ".x", "a b", "ü"])
FILES = st.sampled_from(["000.png", "000_mask.png", "001.PNG", "001.jpg", "readme.txt", ".png", "x.tar.gz"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.lists(st.tuples(st.lists(NAMES, max_size=4), FILES, st.booleans()), max_size=12))
def test_any_tree_of_folders_gives_records_or_a_bench_error(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str, bool]]
) -> None:
    root = tmp_path_factory.mktemp("tree") / "parts"
    root.mkdir()
    for folders, file, has_content in tree:
        path = root.joinpath(*folders, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"some bytes" if has_content else b"")
    options = {"dataset": "folder", "protocol": "one-for-one", "method": "meanmap", "time": False}
    paths = {"data": root, "runs": root.parent / "runs", "cache": root.parent / "cache"}
    plan = make_plan(load_config(root), registry.names("methods"), options=options, profile="check", paths=paths)
    try:
        jobs = schedule.make_schedule(plan)
    except BenchError:
        return
    records = list(schedule.run_schedule(plan, jobs, lambda *_: None))
    assert records
    assert all("must be complete and readable" in record.failure for record in records)  # no file is an image
