"""The commands as a user types them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.cli import app


@pytest.fixture
def here(tmp_path: Path, parts: Path, monkeypatch) -> Path:
    """A working folder with a tiny data set of the user's own, parts/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@dataclass
class Said:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Calls the console script in this process."""

    def call(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        told = capsys.readouterr()
        return Said(ended.value.code or 0, told.out, told.err)

    return call


RUN = ("run", "--dataset", "folder", "--data", "parts", "--protocol", "one-for-one", "--threads", "1", "--no-time")


def test_a_run_ends_with_a_table_the_place_of_the_records_and_the_next_command(bench, here: Path) -> None:
    found = bench(*RUN, "--method", "meanmap", "--seed", "0,1")
    assert found.returncode == 0, found.stderr
    headings = ("category", "image", "pixel", "AUROC", "AP", "AUPRO", "latency")
    for words in (*headings, "bolt", "plate", "mean", "±"):
        assert words in found.stdout
    assert "below runs" in found.stdout
    assert "bench report" in found.stdout
    assert "demo profile: reduced" in found.stdout
    again = bench(*RUN, "--method", "meanmap", "--seed", "0,1")
    assert "4 records stand in the store" in again.stdout
    assert "100.0" in again.stdout
    retried = bench(*RUN, "--method", "meanmap", "--seed", "0,1", "--retry-failed")
    assert "Nothing of this plan has failed" in retried.stdout


def test_a_dry_run_tells_every_value_with_its_origin_and_does_nothing(bench, here: Path) -> None:
    found = bench(*RUN, "--method", "meanmap", "--dry-run")
    assert found.returncode == 0, found.stderr
    assert "--protocol" in found.stdout
    assert "profile demo" in found.stdout
    assert "to do: Mean map (floor) bolt, seed 0: 5 training images, 6 test images" in found.stdout
    assert "Disk: about" in found.stdout
    assert "Memory of meanmap" in found.stdout
    assert not (here / "runs").exists()


def test_a_report_of_what_is_in_the_store(bench, here: Path) -> None:
    assert "no records" in bench("report").stdout
    bench(*RUN, "--method", "meanmap")
    text = bench("report").stdout
    assert "| Mean map (floor) | 100.0" in text
    assert bench("report", "--out", "report").returncode == 0
    assert (here / "report" / "report.md").read_text().startswith("# maskbench")
    assert "folder-parts/one-for-one/meanmap" in bench("list", "runs").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "--method", "patchcor"), "Did you mean 'patchcore'"),
        (("run", "--profile", "pape"), "Did you mean 'paper'"),
        (("run", "tabel1"), "Did you mean 'table1'"),
        (("run", "--set", "meanmap.smoothin=2", "--method", "meanmap"), "Did you mean 'smoothing'"),
        (("run", "--set", "smoothing", "--method", "meanmap"), "key=value"),
        (("run", "--selection", "best"), "last, oracle, both"),
        (("run", "--dataset", "mvtec", "--data", "nowhere"), "nowhere"),
        (("run", "--device", "cuda:77", "--method", "meanmap"), "cuda:77"),
        (("report", "--format", "pdf"), "markdown"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bench, here: Path, words: tuple[str, ...], told: str) -> None:
    found = bench(*words)
    assert found.returncode == 2
    assert told in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) <= 3


def test_a_failed_run_is_told_the_others_go_on_and_the_exit_code_says_so(bench, here: Path) -> None:
    (here / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    found = bench(*RUN, "--method", "meanmap")
    assert found.returncode == 2
    assert "failed" in found.stdout
    assert "plate, seed 0: image AUROC 100.0" in found.stdout
    assert "1 failed" in bench("list", "runs").stdout


@pytest.mark.parametrize("kind", ["methods", "datasets", "protocols", "profiles", "campaigns", "runs"])
def test_every_list_has_something_to_say(bench, here: Path, kind: str) -> None:
    found = bench("list", kind)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


def test_check_tells_of_this_machine_and_of_a_method(bench, here: Path) -> None:
    machine = bench("check")
    assert machine.returncode == 0, machine.stderr
    assert "torch" in machine.stdout
    assert re.search(r"works  --executor ray: ray \d|absent --executor ray\n .*'maskbench\[ray\]'", machine.stdout)
    assert "absent data set mvtec" in machine.stdout
    assert bench("check", "meanmap").returncode == 0
    (here / "mine.py").write_text("from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Settings: ...\n")
    mine = bench("check", "mine.py")
    assert mine.returncode == 2
    assert "lacks METHOD" in mine.stderr


def test_check_takes_a_data_set_by_its_name_or_its_folder(bench, here: Path) -> None:
    for words in (("parts",), ("folder", "--data", "parts")):
        found = bench("check", *words)
        assert found.returncode == 0, found.stdout + found.stderr
        assert "Own images: 22 images in 2 categories" in found.stdout
    shutil.copy(here / "parts/bolt/train/good/000.png", here / "parts/bolt/test/good/leak.png")
    leaky = bench("check", "parts", "--quiet")
    assert leaky.returncode == 2
    assert "bolt/train/good/000.png = bolt/test/good/leak.png" in leaky.stdout
    assert "works" not in leaky.stdout


def test_check_knows_a_published_layout_when_it_is_given_the_folder_alone(bench, here: Path) -> None:
    for split in ("train", "test"):
        (here / "surface" / split).mkdir(parents=True)
        for name in ("10000", "10001_GT", "10001"):
            Image.new("L", (8, 16), 60 if name == "10001" else 0).save(here / "surface" / split / f"{name}.png")
        Image.new("L", (8, 16)).save(here / "surface" / split / "10000_GT.png")
    assert "KolektorSDD2: 4 images in 1 category" in bench("check", "surface").stdout


def test_json_is_all_that_stdout_holds(bench, here: Path) -> None:
    def told(*words: str) -> Any:
        found = bench(*words, "--json")
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    planned = told(*RUN, "--method", "meanmap", "--dry-run")
    assert planned["options"]["protocol"] == {"value": "one-for-one", "from": "--protocol"}
    assert [fit["train"] for fit in planned["fits"]] == [5, 5]
    assert (planned["seconds"], planned["fits_of_unknown_seconds"]) == (0, 2)  # the store is empty
    records = told(*RUN, "--method", "meanmap", "--seed", "0,1")
    assert [(record["category"], record["seed"]) for record in records] == [
        ("bolt", 0), ("plate", 0), ("bolt", 1), ("plate", 1)
    ]  # fmt: skip
    assert records[0]["metrics"]["image_auroc"] == 1.0
    cells = {row["category"]: row["cells"]["image_auroc"] for row in told("report")}
    assert cells["mean"] == {"mean": 1.0, "std": 0.0, "seeds": 2}
    assert [row["name"] for row in told("list", "runs")] == ["folder-parts/one-for-one/meanmap"]
    assert "meanmap" in [row["name"] for row in told("list", "methods")]
    assert not any(finding["broken"] for finding in told("check", "parts"))


def test_quiet_is_silent_but_for_the_table_and_for_what_fails(bench, here: Path) -> None:
    found = bench(*RUN, "--method", "meanmap", "--quiet")
    assert "below runs" not in found.stdout
    assert "fitted in" not in found.stdout
    assert "plate" in found.stdout
    assert not found.stderr
    (here / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    failed = bench(*RUN, "--method", "meanmap", "--quiet")
    assert failed.returncode == 2
    assert "Mean map (floor) bolt, seed 0 failed" in failed.stderr


def test_colours_are_for_terminals_without_no_color(here: Path) -> None:
    words = [sys.executable, "-m", "bench", "run", "--method", "patchcor"]
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        told = subprocess.run(words, capture_output=True, check=False, env={**os.environ, **environment}).stderr
        assert b"patchcor" in told
        assert b"\x1b[31m" not in told


@pytest.mark.parametrize(
    ("shell", "words", "told"),
    [
        ("bash", ("re",), "report"),
        ("zsh", ("run", "--method", "meanmap,pat"), "meanmap,patchcore"),
        ("fish", ("run", "--dataset", "mv"), "mvtec_loco"),
        ("bash", ("run", "tab"), "table4"),
        ("bash", ("run", "--protocol", "ks"), "kshot"),
        ("bash", ("run", "--profile", "co"), "code"),
        ("bash", ("time", "--method", "met"), "meth_of_mine"),
    ],
)
def test_a_shell_can_complete_commands_and_names(here: Path, shell: str, words: tuple[str, ...], told: str) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "meth_of_mine.py").touch()
    (here / "bench.toml").write_text('[paths]\nmethods = ["mine"]\n')
    line = " ".join(["bench", *words])
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words)), "_TYPER_COMPLETE_ARGS": line}
    asked |= {"_BENCH_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['bench']; from bench.cli.app import main; main()"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **asked})
    assert told in found.stdout


def test_verbose_tells_each_step_and_its_seconds(here: Path) -> None:
    words = [sys.executable, "-m", "bench", *RUN, "--method", "meanmap", "--category", "bolt", "--verbose"]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert re.search(r"11 samples, 1 task\(s\); listed and hashed in \d", found.stderr)
    assert re.search(r"bolt, seed 0: fit \d\S+ s, predict \d\S+ s, judge \d\S+ s", found.stderr)


def test_a_kept_run_judges_new_images(bench, here: Path) -> None:
    bench(*RUN, "--method", "meanmap", "--category", "bolt", "--keep-model", "--quiet")
    asked = ("predict", "folder-parts/one-for-one/meanmap/bolt", "parts/bolt/test")
    found = bench(*asked, "--out", "judged")
    assert found.returncode == 0, found.stderr
    assert "spot/002.png" in found.stdout
    assert "No threshold: the run was made without --calibrate" in found.stdout
    assert len(list((here / "judged" / "pictures").rglob("*.png"))) == 6
    rows = json.loads(bench(*asked, "--json").stdout)
    assert max(rows, key=lambda row: row["score"])["image"].startswith("parts/bolt/test/spot/")
    (here / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    bad = bench(*asked)
    assert bad.returncode == 2
    assert "000.png is not" in bad.stderr
    assert "spot/002.png" in bad.stdout


@pytest.mark.parametrize("command", ["run", "list", "check", "report", "predict", "export"])
def test_the_help_of_every_command_has_an_example(bench, command: str) -> None:
    assert f"bench {command}" in bench(command, "--help").stdout.split("Example", 1)[1]


def test_help_and_lists_do_not_load_torch() -> None:
    code = "import sys; from bench import cli_list as c; c.list_(c.Plugins.methods); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(here: Path) -> None:
    words = [sys.executable, "-m", "bench", *RUN, "--method", "aminet", "--set", "epochs=100000"]
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell makes its children deaf to it
    piped = subprocess.PIPE
    with subprocess.Popen(words, stdout=piped, stderr=piped, text=True, preexec_fn=listening) as running:  # noqa: PLW1509
        try:
            assert running.stdout is not None
            while not running.stdout.readline().startswith("demo profile") and running.poll() is None:
                pass
            time.sleep(3)
            running.send_signal(signal.SIGINT)
            _, told = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    assert "goes on from here" in told
    assert "Traceback" not in told
