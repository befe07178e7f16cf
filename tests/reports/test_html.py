"""The HTML report: its content, that text is escaped, and its behavior in a real browser."""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.report_format import Figure, TableCell
from bench.reports import html_ as html_report
from bench.store import Store

Simulate = Callable[..., Store]

ODD = """<script>x</script>"'&` onload=x"""


def page(store: Store, figures: list[Figure] | None = None) -> str:
    report = registry.report_content().results(list(store.records()), store, figures or [], "")
    return html_report.render(report)


class Elements(HTMLParser):
    """All elements with their attributes, and all text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data if self.elements and self.elements[-1][0] not in {"script", "style"} else ""

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# ---- escaped text


def test_names_are_always_escaped(simulate: Simulate) -> None:
    changes = {
        "title": ODD,
        "name": "a",
        "profile_note": ODD,
        "profile": ODD,
        "settings": {ODD: ODD},
        "file_hashes": {ODD: ODD},
    }
    store = simulate(("<b>bolt</b>", '"><i>'), ("A",), **changes)
    for record in list(store.records()):
        values = {
            "method_info": {ODD: ODD},
            "environment": {ODD: ODD},
            "command": ODD,
            "warnings": [ODD],
            "commit": ODD,
        }
        store.save(replace(record, **values), store.predictions(record))
    store.save(replace(record, failure=ODD, run=replace(record.run, seed=7)), None)
    figure = Figure("f", "speed", ODD, ODD, ODD, {"svg": b"<svg onload='x'/>"})
    elements = Elements(page(store, [figure]))
    assert len(elements.of("script")) == 1
    assert not elements.of("i")
    assert not any(name.startswith("on") for _, attributes in elements.elements for name in attributes)
    assert elements.text.count(ODD) > 20
    assert "<b>bolt</b>" in elements.text


def test_the_page_loads_nothing_and_may_run_its_own_script_only(simulate: Simulate) -> None:
    text = page(simulate(("bolt",), ("A",)), [Figure("f", "speed", "t", "T", "C", {"svg": b"<svg/>"})])
    elements = Elements(text)
    sources = [attributes.get(name) for _, attributes in elements.elements for name in ("src", "href")]
    assert all(source.startswith(("data:", "#")) for source in sources if source)
    (policy,) = [each["content"] for each in elements.of("meta") if each.get("http-equiv")]
    for kind in ("script", "style"):
        content = text.split(f"<{kind}>")[1].split(f"</{kind}>")[0]
        hashed = base64.b64encode(sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{hashed}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert not any("style" in attributes for _, attributes in elements.elements)
    assert "eval(" not in text


def test_the_page_contains_values_commands_settings_and_training_images(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), (0, 1), protocol="kshot", k=4, settings={"width": 17})
    first, second = store.records()
    text = Elements(page(store)).text
    values = np.array([100 * record.metrics["pixel_auroc"] for record in (first, second)])
    assert f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" in text
    assert f"{values[0]:.2f}" in text
    for expected in (
        "bench run --method a --dataset parts",
        "17",
        "bolt/train/good/003.png",
        "synthetic data",
        "2026-01-02",
    ):
        assert expected in text


def test_a_column_is_sorted_by_the_number_at_the_start_of_a_cell() -> None:
    expected = {
        "98.7 ± 0.2": "98.7",
        "99.1/97.2": "99.1",
        "+0.50": "0.5",
        "−0.50": "-0.5",
        "12.3 ms": "12.3",
        "bolt": "bolt",
    }
    assert {text: html_report.sort_value(TableCell.from_text(text)) for text in expected} == expected


# ---- size


def test_example_sheets_are_scaled_down_and_omitted_if_they_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    sheets = []
    for number in range(4):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (100, 200, 3), dtype=np.uint8)).save(file, "JPEG", quality=90)
        sheets.append(Figure(f"s{number}", "examples", "t", "T", "C", {"jpg": file.getvalue()}))
    uris, note = html_report.embed_figures(sheets)
    assert len(uris) == 4
    assert note == "Images are shown at their stored size."
    size = len(sheets[0].files["jpg"])
    monkeypatch.setattr(html_report, "MAX_SHEET_BYTES", 2 * size)
    uris, note = html_report.embed_figures(sheets)
    assert "at 71% of their size" in note  # the root of 2 / 4
    with Image.open(io.BytesIO(base64.b64decode(uris["s0"].partition(",")[2]))) as image:
        assert image.size == (141, 71)
    monkeypatch.setattr(html_report, "MAX_SHEET_BYTES", size // 8)
    uris, note = html_report.embed_figures(sheets)
    assert len(uris) < 4
    assert f"{4 - len(uris)} of 4 sheets are omitted" in note
    assert sum(len(base64.b64decode(uri.partition(",")[2])) for uri in uris.values()) <= size // 8


# ---- in a browser


def column(browser: Any, number: int) -> list[str]:
    """Return the visible values of a column of the results."""
    rows = "[...document.querySelectorAll('#results tbody tr')].filter(row => !row.hidden)"
    values: list[str] = browser.evaluate(f"{rows}.map(row => row.children[{number}].dataset.value)")
    return values


@pytest.mark.slow
def test_the_page_sorts_filters_and_opens_examples_in_a_browser(
    browser: Any, simulate: Simulate, tmp_path: Path
) -> None:
    simulate(("bolt", "cap"), ("A", "B"), (0, 1))
    simulate(("bolt", "cap"), ("A",), (0, 1), title=ODD, name="odd")
    store = simulate(("bolt", "007"), ("A",), protocol="kshot", k=4)
    records = list(store.records())
    rendered_figures = registry.report_content().draw_figures(records, store, "")
    path = tmp_path / "report.html"
    path.write_text(page(store, rendered_figures), "utf-8")
    browser.open(path)
    assert browser.errors == []
    assert browser.evaluate("document.title") == "maskbench"
    decoded = "Promise.all([...document.querySelectorAll('.gallery img')].map(image => image.decode().then(() => 1)))"
    assert len(browser.evaluate(decoded)) == sum(
        bool(figure.files) and figure.kind != "examples" for figure in rendered_figures
    )
    assert not browser.evaluate("document.documentElement.scrollWidth > innerWidth")
    browser.evaluate("document.getElementById('results').open = true")
    auroc = browser.evaluate(
        "[...document.querySelectorAll('#results thead th')].map(th => th.innerText.trim())"
    ).index("image AUROC")

    # sort: the first click on a column of numbers sorts by decreasing value, the second by increasing value
    click = f"document.querySelectorAll('#results .sort')[{auroc}].click()"
    for sign, state in ((-1, "descending"), (1, "ascending")):
        browser.evaluate(click)
        values = [float(value) for value in column(browser, auroc)]
        assert values == sorted(values, key=lambda value: sign * value)
        assert browser.evaluate(f"document.querySelectorAll('#results th[aria-sort]')[{auroc}].ariaSort") == state
    assert len(values) == 8

    # filter: by words and by a selected value
    def set_to(selector: str, value: str) -> None:
        element = f"document.querySelector({json.dumps(selector)})"
        browser.evaluate(
            f"{element}.value = {json.dumps(value)}; {element}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )

    set_to("#results .filter", "kshot BOLT")
    assert column(browser, 2) == ["bolt"]
    assert browser.evaluate("document.querySelector('#results .count').textContent") == "1 of 8"
    set_to("#results .filter", "")
    set_to("#results .select[data-column='2']", "007")
    assert column(browser, 0) == ["parts · kshot k=4"]
    set_to("#results .select[data-column='2']", "")
    set_to("#results .select[data-column='1']", ODD)
    assert column(browser, 1) == [ODD, ODD]

    # a row opens its example with its images, which can be enlarged
    set_to("#results .select[data-column='1']", "")
    set_to("#example-filter", "no such thing")
    assert browser.evaluate("[...document.querySelectorAll('.example')].every(each => each.hidden)")
    row = "[...document.querySelectorAll('#results tbody tr')].find(row => row.textContent.includes('007'))"
    browser.evaluate(f"{row}.click()")
    opened = "document.querySelectorAll('.example[open]')"
    assert browser.evaluate(f"{opened}.length") == 1
    assert browser.evaluate(f"{opened}[0].dataset.category") == "007"
    assert browser.evaluate(f"{opened}[0].checkVisibility()")
    browser.evaluate(f"{opened}[0].querySelector('.zoom img').decode().then(() => 1)")
    browser.evaluate(f"{opened}[0].querySelector('.zoom').click()")
    assert browser.evaluate("document.getElementById('zoom').open")
    browser.evaluate("document.getElementById('zoom').click()")
    assert not browser.evaluate("document.getElementById('zoom').open")
    link = browser.evaluate(f"{opened}[0].querySelector('a').hash")
    browser.evaluate(f"{opened}[0].querySelector('a').click()")
    assert re.fullmatch(r"#m[0-9a-f]{10}", link)
    assert browser.evaluate(f"new Promise(done => setTimeout(() => done(document.querySelector('{link}').open), 100))")
    assert browser.errors == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "headings"), [(1400, ("method", "AUPRO@0.3", "latency")), (420, ("method", "image AUROC"))]
)
def test_the_first_screen_has_the_main_columns(
    browser: Any, simulate: Simulate, tmp_path: Path, width: int, headings: tuple[str, ...]
) -> None:
    simulate(("bolt", "cap"), ("A", "Masked autoencoder"), (0, 1))
    store = simulate(("bolt", "cap"), ("A",), (0, 1), limit=20, group_hash="w")
    path = tmp_path / "report.html"
    path.write_text(page(store), "utf-8")
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.open(path)
    assert not browser.evaluate("document.documentElement.scrollWidth > innerWidth")
    cells = "[...document.querySelectorAll('.overview thead th')]"
    boxes = f"{cells}.map((cell) => [cell.innerText.trim(), cell.getBoundingClientRect()])"
    right = dict(browser.evaluate(f"{boxes}.map(([name, box]) => [name.replace(/\\s+/g, ' '), box.right])"))
    assert all(0 < right[heading] <= width for heading in headings), right
    assert browser.evaluate("document.querySelector('.overview tbody').getBoundingClientRect().bottom") < 900
    assert browser.evaluate("document.querySelectorAll('.overview .best').length") == 7
    # statistics are folded, images are directly below the results
    assert browser.evaluate("[...document.querySelectorAll('#tables details')].every((each) => !each.open)")
    sections = browser.evaluate("[...document.querySelectorAll('main > section')].map((each) => each.id)")
    assert sections[:2] == ["overview", "images"]
