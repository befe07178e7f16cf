"""Whatever a user brings: one clear line, exit code 2 where something can't be done, and the rest done all the same.

Each case goes the whole way through the command line, in this process.
"""

import json
import logging
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import registry
from bench.cli import app, console
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.errors import BenchError
from bench.execution import schedule
from bench.store import Store

ODD = Path(__file__).resolve().parents[1] / "plugins"
RUN = ("run", "--dataset", "folder", "--data", "parts", "--profile", "check", "--no-time", "--threads", "1",
       "--protocol", "one-for-one")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Told:
    """How a call ended, and all that it said."""

    code: int
    text: str


@pytest.fixture
def bench(parts: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> Iterator[Callable[..., Told]]:
    """`bench` as the command line calls it, in the folder that holds `parts`, with the odd method among its own."""
    monkeypatch.chdir(parts.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(parts.parent / "cache"))
    for one in (console.out, console.status, console.err):
        monkeypatch.setattr(one, "_width", 10_000)
    Path("bench.toml").write_text(f'[paths]\nmethods = ["{ODD}"]\n', "utf-8")

    def call(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        caplog.clear()
        with pytest.raises(SystemExit) as end:
            app.main()
        said = capsys.readouterr()
        return Told(int(end.value.code or 0), "\n".join([said.out, said.err, *caplog.messages]))

    with caplog.at_level(logging.WARNING):
        yield call
    registry.import_module("bench.methods").__path__ = [str(registry.plugin_folders("methods")[0])]


def lines(told: Told, words: str) -> list[str]:
    found = [line for line in told.text.splitlines() if words in line]
    assert found, told.text
    return found


def good() -> set[tuple[str, str]]:
    """The method and category of each record that did not fail."""
    return {(record.run.name, record.category) for record in Store(Path("runs")).records() if not record.failure}


def png(pixels: np.ndarray, path: Path, mode: str | None = None) -> None:
    Image.fromarray(pixels).convert(mode or "RGB").save(path, "PNG")


# ---- files

GREY = np.full((64, 64, 3), 100, np.uint8)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _huge(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20000, 20000)  # the header's width and height
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


BROKEN: dict[str, Callable[[Path], object]] = {
    "truncated": _cut,
    "of no bytes": lambda path: path.write_bytes(b""),
    "of zeros": lambda path: path.write_bytes(bytes(1000)),
    "text": lambda path: path.write_text("no image", "utf-8"),
    "of 20,000 pixels a side": _huge,
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("place", ["train/good/000.png", "test/spot/001.png"])
def test_a_broken_image_fails_its_category_and_no_other(bench, parts: Path, how: str, place: str) -> None:
    BROKEN[how](parts / "bolt" / place)
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 2
    (line,) = lines(told, "failed: ")
    assert line.startswith("Mean map (floor) bolt, seed 0 failed: An image must be whole and usable; ")
    assert place in line
    assert line.endswith("Mend or remove it.")
    assert good() == {("meanmap", "plate")}


USUAL: dict[str, Callable[[Path], object]] = {
    "a JPEG called .png": lambda path: Image.fromarray(GREY).save(path, "JPEG"),
    "16 bit": lambda path: Image.fromarray(np.full((64, 64), 25_700, np.uint16)).save(path),
    "CMYK": lambda path: Image.fromarray(GREY).convert("CMYK").save(path, "TIFF"),
    "1 x 1": lambda path: png(GREY[:1, :1], path),
    "grey": lambda path: png(GREY, path, "L"),
    "a palette": lambda path: png(GREY, path, "P"),
}


@pytest.mark.parametrize("how", USUAL)
def test_an_unusual_image_is_read_like_any_other(bench, parts: Path, how: str) -> None:
    for place in ("train/good/000.png", "test/good/001.png"):
        USUAL[how](parts / "bolt" / place)
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 0, told.text
    assert good() == {("meanmap", "bolt"), ("meanmap", "plate")}


def test_a_mask_of_another_shape_fails_its_category_and_no_other(bench, parts: Path) -> None:
    png(GREY[:10], parts / "bolt" / "ground_truth" / "spot" / "001_mask.png", "L")
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 2
    (line,) = lines(told, "failed: ")
    assert "001_mask.png is not: it has 64 x 10 pixels, its image 64 x 64" in line
    assert good() == {("meanmap", "plate")}


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_told_and_done_without(bench, parts: Path) -> None:
    (parts / "bolt" / "ground_truth" / "spot" / "001_mask.png").unlink()
    (parts / "plate" / "test" / "spot" / "001.png").unlink()
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 0, told.text
    assert len(lines(told, "bolt")) >= 1
    records = {record.category: record for record in Store(Path("runs")).records()}
    assert set(records) == {"bolt", "plate"}
    assert any("mask" in said for said in records["bolt"].warnings)
    assert len(records["plate"].test_files) == 5


def test_an_empty_category_is_told_and_left_out(bench, parts: Path) -> None:
    for path in [*(parts / "bolt" / "train").rglob("*.png"), *(parts / "bolt" / "test").rglob("*.png")]:
        path.unlink()
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 0, told.text
    lines(told, "bolt")
    assert good() == {("meanmap", "plate")}


def test_a_file_that_can_not_be_opened_leaves_its_category_out(bench, parts: Path) -> None:
    image = parts / "bolt" / "train" / "good" / "000.png"
    image.unlink()
    image.symlink_to(parts / "nowhere.png")
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 2
    (line,) = lines(told, "bolt is left out: ")
    assert f"{image.relative_to(parts.parent)} is not: No such file or directory. Mend or remove it." in line
    lines(told, "Left out: bolt.")
    assert good() == {("meanmap", "plate")}


# ---- folders


def _twice(parts: Path) -> None:
    png(GREY, parts / "bolt" / "train" / "good" / "000.bmp")


def _two_of_a_name(parts: Path) -> None:
    png(GREY, _made(parts / "line2" / "bolt" / "train" / "good" / "000.png"))


def _file(parts: Path) -> None:
    parts.rename(parts.parent / "away")
    parts.write_text("no folder", "utf-8")


def _gone(parts: Path) -> None:
    parts.rename(parts.parent / "away")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [(_twice, "000"), (_two_of_a_name, "Categories must differ in name; 'bolt'"), (_file, "is a file"),
     (_gone, "does not exist")],
    ids=["two files of a stem", "two categories of a name", "a file", "nothing"],
)  # fmt: skip
def test_a_tree_that_can_not_be_read_is_one_line(bench, parts: Path, how: Callable[[Path], None], words: str) -> None:
    how(parts)
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 2
    (line,) = told.text.strip().splitlines()
    assert words in line


def test_an_unreadable_folder_is_one_line(bench, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def closed(self: Path) -> Iterator[Path]:
        if self.name == "spot":  # root may read anything, so that a mode would not do
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", closed)
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 2
    (line,) = told.text.strip().splitlines()
    assert "spot" in line
    assert "ermission denied" in line


def test_links_that_lead_back_are_walked_once(bench, parts: Path) -> None:
    (parts / "bolt" / "test" / "loop").symlink_to(parts / "bolt")
    (parts / "again").symlink_to(parts)
    (parts / "self").symlink_to(parts / "self")
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 0, told.text
    assert good() == {("meanmap", "bolt"), ("meanmap", "plate")}


# ---- words


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--protocol", "kshot", "--k", "6"), "k-shot asks for 6 images; 'bolt' has 5 to train on."),
        (("--protocol", "kshot", "--k", "0"), "k-shot fits on at least one image; --k is 0."),
        (("--protocol", "kshot", "--k", "-2"), "k-shot fits on at least one image; --k is -2."),
        (("--set", "smoothin=3"), "'smoothin' is not a setting of meanmap. Did you mean 'smoothing'?"),
        (("--set", "smoothing=wide"), "smoothing (--set) is a finite number; 'wide' is not."),
        (("--category", "blot"), "'blot' is not a category of folder. Did you mean 'bolt'?"),
        (("--timeout", "-3"), "timeout is 0 or more; --timeout gives -3.0."),
        (("--executor", "slurm"), "--executor is one of local, process, ray; 'slurm' is not."),
        (("--gpus-per-task", "0"), "A fit asks for a part of one GPU or for whole ones; --gpus-per-task gives 0."),
    ],
)
def test_a_word_that_does_not_fit_is_one_line(bench, words: tuple[str, ...], line: str) -> None:
    told = bench(*RUN, "--method", "meanmap", *words)
    assert told.code == 2
    (said,) = told.text.strip().splitlines()
    assert said.startswith(line)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("[paths\n", "must be readable TOML"), ("[paths]\nrun = 'x'\n", "Did you mean 'runs'?"),
     ("[profil.x]\n", "Did you mean 'profile'?"), ("\udcff", "must be readable TOML")],
)  # fmt: skip
def test_a_broken_bench_toml_is_one_line(bench, text: str, words: str) -> None:
    Path("bench.toml").write_bytes(text.encode(errors="surrogateescape"))
    told = bench(*RUN, "--method", "meanmap")
    assert told.code == 2
    (line,) = told.text.strip().splitlines()
    assert words in line


