"""Download a file over HTTP so that an interrupted download continues, and verify its checksum.

The incomplete file is `<name>.part`, next to `<name>.part.json`, which has the address and the server's validator (ETag
or date) of the content. The rest is requested with Range and If-Range, so a file that has changed on the server is
downloaded from its start.
"""

import http.client
import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from bench.errors import BenchError
from bench.files import file_sha256

TIMEOUT_SECONDS = 30.0
"""Longest time without data."""

ATTEMPTS = 5
"""The download stops after this number of requests in a row that fail or end early without new data."""

WAIT_SECONDS = 1.0
"""Time before the second request; it doubles with each further failure."""

BLOCK_BYTES = 1 << 20

_PARTIAL, _COMPLETE, _OUT_OF_RANGE = 206, 200, 416

Progress = Callable[[int, int], None]


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, except from https to an address without encryption."""

    def redirect_request(  # noqa: PLR0917 - an interface of urllib
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """Return the request of the new address."""
        if urlsplit(newurl).scheme != "https" and (req.type == "https" or urlsplit(newurl).scheme != "http"):
            raise HTTPError(newurl, code, "the server redirects to an address without encryption", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass(slots=True)
class _PartFile:
    """The incomplete file, and the file with its address and validator."""

    file: Path
    url: str
    has_checksum: bool

    @property
    def state_file(self) -> Path:
        return self.file.with_name(f"{self.file.name}.json")

    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def validator(self) -> str | None:
        """Return the server's validator of the content so far, "" if it gave none; None for another address."""
        try:
            state = json.loads(self.state_file.read_text("utf-8"))
            return str(state["validator"]) if state["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_validator(self, validator: str) -> None:
        self.state_file.write_text(json.dumps({"url": self.url, "validator": validator}), "utf-8")

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)


def download(url: str, target: Path, *, sha256: str, max_bytes: int, progress: Progress) -> str:
    """Download a file, or continue an interrupted download, and return its sha256 in hexadecimal.

    Args:
        url: http(s) address.
        target: the complete file, which appears only after its checksum has been verified.
        sha256: the expected checksum, "" if it is unknown.
        max_bytes: largest size.
        progress: called with the number of bytes so far and in total; the total is 0 if the server does not state it.

    Raises:
        BenchError: the address is not of HTTP, the server cannot be reached or does not send the file, the file is too
            large for `max_bytes` or the disk, or the checksum differs. What was downloaded is kept, unless it is wrong.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise BenchError(f"A download needs an address of http or https, got {url}. Correct it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _PartFile(target.with_name(f"{target.name}.part"), url, bool(sha256))
    failures = 0
    while True:
        before = part.size()
        problem = _request(part, max_bytes, progress)
        if not problem:
            break
        failures = 0 if part.size() > before else failures + 1
        if failures >= ATTEMPTS:
            raise BenchError(
                f"{url} could not be downloaded: {problem}. {part.size() / 1e6:.1f} MB are kept in {part.file}; the "
                f"same command continues from there."
            )
        time.sleep(WAIT_SECONDS * 2 ** max(failures - 1, 0))
    digest = file_sha256(part.file)
    if sha256 and digest != sha256:
        part.remove()
        raise BenchError(
            f"The sha256 of {target.name} must be {sha256}, got {digest}: the download is damaged, or the file has "
            f"changed on the server. It was removed. Try again, or download it by hand."
        )
    part.file.replace(target)
    part.remove()
    return digest


def _request(part: _PartFile, max_bytes: int, progress: Progress) -> str:
    """Request what is missing and append it to the part; return why it is incomplete, "" if it is complete."""
    start, validator = part.size(), part.validator()
    if validator is None or (not validator and not part.has_checksum):  # the server might have another file by now
        part.remove()
        start = 0
    headers = {"User-Agent": "maskbench", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        with closing(_opener().open(Request(part.url, headers=headers), timeout=TIMEOUT_SECONDS)) as response:  # noqa: S310
            return _receive(part, response, start, max_bytes, progress)
    except HTTPError as error:
        if error.code == _OUT_OF_RANGE and _total(error.headers) == start:
            return ""
        if error.code == _OUT_OF_RANGE:
            part.remove()
        if error.code < 500 and error.code not in {_OUT_OF_RANGE, 408, 429}:
            raise BenchError(f"{part.url} could not be downloaded: {error.code} {error.reason}.") from error
        return f"the server returned {error.code} {error.reason}"
    except (URLError, OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", "") or error) or type(error).__name__


def _receive(part: _PartFile, response: Any, start: int, max_bytes: int, progress: Progress) -> str:
    """Append the body of a response to the part; return why it is incomplete, "" if it is complete."""
    if response.headers.get_content_type() == "text/html":
        raise BenchError(f"{part.url} returned a web page and not an archive: the link may have changed.")
    is_continued = response.status == _PARTIAL
    if is_continued and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        part.remove()
        return "the server did not return the requested range"
    if not is_continued:
        start = 0
    total = _total(response.headers) if is_continued else _number(response.headers.get("Content-Length"))
    if max(total, start) > max_bytes:
        raise BenchError(f"{part.url} must have at most {max_bytes / 1e9:.3g} GB, it has {total / 1e9:.3g} GB.")
    free = shutil.disk_usage(part.file.parent).free
    if total - start > free:
        raise BenchError(
            f"{part.file.parent} has {free / 1e9:.3g} GB free; {total / 1e9:.3g} GB are needed. Free some."
        )
    if not is_continued:
        part.remove()
        part.write_validator(_validator(response.headers))
    done = start
    with part.file.open("ab") as file:
        while block := response.read(BLOCK_BYTES):
            done += len(block)
            if done > max_bytes:
                raise BenchError(
                    f"{part.url} must have at most {max_bytes / 1e9:.3g} GB, and sends more. It is stopped."
                )
            file.write(block)
            progress(done, total)
    if total and done != total:
        return f"the connection ended after {done} of {total} bytes"
    return ""


def _validator(headers: Any) -> str:
    """Return the value for If-Range: a strong ETag, or the date of the last change."""
    etag = str(headers.get("ETag") or "")
    return etag if etag.startswith('"') else str(headers.get("Last-Modified") or "")


def _total(headers: Any) -> int:
    """Return the size of the whole file, from "bytes 5-9/10" or "bytes */10"; 0 if it is unknown."""
    return _number(str(headers.get("Content-Range", "")).rpartition("/")[2])


def _number(text: str | None) -> int:
    """Return a number of bytes in a header; 0 if it has none."""
    return int(text) if text and text.isdecimal() and len(text) < 20 else 0


def _opener() -> OpenerDirector:
    """Return an opener of http and https only: the default one also opens local files."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(), HTTPHandler(), HTTPSHandler(), _Redirects(), HTTPDefaultErrorHandler(), HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener
