"""Streams of any kind: old code pages, control characters, file names that are not UTF-8, closed pipes, full disks."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import typer

from bench import registry
from bench.cli import app
from bench.cli.console import SafeConsole, completer, print_json, printable, warning_handler
from bench.store import Store

RUN = ("run", "--dataset", "folder", "--data", "parts", "--profile", "check", "--no-time", "--threads", "1",
       "--protocol", "one-for-one", "--category", "bolt")  # fmt: skip


class FailingStream(io.TextIOWrapper):
    """A stream whose writes fail with an error number."""

    def __init__(self, number: int) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, f"cannot write {len(text)} characters")  # EPIPE gives a BrokenPipeError


@pytest.fixture
def call(parts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the command line with this stream as stdout and returns the exit code."""
    monkeypatch.chdir(parts.parent)
    monkeypatch.setenv("COLUMNS", "200")

    def run(stream: io.TextIOWrapper, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        return int(exit_info.value.code or 0)

    return run


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> io.TextIOWrapper:
    """Return a stream in memory of the encoding that the test names."""
    return io.TextIOWrapper(io.BytesIO(), encoding=request.param, errors="strict")


def content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("stream", ["ascii", "cp1252", "latin-1", "cp437", "cp932", "utf-8"], indirect=True)
def test_every_encoding_can_print_the_title_of_every_method(call, stream: io.TextIOWrapper) -> None:
    assert call(stream, "list", "methods") == 0
    expected = "AMI-Net++" if stream.encoding in {"ascii", "latin-1", "cp437"} else "AMI-Net‡"
    assert expected in content(stream)


@pytest.mark.parametrize("stream", ["ascii"], indirect=True)
def test_a_run_is_complete_on_an_ascii_stream(call, stream: io.TextIOWrapper) -> None:
    assert call(stream, *RUN, "--method", "aminet_jitter,meanmap") == 0
    assert len(list(Store(Path("runs")).records())) == 2
    assert "AMI-Net++ on folder" not in content(stream)  # both titles are in one line
    assert "AMI-Net++, Mean map (baseline) on folder" in content(stream)


@pytest.mark.parametrize("stream", ["ascii", "utf-8"], indirect=True)
def test_json_is_exact_on_every_stream(stream: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    value = {"title": "AMI-Net‡", "file": "gr\xfc\xdf.png"}
    print_json(value)
    assert json.loads(content(stream)) == value


def test_control_characters_and_undecodable_bytes_are_printed_as_escapes() -> None:
    assert printable("a\x1b[31m\tb\n\x07") == "a\\x1b[31m\tb\n\\x07"
    assert printable("b\udcfcchse") == "b\\udcfcchse"
    assert printable("AMI-Net‡ 90 % ± 1") == "AMI-Net‡ 90 % ± 1"


def test_a_console_prints_no_terminal_sequences_of_a_text() -> None:
    stream = io.StringIO()
    SafeConsole(file=stream).print("title \x1b]0;owned\x07")
    assert stream.getvalue() == "title \\x1b]0;owned\\x07\n"


def test_a_warning_contains_no_terminal_sequences() -> None:
    record = logging.LogRecord("bench", logging.WARNING, "", 0, "name \x1b[2J", (), None)
    assert warning_handler.format(record) == "name \\x1b[2J"


def test_a_campaign_goes_on_when_nobody_reads_its_output(call) -> None:
    assert call(FailingStream(errno.EPIPE), *RUN, "--method", "meanmap") == 0
    assert len(list(Store(Path("runs")).records())) == 1


def test_a_full_disk_below_stdout_is_an_error_after_the_campaign(call, capfd) -> None:
    assert call(FailingStream(errno.ENOSPC), *RUN, "--method", "meanmap") == 2
    assert "stdout must be writable" in capfd.readouterr().err
    assert len(list(Store(Path("runs")).records())) == 1


WITHOUT_POSIX = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sysconf, signal.SIGUSR1
from bench.cli import app
codes = []
for arguments in ({run}, ["check"], ["check", "meanmap"], ["report"], [*{run}, "--force", "--executor", "process"]):
    sys.argv = ["bench", *arguments]
    try:
        app.main()
    except SystemExit as error:
        codes.append(error.code or 0)
print("exit codes", codes)
"""


@pytest.mark.slow  # runs five commands, one of them in a child process
def test_commands_work_without_the_modules_that_windows_lacks(parts: Path) -> None:
    script = WITHOUT_POSIX.format(run=[*RUN, "--method", "meanmap"])
    result = subprocess.run(
        [sys.executable, "-"], input=script, cwd=parts.parent, capture_output=True, text=True, check=False
    )
    assert "exit codes [0, 0, 0, 0, 0]" in result.stdout, result.stdout + result.stderr


def test_file_names_that_are_not_utf8_work_in_every_command(call, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("bench"), "propagate", False)  # pytest-xdist cannot send such names
    category = parts / os.fsdecode(b"b\xfcchse")
    try:
        (parts / "bolt").rename(category)
    except OSError:
        pytest.skip("this file system permits UTF-8 names only")
    image = next(iter(sorted((category / "test" / "spot").iterdir())))
    image.rename(image.with_name(os.fsdecode(b"\xe4.png")))
    mask = category / "ground_truth" / "spot" / f"{image.stem}_mask.png"
    mask.rename(mask.with_name(os.fsdecode(b"\xe4_mask.png")))
    run = [argument if argument != "bolt" else category.name for argument in RUN]

    def output(*arguments: str) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        code = call(stream, *arguments)
        assert code == 0
        return content(stream)

    output(*run, "--method", "meanmap", "--keep-model")
    (record,) = Store(Path("runs")).records()
    assert record.category == category.name
    assert "b\\udcfcchse" in output("report")
    assert json.loads(output("report", "--json"))[0]["category"] == category.name
    output("report", "--format", "html,csv,latex,markdown", "--out", "pages")
    assert "b\\udcfcchse" in Path("pages/report.html").read_text("utf-8")
    assert "b\\udcfcchse: 5 training images" in output("check", "parts")
    output("list", "runs")


@pytest.mark.parametrize(
    ("arguments", "position"),
    [(("run", ""), "the one after run"), (("report", "--runs", ""), "the one after --runs"),
     (("report", "--runs="), "--runs"), (("", "run"), "the first one")],
    ids=str,
)  # fmt: skip
def test_an_empty_argument_is_an_error(call, capfd, arguments: tuple[str, ...], position: str) -> None:
    assert call(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), *arguments) == 2
    assert f"Arguments must not be empty; {position} is." in " ".join(capfd.readouterr().err.split())


def test_an_option_with_one_value_that_is_given_twice_is_an_error(call, capfd) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert call(stream, "run", "--dataset", "demo", "--dataset", "mvtec", "--dry-run") == 2
    assert "--dataset must be given once, got demo and mvtec" in capfd.readouterr().err


def test_an_option_with_several_values_may_be_repeated(call) -> None:
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding="utf-8")
    assert call(stream, "run", "--method", "meanmap,patchcore", "-m", "spade", "--dry-run") == 0
    assert "meanmap, patchcore, spade" in output.getvalue().decode()


def test_a_setting_that_is_given_twice_is_an_error(call, capfd) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert call(stream, *RUN, "--set", "smoothing=1", "--set", "smoothing=2") == 2
    assert "--set smoothing must be given once" in capfd.readouterr().err


def test_a_name_that_is_too_long_for_the_system_is_an_error_in_one_line(call, capfd) -> None:
    assert call(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), "check", "a" * 300) == 2
    assert "must be accessible: File name too long." in " ".join(capfd.readouterr().err.split())


def test_plug_ins_of_a_strangers_folder_are_not_imported(
    call, capfd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    Path("evil").mkdir()
    Path("evil/evil.py").write_text("open('imported', 'w').close()\n", "utf-8")
    Path("bench.toml").write_text('[paths]\nmethods = ["evil"]\n', "utf-8")

    def code(*arguments: str) -> int:
        return call(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), *arguments)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y"), encoding="utf-8"))
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: pytest.fail("a completion prompted the user"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert completer("methods")("pa") == []
    monkeypatch.setattr(sys, "stdin", None)
    assert code("check") == 2
    message = " ".join(capfd.readouterr().err.split())
    assert message.startswith("Plug-ins must be trusted: ")
    assert message.endswith("/evil. If you trust it, run `bench --trust list methods` here once.")
    assert not Path("imported").exists()
    try:
        assert code("--trust", "check") == 0  # the file is not a method, which is a hint of the check
        assert Path("imported").exists()
        assert code("list", "methods") == 0  # trusted from now on
    finally:
        import_module("bench.methods").__path__ = [str(registry.plugin_folders("methods")[0])]


def test_a_folder_called_bench_toml_is_an_error(call, capfd) -> None:
    Path("bench.toml").mkdir()
    assert call(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), "list", "profiles") == 2
    assert "bench.toml must be a file; it is a folder." in " ".join(capfd.readouterr().err.split())