# ---- a user's method


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", "A method's scores and maps are finite; this one answered NaN or infinity."),
        ("infinite", "A method's scores and maps are finite; this one answered NaN or infinity."),
        ("shape", "A method answers 6 images of 64 x 64 with scores (6,) and maps (6, 64, 64); this one gave"),
        ("type", "AttributeError"),
        ("raises", "ZeroDivisionError: one can't divide so"),
        ("exits", "SystemExit: enough"),
        ("lacks memory", "MemoryError: there is no more"),
    ],
)
def test_a_method_that_misbehaves_fails_alone(bench, how: str, words: str) -> None:
    told = bench(*RUN, "--method", "odd,meanmap", "--set", f"odd.how={how}")
    assert told.code == 2
    assert len(lines(told, words)) == 2  # the bolt and the plate
    assert len(lines(told, "failed:")) == 2
    assert good() == {("meanmap", "bolt"), ("meanmap", "plate")}
    report = bench("report")
    assert report.code == 0
    assert "failed in bolt, seed 0: " in report.text
    assert "2 failed" in bench("list", "runs").text


def test_a_method_that_prints_is_heard_and_does_no_harm(bench) -> None:
    told = bench(*RUN, "--method", "odd", "--set", "how=prints")
    assert told.code == 0, told.text
    assert "a word of mine" in told.text
    assert good() == {("odd", "bolt"), ("odd", "plate")}


