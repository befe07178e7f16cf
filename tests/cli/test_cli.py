"""The commands as a user calls them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.cli import app
from bench.config.trust import trust


@pytest.fixture
def folder(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tiny dataset parts/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call the console script in this process."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        output = capsys.readouterr()
        return Result(exit_info.value.code or 0, output.out, output.err)

    return call


RUN = ("run", "--dataset", "folder", "--data", "parts", "--protocol", "one-for-one", "--threads", "1", "--no-time")


def test_a_run_prints_a_table_the_folder_of_the_records_and_the_next_command(bench, folder: Path) -> None:
    result = bench(*RUN, "--method", "meanmap", "--seed", "0,1")
    assert result.returncode == 0, result.stderr
    headings = ("category", "image", "pixel", "AUROC", "AP", "AUPRO", "latency")
    for text in (*headings, "bolt", "plate", "mean", "±"):
        assert text in result.stdout
    assert "Records: 4, in runs" in result.stdout
    (line,) = (line for line in result.stdout.splitlines() if "bolt, seed 1: " in line)
    assert line.endswith(" s")  # the whole record in one line
    assert "bench report" in result.stdout
    assert "demo profile: reduced" in result.stdout
    repeated = bench(*RUN, "--method", "meanmap", "--seed", "0,1")
    assert "4 records exist in the store" in repeated.stdout
    assert "100.0" in repeated.stdout
    retried = bench(*RUN, "--method", "meanmap", "--seed", "0,1", "--retry-failed")
    assert "No run of this plan has failed" in retried.stdout


@pytest.mark.parametrize("form", ["--runs=~/results", "~/results"])
def test_the_home_folder_is_replaced_in_every_argument(
    bench, folder: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home" / "results").mkdir(parents=True)
    for command in (("list", "runs"), ("report",), ("compare", "a", "b"), ("track", "--to", "tensorboard")):
        result = bench(*command, form) if form.startswith("--") else bench(*command, "--runs", form)
        assert "does not exist" not in result.stderr
    missing = bench("check", "~/missing.py")
    assert missing.stderr == f"bench check needs a method's name or file; {folder}/home/missing.py is not a file.\n"


def test_a_sweep_gives_one_table_with_a_row_per_variant(bench, folder: Path) -> None:
    result = bench(*RUN, "--method", "meanmap", "--category", "bolt", "--sweep", "smoothing=1,4", "--quiet")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines() if "smoothing=" in line] == [
        "smoothing=1.0", "smoothing=4.0"
    ]  # fmt: skip
    assert "sweep:" not in result.stdout  # the first column has the settings


def test_a_dry_run_needs_neither_data_nor_weights(bench, folder: Path) -> None:
    result = bench("run", "--method", "patchcore", "--profile", "code", "--dataset", "mvtec", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert re.search(r"patchcore.n_starting_points +\S+ 10 ", result.stdout)  # piped: the name is not shortened
    assert "This plan cannot run: " in result.stdout


def test_a_dry_run_prints_settings_if_all_records_exist(bench, folder: Path) -> None:
    bench(*RUN, "--method", "meanmap", "--category", "bolt")
    result = bench(*RUN, "--method", "meanmap", "--category", "bolt", "--dry-run")
    assert "Fits: 0; existing records: 1." in result.stdout
    assert "meanmap.smoothing" in result.stdout


def test_a_dry_run_prints_every_value_with_its_origin_and_runs_nothing(bench, folder: Path) -> None:
    result = bench(*RUN, "--method", "meanmap", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "--protocol" in result.stdout
    assert "profile demo" in result.stdout
    assert "bolt, seed 0: 5 training images, 6 test images" in result.stdout
    assert "Disk: about" in result.stdout
    assert "Memory of meanmap" in result.stdout
    assert not (folder / "runs").exists()


def test_a_report_shows_the_records_of_the_store(bench, folder: Path) -> None:
    missing = bench("report")
    assert (missing.returncode, missing.stderr) == (
        2, "runs must be a folder of records; it does not exist. `bench run` creates it.\n"
    )  # fmt: skip
    (folder / "runs").mkdir()
    assert "no records" in bench("report").stdout
    bench(*RUN, "--method", "meanmap")
    assert "100.0" in bench("report").stdout
    assert bench("report", "--out", "report").returncode == 0
    assert (folder / "report" / "report.md").read_text().startswith("# maskbench")
    assert "folder-parts/one-for-one/meanmap" in bench("list", "runs").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--method", "patchcor"), "Did you mean 'patchcore'"),
        (("run", "--profile", "pape"), "Did you mean 'paper'"),
        (("run", "tabel1"), "Did you mean 'table1'"),
        (("run", "--set", "meanmap.smoothin=2", "--method", "meanmap"), "Did you mean 'smoothing'"),
        (("run", "--set", "smoothing", "--method", "meanmap"), "key=value"),
        (("run", "--selection", "best"), "last, oracle, both"),
        (("run", "--limit", "many"), "--limit"),
        (("run", "--dataset", "mvtec", "--data", "nowhere"), "nowhere"),
        (("run", "--device", "cuda:77", "--method", "meanmap"), "cuda:77"),
        (("report", "--format", "pdf", "--runs", "."), "markdown"),
    ],
)
def test_bad_input_is_a_short_message_and_exit_code_2(
    bench, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = bench(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3


def test_a_failed_run_does_not_stop_the_others_and_sets_the_exit_code(bench, folder: Path) -> None:
    (folder / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    result = bench(*RUN, "--method", "meanmap")
    assert result.returncode == 2
    assert "failed" in result.stdout
    assert "plate, seed 0: image AUROC 100.0" in result.stdout
    assert "1 failed" in bench("list", "runs").stdout


@pytest.mark.parametrize("list_kind", ["methods", "datasets", "protocols", "profiles", "campaigns", "runs"])
def test_every_kind_can_be_listed(bench, folder: Path, list_kind: str) -> None:
    (folder / "runs").mkdir()
    result = bench("list", list_kind)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_check_reports_on_the_installation_and_on_a_method(bench, folder: Path) -> None:
    installation = bench("check")
    assert installation.returncode == 0, installation.stderr
    assert "torch" in installation.stdout
    assert re.search(r"ok +--executor ray: ray \d|missing +--executor ray\n .*'maskbench\[ray\]'", installation.stdout)
    assert re.search(r"missing +dataset mvtec", installation.stdout)
    assert bench("check", "meanmap").returncode == 0
    text = "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Settings: ...\n"
    (folder / "incomplete.py").write_text(text)
    incomplete = bench("check", "incomplete.py")
    assert incomplete.returncode == 2
    assert "lacks METHOD" in incomplete.stderr


def test_check_accepts_the_name_or_the_folder_of_a_dataset(bench, folder: Path) -> None:
    for arguments in (("parts",), ("folder", "--data", "parts")):
        result = bench("check", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Own images: 22 images in 2 categories" in result.stdout
    shutil.copy(folder / "parts/bolt/train/good/000.png", folder / "parts/bolt/test/good/leak.png")
    leak = bench("check", "parts", "--quiet")
    assert leak.returncode == 2
    assert "bolt/train/good/000.png = bolt/test/good/leak.png" in leak.stdout
    assert "Every image can be read." not in leak.stdout


def test_check_detects_the_layout_of_a_published_dataset(bench, folder: Path) -> None:
    for split in ("train", "test"):
        (folder / "surface" / split).mkdir(parents=True)
        for name in ("10000", "10001_GT", "10001"):
            Image.new("L", (8, 16), 60 if name == "10001" else 0).save(folder / "surface" / split / f"{name}.png")
        Image.new("L", (8, 16)).save(folder / "surface" / split / "10000_GT.png")
    assert "KolektorSDD2: 4 images in 1 category" in bench("check", "surface").stdout


def test_with_json_stdout_contains_json_only(bench, folder: Path) -> None:
    def parsed(*arguments: str) -> Any:
        result = bench(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    plan = parsed(*RUN, "--method", "meanmap", "--dry-run")
    assert plan["options"]["protocol"] == {"value": "one-for-one", "origin": "--protocol"}
    assert [fit["n_train"] for fit in plan["fits"]] == [5, 5]
    assert (plan["seconds"], plan["n_fits_without_estimate"]) == (0, 2)  # the store is empty
    records = parsed(*RUN, "--method", "meanmap", "--seed", "0,1")
    assert [(record["category"], record["seed"]) for record in records] == [
        ("bolt", 0), ("plate", 0), ("bolt", 1), ("plate", 1)
    ]  # fmt: skip
    assert records[0]["metrics"]["image_auroc"] == 1.0
    assert {row["category"] for row in parsed("report")} == {"bolt", "plate", "mean"}
    (row,) = parsed("list", "runs")
    assert (row["name"], row["title"]) == ("folder-parts/one-for-one/meanmap", "Mean map (baseline)")
    assert (row["limit"], row["n_records"], row["n_models"], row["image_auroc"]) == (0, 4, 0, 1.0)
    assert "meanmap" in [row["name"] for row in parsed("list", "methods")]
    assert not any(result["problem"] for result in parsed("check", "parts"))


def test_the_list_of_runs_gives_what_other_commands_take(bench, folder: Path) -> None:
    for limit in ("0", "2"):
        command = (*RUN, "--method", "meanmap", "--limit", limit, "--keep-model", "--quiet")
        assert bench(*command).returncode == 0
    lines = bench("list", "runs").stdout.splitlines()
    cells = [line.split() for line in lines[-2:]]
    name = "folder-parts/one-for-one/meanmap"
    today = datetime.now(UTC).date().isoformat()
    assert sorted([cell[:1] + cell[2:6] for cell in cells]) == [
        [name, today, "2", "2", "2"],
        [name, today, "–", "2", "2"],
    ]
    predict = ("predict", f"{name}/{cells[0][1]}", "parts/bolt/test/spot", "--json")
    assert len(json.loads(bench(*predict, "--category", "bolt").stdout)) == 3
    assert len(json.loads(bench("predict", f"{name}/{cells[0][1]}/bolt", *predict[2:]).stdout)) == 3
    several = bench(*predict)
    assert several.returncode == 2
    assert "matches 2" in " ".join(several.stderr.split())
    assert bench("predict", f"{name}/{'0' * 12}", *predict[2:]).returncode == 2
    values = json.loads(bench("compare", *(f"{name}/{cell[1]}" for cell in cells), "--json").stdout)
    assert [run["group_hash"] for run in values["runs"]] == [cell[1] for cell in cells]
    assert values["settings"]["options.tasks.limit"] in ([0, 2], [2, 0])
    assert {(row["category"], row["metric"]) for row in values["metrics"]} >= {("bolt", "image_auroc")}


@pytest.mark.parametrize(
    "command", ["run", "report", "compare", "list", "check", "time", "predict", "export", "merge", "track"]
)
def test_every_command_has_json_quiet_and_verbose(bench, command: str) -> None:
    text = bench(command, "--help").stdout
    assert all(option in text for option in ("--json", "--quiet", "-q", "--verbose", "-v"))


def test_quiet_prints_the_table_and_failures_only(bench, folder: Path) -> None:
    result = bench(*RUN, "--method", "meanmap", "--quiet")
    assert "Records:" not in result.stdout
    assert "; fit " not in result.stdout
    assert "plate" in result.stdout
    assert not result.stderr
    (folder / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    failed = bench(*RUN, "--method", "meanmap", "--quiet")
    assert failed.returncode == 2
    assert "bolt, seed 0 failed" in failed.stderr


def test_colors_are_for_terminals_only(folder: Path) -> None:
    command = [sys.executable, "-m", "bench", "run", "--method", "patchcor"]
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        result = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})
        assert b"patchcor" in result.stderr
        assert b"\x1b[31m" not in result.stderr


@pytest.mark.parametrize(
    ("shell", "arguments", "completed"),
    [
        ("bash", ("re",), "report"),
        ("zsh", ("run", "--method", "meanmap,pat"), "meanmap,patchcore"),
        ("fish", ("run", "--dataset", "mv"), "mvtec_loco"),
        ("bash", ("run", "tab"), "table4"),
        ("bash", ("run", "--protocol", "ks"), "kshot"),
        ("bash", ("run", "--selection", "or"), "oracle"),
        ("bash", ("run", "--profile", "co"), "code"),
        ("bash", ("time", "--method", "my_"), "my_method"),
        ("bash", ("compare", "demo/k"), "demo/kshot-4/mean"),
        ("bash", ("predict", "demo/k"), "demo/kshot-4/mean/gear"),
    ],
)
def test_shells_complete_commands_names_and_choices(
    folder: Path, shell: str, arguments: tuple[str, ...], completed: str
) -> None:
    (folder / "methods").mkdir()
    (folder / "methods" / "my_method.py").touch()
    model = folder / "runs" / "demo" / "kshot-4" / "mean" / "0123456789ab" / "seed0" / "gear.safetensors"
    model.parent.mkdir(parents=True)
    model.touch()
    (folder / "bench.toml").write_text('[paths]\nmethods = ["methods"]\n')
    trust([folder / "methods"])
    line = " ".join(["bench", *arguments])
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(arguments)), "_TYPER_COMPLETE_ARGS": line}
    variables |= {"_BENCH_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['bench']; from bench.cli.app import main; main()"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    assert completed in result.stdout


def test_verbose_prints_each_step_with_its_seconds(folder: Path) -> None:
    command = [sys.executable, "-m", "bench", *RUN, "--method", "meanmap", "--category", "bolt", "--verbose"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"11 samples, 1 task\(s\); listed and hashed in \d", result.stderr)
    assert re.search(r"bolt, seed 0: fit \d\S+ s, predict \d\S+ s, evaluate \d\S+ s", result.stderr)


def test_a_saved_model_predicts_new_images(bench, folder: Path) -> None:
    bench(*RUN, "--method", "meanmap", "--category", "bolt", "--keep-model", "--quiet")
    predict = ("predict", "folder-parts/one-for-one/meanmap/bolt", "parts/bolt/test")
    result = bench(*predict, "--out", "predicted")
    assert result.returncode == 0, result.stderr
    assert "spot/002.png" in result.stdout
    assert "No threshold: the run was not calibrated" in result.stdout
    assert len(list((folder / "predicted" / "overlays").rglob("*.png"))) == 6
    rows = json.loads(bench(*predict, "--json").stdout)
    assert max(rows, key=lambda row: row["score"])["image"].startswith("parts/bolt/test/spot/")
    (folder / "parts" / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    unreadable = bench(*predict)
    assert unreadable.returncode == 2
    assert "000.png is not" in unreadable.stderr
    assert "spot/002.png" in unreadable.stdout


@pytest.mark.parametrize("command", ["run", "list", "check", "report", "time", "predict", "export"])
def test_the_help_of_every_command_has_an_example(bench, command: str) -> None:
    assert f"bench {command}" in bench(command, "--help").stdout.split("Example", 1)[1]


@pytest.mark.parametrize("list_kind", ["methods", "datasets", "protocols", "profiles", "campaigns"])
def test_help_and_lists_import_neither_torch_nor_numpy(folder: Path, list_kind: str) -> None:
    code = (
        "import sys; from bench.cli.app import app\n"
        "for arguments in (['run', '--help'], ['list', sys.argv[1]]): app(arguments, standalone_mode=False)\n"
        "assert not {'torch', 'numpy'} & {*sys.modules}, [name for name in ('torch', 'numpy') if name in sys.modules]"
    )
    result = subprocess.run([sys.executable, "-c", code, list_kind], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_ctrl_c_prints_how_to_continue(folder: Path) -> None:
    command = [sys.executable, "-m", "bench", *RUN, "--method", "aminet", "--set", "epochs=100000"]
    # Children of a background shell ignore SIGINT by default.
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=restore) as process:  # noqa: PLW1509
        try:
            assert process.stdout is not None
            while not process.stdout.readline().startswith("demo profile") and process.poll() is None:
                pass
            time.sleep(3)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr
