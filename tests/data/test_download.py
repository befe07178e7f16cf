"""Downloads from a local server: continued, truncated, changed, too large, redirected, or not what they must be."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.data import download as module
from bench.data.download import download
from bench.errors import BenchError

CONTENT = bytes(range(256)) * 5000  # 1.28 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A server of one file, with faults.

    Attributes:
        content: the file. etag: its validator, "" for none.
        cut: number of body bytes after which the connection of each request is closed, in order; then none is.
        statuses: status codes of the next requests, before any file is sent.
        ignores_range: whether it always sends the whole file.
        wrong_range: whether it sends a range that was not requested.
        content_type: type of the content.
        has_length: whether it states the length. stated_length: a wrong one to state.
        requests: (path, headers) of all requests.
    """

    content: bytes = CONTENT
    etag: str = '"v1"'
    cut: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ignores_range: bool = False
    wrong_range: bool = False
    content_type: str = "application/zip"
    has_length: bool = True
    stated_length: str = ""
    redirect: str = ""
    url: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((handler.path, headers))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        if self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return
        start = 0
        is_current = headers.get("if-range", self.etag) == self.etag
        if "range" in headers and is_current and not self.ignores_range:
            start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        start += 1 if self.wrong_range and start else 0
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Type", self.content_type)
        if self.has_length:
            handler.send_header("Content-Length", self.stated_length or str(len(body)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        handler.wfile.write(body[: self.cut.pop(0)] if self.cut else body)
        handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.respond(self)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{http.server_address[1]}/file.zip"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield served
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., str]:
    """Return a function that downloads the file of the server to file.zip."""

    def call(sha256: str = SHA256, max_bytes: int = 10**7) -> str:
        return download(server.url, tmp_path / "file.zip", sha256=sha256, max_bytes=max_bytes, progress=lambda *_: None)

    return call


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ranges(server: Server) -> list[str]:
    return [headers.get("range", "") for _, headers in server.requests]


def test_a_file_is_downloaded_and_verified(server: Server, fetch: Callable[..., str], tmp_path: Path) -> None:
    assert fetch() == SHA256
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert files(tmp_path) == ["file.zip"]
    assert len(server.requests) == 1


def test_without_a_known_checksum_the_computed_one_is_returned(fetch: Callable[..., str]) -> None:
    assert fetch(sha256="") == SHA256


@pytest.mark.parametrize("etag", ['"v1"', ""])
def test_a_truncated_download_continues_from_its_end(server: Server, fetch: Callable[..., str], etag: str) -> None:
    server.etag, server.cut = etag, [300_000, 1]
    assert fetch() == SHA256
    assert ranges(server) == ["", "bytes=300000-", "bytes=300001-"]


def test_a_later_command_continues_an_interrupted_download(
    server: Server, fetch: Callable[..., str], tmp_path: Path
) -> None:
    server.cut, server.statuses = [500_000], []
    original = module.ATTEMPTS
    module.ATTEMPTS = 0
    try:
        with pytest.raises(BenchError, match=r"0.5 MB are kept in .*the same command continues from there"):
            fetch()
    finally:
        module.ATTEMPTS = original
    assert files(tmp_path) == ["file.zip.part", "file.zip.part.json"]
    assert fetch() == SHA256
    assert ranges(server) == ["", "bytes=500000-"]
    assert files(tmp_path) == ["file.zip"]


def test_a_file_that_changed_on_the_server_is_downloaded_from_its_start(
    server: Server, fetch: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file.zip.part").write_bytes(b"old content")
    (tmp_path / "file.zip.part.json").write_text(json.dumps({"url": server.url, "validator": '"v0"'}), "utf-8")
    assert fetch(sha256="") == SHA256
    assert ranges(server) == ["bytes=11-"]  # the server sent the whole file


@pytest.mark.parametrize("state", [None, "{", '{"url": "http://other", "validator": "v"}'])
def test_a_part_of_unknown_origin_is_not_used(
    server: Server, fetch: Callable[..., str], tmp_path: Path, state: str | None
) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:100])
    if state is not None:
        (tmp_path / "file.zip.part.json").write_text(state, "utf-8")
    assert fetch() == SHA256
    assert ranges(server) == [""]