def test_a_plug_in_with_a_syntax_error_is_left_out(bench) -> None:
    Path("mine").mkdir()
    Path("mine/broken.py").write_text("def fit(:\n", "utf-8")
    Path("bench.toml").write_text('[paths]\nmethods = ["mine"]\n', "utf-8")
    told = bench(*RUN, "--method", "broken,meanmap")
    assert told.code == 2
    lines(told, "methods/broken.py can't be imported; mend the file.")
    lines(told, "SyntaxError")
    assert good() == {("meanmap", "bolt"), ("meanmap", "plate")}
    assert bench(*RUN, "--method", "broken").code == 2


# ---- the store


@pytest.mark.parametrize("what", ["json", "npz"])
@pytest.mark.parametrize("how", ["truncated", "of no bytes", "of zeros", "text"])
def test_a_corrupt_file_in_the_store_is_told_and_set_aside(bench, what: str, how: str) -> None:
    assert bench(*RUN, "--method", "meanmap,odd").code == 0
    (path,) = Path("runs").rglob(f"meanmap/*/*/bolt.{what}")
    BROKEN[how](path)
    told = bench("report")
    assert told.code == 0, told.text
    assert "Traceback" not in told.text
    assert "Mean map (floor)" in told.text
    if what == "json":
        (line,) = lines(told, f"{path.name} is left out: ")
        assert str(path) in line
        assert bench(*RUN, "--method", "meanmap").code == 0  # and it is made again
        assert ("meanmap", "bolt") in good()


def test_records_of_an_older_schema_are_read_and_of_a_newer_one_refused(bench, data: Path) -> None:
    old = json.loads((data / "record_schema1.json").read_text("utf-8"))
    path = Path("runs/demo/kshot-2/meanmap/8f009c6194d7/seed0/steel.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(old), "utf-8")
    told = bench("report")
    assert told.code == 0
    assert "53.0" in told.text  # the image AUROC
    path.write_text(json.dumps(old | {"schema": 99}), "utf-8")
    told = bench("report")
    assert told.code == 0
    lines(told, "A record has schema 1 to 2; this has 99. Update maskbench.")
    assert "53.0" not in told.text


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), content=st.binary(max_size=20), file=st.sampled_from(["bolt.json", "bolt.npz"]))
def test_any_bytes_anywhere_in_the_store_leave_a_report(bench, at: float, content: bytes, file: str) -> None:
    if not Path("runs").exists():
        assert bench(*RUN, "--method", "meanmap").code == 0
    (path,) = Path("runs").rglob(file)
    whole = path.read_bytes()
    start = int(at * len(whole))
    path.write_bytes(whole[:start] + content + whole[start + len(content) :])
    try:
        told = bench("report")
    finally:
        path.write_bytes(whole)
    assert told.code == 0
    assert "plate" in told.text


NAMES = st.sampled_from(["train", "test", "good", "spot", "ground_truth", "bolt", "Good", ".x", "a b", "ü"])
FILES = st.sampled_from(["000.png", "000_mask.png", "001.PNG", "001.jpg", "readme.txt", ".png", "x.tar.gz"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.lists(st.tuples(st.lists(NAMES, max_size=4), FILES, st.booleans()), max_size=12))
def test_any_tree_of_folders_is_surveyed_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str, bool]]
) -> None:
    root = tmp_path_factory.mktemp("tree") / "parts"
    root.mkdir()
    for folders, file, whole in tree:
        path = root.joinpath(*folders, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if not whole else b"some bytes")
    said = {"dataset": "folder", "protocol": "one-for-one", "method": "meanmap", "time": False}
    paths = {"data": root, "runs": root.parent / "runs", "cache": root.parent / "cache"}
    plan = make_plan(load_config(root), registry.names("methods"), options=said, profile="check", paths=paths)
    try:
        survey = schedule.make_schedule(plan)
    except BenchError:
        return
    records = list(schedule.run_schedule(plan, survey, lambda *_: None))
    assert records
    assert all("must be whole and usable" in record.failure for record in records)  # none of the files is an image
