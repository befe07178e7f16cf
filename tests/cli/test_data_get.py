"""`bench data get`: license, download, archive and check of a public dataset; the server is a local one."""

import errno
import hashlib
import io
import json
import re
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest
import typer

from bench import registry
from bench.cli import app
from bench.dataset import Download

NAMES = ("btad", "ksdd2", "mpdd", "mvtec", "visa")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the folder `served`."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def archive(parts: Path, tmp_path: Path, url: str) -> Path:
    """An archive of MVTec AD in a folder: its bottle and cable are the categories of `parts`."""
    path = tmp_path / "served" / "mvtec.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("mvtec_ad/license.txt", "CC BY-NC-SA 4.0")
        for file in sorted(parts.rglob("*.png")):
            name = file.relative_to(parts).as_posix().replace("bolt/", "bottle/").replace("plate/", "cable/")
            zipped.write(file, f"mvtec_ad/{name}")
    return path


@pytest.fixture
def get_output(
    get: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, str]]:
    """Return a function that calls `bench data get mvtec` with success: output and errors."""

    def call(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", "data", "get", "mvtec", *arguments])
        with pytest.raises(SystemExit, match="0"):
            app.main()
        return capsys.readouterr()

    return call


@pytest.fixture
def get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], archive: Path
) -> Callable[..., tuple[int, str]]:
    """Return a function that calls `bench data get mvtec`: exit code, and output with errors as one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    mvtec = import_module("bench.datasets.mvtec")
    monkeypatch.setattr(mvtec, "DOWNLOAD", replace(mvtec.DOWNLOAD, sha256=digest))

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bench", "data", "get", "mvtec", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), " ".join((output.out + output.err).split())

    return call


def test_a_downloaded_dataset_is_unpacked_checked_and_found_by_the_next_command(
    get: Callable[..., tuple[int, str]], url: str, tmp_path: Path
) -> None:
    code, output = get("--url", f"{url}/mvtec.zip", "--yes")
    folder = tmp_path / "cache" / "maskbench" / "mvtec"
    assert "MVTec AD has the license CC BY-NC-SA 4.0: https://creativecommons.org/licenses/by-nc-sa/4.0/" in output
    assert "sha256 as expected" in output
    assert f"MVTec AD is in {folder}" in output
    assert "ok MVTec AD: 22 images in 2 categories" in output
    assert "13 of 15 categories are missing" in output  # a warning of the check
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["bottle", "cable", "license.txt"]
    assert not list((tmp_path / "cache").rglob("*.zip*"))
    samples = registry.load("datasets", "mvtec").samples(folder)
    assert {sample.category for sample in samples} == {"bottle", "cable"}
    code, output = get("--yes")
    assert code == 2
    assert "exists already" in output


def test_an_archive_downloaded_by_hand_is_verified_and_kept(
    get: Callable[..., tuple[int, str]], archive: Path, tmp_path: Path
) -> None:
    _, output = get("--archive", str(archive), "--data", "mine", "--yes")
    assert "sha256 as expected" in output
    assert (tmp_path / "mine" / "cable" / "train").is_dir()
    assert archive.is_file()
    archive.write_bytes(archive.read_bytes() + b"x")
    code, output = get("--archive", str(archive), "--data", "other", "--yes")
    assert code == 2
    assert re.search(r"sha256 of .* must be [0-9a-f]{64}, got [0-9a-f]{64}", output)
    assert not (tmp_path / "other").exists()


def test_nothing_is_downloaded_before_the_license_is_accepted(
    get: Callable[..., tuple[int, str]], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(typer, "confirm", lambda text, **_: questions.append(text))
    monkeypatch.setattr("bench.cli.data_command.has_terminal", lambda: True)
    code, output = get("--url", f"{url}/mvtec.zip", "-q")
    assert code == 2
    assert questions == ["Do you accept the license?"]
    assert "CC BY-NC-SA 4.0" in output
    assert "It does not permit commercial use." in output
    assert "Nothing was downloaded" in output
    assert not (tmp_path / "cache" / "maskbench" / "downloads").exists()


def test_a_wrong_checksum_leaves_nothing_and_names_the_page(
    get: Callable[..., tuple[int, str]], url: str, archive: Path, tmp_path: Path
) -> None:
    archive.write_bytes(archive.read_bytes() + b"x")
    code, output = get("--url", f"{url}/mvtec.zip", "--yes")
    assert code == 2
    assert "It was removed" in output
    assert "from https://www.mvtec.com/company/research/datasets/mvtec-ad and pass --archive FILE" in output
    assert not (tmp_path / "cache" / "maskbench" / "mvtec").exists()
    assert not list((tmp_path / "cache").rglob("*.zip*"))


@pytest.mark.parametrize(("member", "message"), [("../evil", "It is unsafe"), ("other/file.txt", "does not contain")])
def test_an_unsafe_or_foreign_archive_is_not_installed(
    get: Callable[..., tuple[int, str]], url: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    member: str, message: str,
) -> None:  # fmt: skip
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(member, "x")
    mvtec = import_module("bench.datasets.mvtec")
    monkeypatch.setattr(mvtec, "DOWNLOAD", replace(mvtec.DOWNLOAD, sha256=""))
    code, output = get("--url", f"{url}/mvtec.zip", "--yes")
    assert code == 2
    assert f"computed sha256: {hashlib.sha256(archive.read_bytes()).hexdigest()}" in output
    assert message in output
    assert "The archive was removed, and the same command downloads it again." in output
    assert not (tmp_path / "cache" / "maskbench" / "mvtec").exists()
    assert list((tmp_path / "cache" / "maskbench" / "downloads").iterdir()) == []
    assert not list((tmp_path / "cache").rglob("evil"))
    assert not list((tmp_path / "cache" / "maskbench").glob(".*"))  # no temporary folder


@pytest.mark.parametrize("is_closed", [True, False])
def test_without_a_terminal_the_license_is_accepted_by_a_flag_only(
    get: Callable[..., tuple[int, str]], url: str, monkeypatch: pytest.MonkeyPatch, *, is_closed: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", None if is_closed else io.StringIO("y\n"))
    code, output = get("--url", f"{url}/mvtec.zip")
    assert code == 2
    assert output.endswith("Nothing was downloaded. Pass --yes to accept it.")


def test_an_archive_that_is_right_but_could_not_be_unpacked_is_used_by_the_next_call(
    get: Callable[..., tuple[int, str]], url: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("bench.data.archives._Target.write", fail_without_space)
        code, output = get("--url", f"{url}/mvtec.zip", "--yes")
    file = tmp_path / "cache" / "maskbench" / "downloads" / import_module("bench.datasets.mvtec").DOWNLOAD.file
    assert code == 2
    assert "No space left on device" in output
    assert output.endswith(f"The archive is kept in {file}, and the same command uses it.")
    archive.unlink()  # the server has it no more
    code, output = get("--url", f"{url}/mvtec.zip", "--yes")
    assert code == 0
    assert f"Using {file} of an earlier call" in output
    assert not file.exists()


def fail_without_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_result_is_printed_as_json_or_quietly(
    get_output: Callable[..., tuple[str, str]], archive: Path, tmp_path: Path
) -> None:
    output, _ = get_output("--archive", str(archive), "--data", "first", "--yes", "--json")
    result = json.loads(output)
    assert (result["name"], result["title"], result["folder"]) == ("mvtec", "MVTec AD", "first")
    assert result["is_verified"] is True
    assert result["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert {"requirement", "problem", "required"} == result["checks"][0].keys()
    output, errors = get_output("--archive", str(archive), "--data", "second", "--yes", "-q")
    assert output.startswith("MVTec AD is in second\nwarning")
    assert "ok  " not in output
    assert errors == ""


@pytest.mark.parametrize("name", NAMES)
def test_each_download_names_license_page_and_source(name: str) -> None:
    module = registry.load("datasets", name)
    details = module.DOWNLOAD
    assert isinstance(details, Download)
    assert details.page.startswith("https://")
    assert details.url.startswith("https://") or name == "mpdd"
    assert details.license in module.ABOUT
    assert details.page in module.ABOUT
    assert details.license_url.startswith("https://creativecommons.org/licenses/")
    assert "verified" in details.source or not details.url
    assert re.fullmatch("[0-9a-f]{64}", details.sha256) or "checksum" in details.source or not details.url


def test_a_dataset_without_a_direct_address_states_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, message in (
        ("mpdd", "https://github.com/stepanje/MPDD and pass --archive FILE"),
        ("demo", "no download"),
    ):
        monkeypatch.setattr(sys, "argv", ["bench", "data", "get", name, "--yes"])
        with pytest.raises(SystemExit, match="2"):
            app.main()
        assert message in " ".join(capsys.readouterr().err.split())
