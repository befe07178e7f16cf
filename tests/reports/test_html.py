"""The HTML report: what it holds, that text stays text, and what a real browser makes of it."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.report import Figure
from bench.reports.parts import embedding
from bench.store import Store

Simulate = Callable[..., Store]

ODD = """<script>x</script>"'&` onload=x"""


def page(store: Store, figures: list[Figure] | None = None) -> str:
    text: str = registry.load("reports", "html").render(list(store.records()), store, figures or [])
    return text


class Elements(HTMLParser):
    """All elements with their attributes, and all text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data if self.found and self.found[-1][0] not in {"script", "style"} else ""

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


# ---- text


def test_whatever_a_name_holds_is_text(simulate: Simulate) -> None:
    changed = {
        "title": ODD,
        "name": "a",
        "profile_note": ODD,
        "profile": ODD,
        "settings": {ODD: ODD},
        "file_hashes": {ODD: ODD},
    }
    store = simulate(("<b>bolt</b>", '"><i>'), ("A",), **changed)
    for record in list(store.records()):
        told = {"facts": {ODD: ODD}, "machine": {ODD: ODD}, "command": ODD, "warnings": [ODD], "commit": ODD}
        store.save(replace(record, **told), store.predictions(record))
    store.save(replace(record, failure=ODD, run=replace(record.run, seed=7)), None)
    figure = Figure("f", "speed", ODD, ODD, ODD, {"svg": b"<svg onload='x'/>"})
    found = Elements(page(store, [figure]))
    assert len(found.of("script")) == 1
    assert not found.of("i")
    assert not any(name.startswith("on") for _, attributes in found.found for name in attributes)
    assert found.text.count(ODD) > 20
    assert "<b>bolt</b>" in found.text


def test_the_page_asks_for_nothing_and_may_run_only_its_own_script(simulate: Simulate) -> None:
    text = page(simulate(("bolt",), ("A",)), [Figure("f", "speed", "t", "T", "C", {"svg": b"<svg/>"})])
    found = Elements(text)
    sources = [attributes.get(name) for _, attributes in found.found for name in ("src", "href")]
    assert all(source.startswith(("data:", "#")) for source in sources if source)
    (policy,) = [each["content"] for each in found.of("meta") if each.get("http-equiv")]
    for kind in ("script", "style"):
        own = text.split(f"<{kind}>")[1].split(f"</{kind}>")[0]
        hashed = base64.b64encode(sha256(own.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{hashed}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert not any("style" in attributes for _, attributes in found.found)
    assert "eval(" not in text


def test_numbers_commands_settings_and_draws_stand_on_the_page(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), (0, 1), protocol="kshot", k=4, settings={"width": 17})
    first, second = store.records()
    text = Elements(page(store)).text
    values = np.array([100 * record.metrics["pixel_auroc"] for record in (first, second)])
    assert f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" in text
    assert f"{values[0]:.2f}" in text
    for told in (
        "bench run --method a --dataset parts",
        "17",
        "bolt/train/good/003.png",
        "synthetic data",
        "2026-01-02",
    ):
        assert told in text


def test_a_column_is_sorted_by_the_number_that_a_cell_begins_with() -> None:
    html = registry.load("reports", "html")
    told = {
        "98.7 ± 0.2": "98.7",
        "99.1/97.2": "99.1",
        "+0.50": "0.5",
        "−0.50": "-0.5",
        "12.3 ms": "12.3",
        "bolt": "bolt",
    }
    assert {text: html._sortable(html.Entry.of(text)) for text in told} == told


# ---- size


def test_sheets_are_made_smaller_and_left_out_where_they_are_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    sheets = []
    for number in range(4):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (100, 200, 3), dtype=np.uint8)).save(file, "JPEG", quality=90)
        sheets.append(Figure(f"s{number}", "sheet", "t", "T", "C", {"jpg": file.getvalue()}))
    found, told = embedding.embedded(sheets)
    assert len(found) == 4
    assert told == "Pictures are as stored."
    size = len(sheets[0].files["jpg"])
    monkeypatch.setattr(embedding, "BYTES", 2 * size)
    found, told = embedding.embedded(sheets)
    assert "at 71% of their size" in told  # the root of 2 / 4
    with Image.open(io.BytesIO(base64.b64decode(found["s0"].partition(",")[2]))) as image:
        assert image.size == (141, 71)
    monkeypatch.setattr(embedding, "BYTES", size // 8)
    found, told = embedding.embedded(sheets)
    assert len(found) < 4
    assert f"{4 - len(found)} sheets of 4 are left out" in told
    assert sum(len(base64.b64decode(address.partition(",")[2])) for address in found.values()) <= size // 8


# ---- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
)


class Browser:
    """Headless Chromium, driven over a pipe by its own protocol.

    `errors` holds what its console said in yellow or red, and what it asked of the network.
    """

    def __init__(self, profile: Path) -> None:
        self.errors: list[str] = []
        self._number, self._buffer, self._session = 0, b"", ""
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        line = f'exec "$0" "$@" 3<&{reads} 4>&{writes}'  # it reads from 3 and writes to 4, wherever the pipes lie here
        command = ["bash", "-c", line, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=(reads, writes), stdout=quiet, stderr=quiet)
        os.close(reads)
        os.close(writes)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Asks and waits for the answer; what the page tells meanwhile is heard."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": given}
        asked |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while (found := self._read()).get("id") != self._number:
            self._hear(found.get("method", ""), found.get("params", {}))
        assert "error" not in found, found["error"]
        answer: dict[str, Any] = found["result"]
        return answer

    def open(self, path: Path) -> None:
        """Loads a file, and waits until all of it is there."""
        self.call("Page.navigate", url=path.as_uri())
        while self.ask("document.readyState") != "complete" or self.ask("location.protocol") != "file:":
            pass

    def ask(self, script: str) -> Any:
        """The value of an expression in the page; an error in it is one here."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._in, 1 << 20)
            assert read, "the browser has gone"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _hear(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
            self.errors.append(json.dumps(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}:
            self.errors.append(told["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            address = told["request"]["url"]
            self.errors += [] if address.startswith(("file:", "data:", "about:")) else [f"asked for {address}"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with closing(Browser(tmp_path / "profile")) as found:
        yield found


def column(browser: Browser, number: int) -> list[str]:
    """What is seen of a column of the results."""
    rows = "[...document.querySelectorAll('#results tbody tr')].filter(row => !row.hidden)"
    found: list[str] = browser.ask(f"{rows}.map(row => row.children[{number}].dataset.value)")
    return found


@pytest.mark.slow
def test_a_browser_loads_sorts_filters_and_drills_down(browser: Browser, simulate: Simulate, tmp_path: Path) -> None:
    simulate(("bolt", "cap"), ("A", "B"), (0, 1))
    simulate(("bolt", "cap"), ("A",), (0, 1), title=ODD, name="odd")
    store = simulate(("bolt", "007"), ("A",), protocol="kshot", k=4)
    records = list(store.records())
    drawn = registry.load("reports", "figures").draw(records, store)
    path = tmp_path / "report.html"
    path.write_text(page(store, drawn), "utf-8")
    browser.open(path)
    assert browser.errors == []
    assert browser.ask("document.title") == "maskbench"
    decoded = "Promise.all([...document.querySelectorAll('.gallery img')].map(image => image.decode().then(() => 1)))"
    assert len(browser.ask(decoded)) == sum(bool(figure.files) and figure.kind != "sheet" for figure in drawn)
    assert not browser.ask("document.documentElement.scrollWidth > innerWidth")
    auroc = browser.ask("[...document.querySelectorAll('#results thead th')].map(th => th.innerText.trim())").index(
        "image AUROC"
    )

    # sorts: the first click on a number brings the highest, the second the lowest
    click = f"document.querySelectorAll('#results .sort')[{auroc}].click()"
    for turn, state in ((-1, "descending"), (1, "ascending")):
        browser.ask(click)
        values = [float(value) for value in column(browser, auroc)]
        assert values == sorted(values, key=lambda value: turn * value)
        assert browser.ask(f"document.querySelectorAll('#results th[aria-sort]')[{auroc}].ariaSort") == state
    assert len(values) == 8

    # filters: by words and by a chosen value
    def set_to(selector: str, value: str) -> None:
        place = f"document.querySelector({json.dumps(selector)})"
        browser.ask(
            f"{place}.value = {json.dumps(value)}; {place}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )

    set_to("#results .filter", "kshot BOLT")
    assert column(browser, 2) == ["bolt"]
    assert browser.ask("document.querySelector('#results .count').textContent") == "1 of 8"
    set_to("#results .filter", "")
    set_to("#results .select[data-column='2']", "007")
    assert column(browser, 0) == ["parts · kshot k=4"]
    set_to("#results .select[data-column='2']", "")
    set_to("#results .select[data-column='1']", ODD)
    assert column(browser, 1) == [ODD, ODD]

    # drills down: a row opens the case that it names, with its pictures; these enlarge
    set_to("#results .select[data-column='1']", "")
    set_to("#case-filter", "no such thing")
    assert browser.ask("[...document.querySelectorAll('.case')].every(each => each.hidden)")
    row = "[...document.querySelectorAll('#results tbody tr')].find(row => row.textContent.includes('007'))"
    browser.ask(f"{row}.click()")
    opened = "document.querySelectorAll('.case[open]')"
    assert browser.ask(f"{opened}.length") == 1
    assert browser.ask(f"{opened}[0].dataset.category") == "007"
    assert browser.ask(f"{opened}[0].checkVisibility()")
    browser.ask(f"{opened}[0].querySelector('.zoom img').decode().then(() => 1)")
    browser.ask(f"{opened}[0].querySelector('.zoom').click()")
    assert browser.ask("document.getElementById('zoom').open")
    browser.ask("document.getElementById('zoom').click()")
    assert not browser.ask("document.getElementById('zoom').open")
    link = browser.ask(f"{opened}[0].querySelector('a').hash")
    browser.ask(f"{opened}[0].querySelector('a').click()")
    assert re.fullmatch(r"#m[0-9a-f]{10}", link)
    assert browser.ask(f"new Promise(done => setTimeout(() => done(document.querySelector('{link}').open), 100))")
    assert browser.errors == []