def test_without_validator_and_checksum_nothing_is_continued(server: Server, fetch: Callable[..., str]) -> None:
    server.etag, server.cut = "", [400_000]
    assert fetch(sha256="") == SHA256
    assert ranges(server) == ["", ""]


def test_a_server_that_ignores_ranges_sends_the_whole_file(server: Server, fetch: Callable[..., str]) -> None:
    server.cut, server.ignores_range = [300_000], True
    assert fetch() == SHA256
    assert ranges(server) == ["", "bytes=300000-"]


def test_another_range_than_the_requested_one_is_not_appended(server: Server, fetch: Callable[..., str]) -> None:
    server.cut, server.wrong_range = [300_000], True
    assert fetch() == SHA256
    assert ranges(server) == ["", "bytes=300000-", ""]


def test_a_part_that_is_complete_already_is_verified(server: Server, fetch: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    (tmp_path / "file.zip.part.json").write_text(json.dumps({"url": server.url, "validator": '"v1"'}), "utf-8")
    assert fetch() == SHA256
    assert ranges(server) == [f"bytes={len(CONTENT)}-"]


def test_a_wrong_checksum_removes_the_file(fetch: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"must be {'0' * 64}, got {SHA256}.*It was removed"):
        fetch(sha256="0" * 64)
    assert files(tmp_path) == []


def test_errors_of_the_server_are_tried_again_and_a_missing_file_is_not(
    server: Server, fetch: Callable[..., str]
) -> None:
    server.statuses = [503, 500]
    assert fetch() == SHA256
    server.statuses = [404]
    with pytest.raises(BenchError, match="404"):
        fetch()
    assert len(server.requests) == 4


def test_a_server_that_never_sends_ends_with_an_error(server: Server, fetch: Callable[..., str]) -> None:
    server.statuses = [503] * 50
    with pytest.raises(BenchError, match="503"):
        fetch()
    assert len(server.requests) == module.ATTEMPTS


@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_that_is_too_large_is_stopped(
    server: Server, fetch: Callable[..., str], tmp_path: Path, has_length: bool
) -> None:
    server.has_length = has_length
    with pytest.raises(BenchError, match=r"at most 0.001 GB"):
        fetch(max_bytes=1_000_000)
    assert not (tmp_path / "file.zip").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_100


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "3,3", "9" * 5000])
def test_a_length_that_is_no_number_is_unknown(server: Server, fetch: Callable[..., str], length: str) -> None:
    server.stated_length = length
    assert fetch() == SHA256


def test_a_web_page_is_not_an_archive(server: Server, fetch: Callable[..., str]) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(BenchError, match="a web page and not an archive"):
        fetch()


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "nonsense"])
def test_only_http_is_used_also_after_a_redirect(
    server: Server, fetch: Callable[..., str], tmp_path: Path, address: str
) -> None:
    with pytest.raises(BenchError, match="needs an address of http or https"):
        download(address, tmp_path / "x", sha256="", max_bytes=100, progress=lambda *_: None)
    server.redirect = address if ":" in address else "file:///etc/passwd"
    with pytest.raises(BenchError, match="could not be downloaded"):
        fetch()
    assert not list(tmp_path.glob("*.zip"))


def test_a_redirect_from_https_to_http_is_rejected() -> None:
    from email.message import Message
    from urllib.error import HTTPError
    from urllib.request import Request

    redirects = module._Redirects()
    arguments = (None, 302, "Found", Message())
    assert redirects.redirect_request(Request("https://a/x"), *arguments, "https://b/x") is not None
    assert redirects.redirect_request(Request("http://a/x"), *arguments, "http://b/x") is not None
    with pytest.raises(HTTPError, match="without encryption"):
        redirects.redirect_request(Request("https://a/x"), *arguments, "http://b/x")


def test_an_address_without_a_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    with pytest.raises(BenchError, match=r"could not be downloaded: .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x", sha256="", max_bytes=100, progress=lambda *_: None)
