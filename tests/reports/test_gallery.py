"""The images of the page: levels and counts, what a gallery contains, its files, and its behavior in a browser."""

import base64
import io
import json
import shutil
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from bench import registry
from bench.record import Predictions, Record, to_float16, to_float32
from bench.report_format import Gallery
from bench.reports import html_ as html_report
from bench.reports.parts import gallery
from bench.store import Store

Simulate = Callable[..., Store]
MakeRecord = Callable[..., Record]
MakePredictions = Callable[..., Predictions]

ODD = """</script><script>x</script>"'&`"""


def no_images(_record: Record, _file: str) -> str:
    return "no folder"


def galleries(store: Store, images: Any = no_images) -> list[Gallery]:
    return registry.report_content().list_galleries(list(store.records()), store, images, "")


def inflate(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def levels_of(method: Mapping[str, Any], case: Mapping[str, Any]) -> np.ndarray:
    """Return the levels of a case as the page decodes them."""
    differences = inflate(case["levels"]).reshape(method["height"], method["width"])
    return np.cumsum(differences, axis=1, dtype=np.uint8)


# ---- levels


def test_levels_of_a_map_of_four_pixels_give_its_counts() -> None:
    maps = np.array([[[0.0, 1.0], [2.0, 3.0]]], np.float32)
    mask = np.array([[False, True], [False, True]])
    thresholds = gallery.level_thresholds(maps, calibrated=1.5)
    levels = gallery.to_levels(maps, thresholds)[0]
    k = int(np.flatnonzero(thresholds == 1.5)[0])
    above = levels > k
    assert above.tolist() == [[False, False], [True, True]]  # 2 and 3 exceed 1.5
    assert ((above & mask).sum(), (above & ~mask).sum(), (~above & mask).sum()) == (1, 1, 1)
    assert levels[0, 0] == 0
    assert (levels > 255).sum() == 0  # no value exceeds the last threshold, which is the maximum
    assert thresholds[-1] == 3


values = st.floats(-60000, 60000, width=16).map(float)


@given(arrays(np.float32, (2, 3, 4), elements=values), st.none() | values, st.booleans())
def test_a_level_exceeds_k_exactly_if_the_value_exceeds_threshold_k(
    maps: np.ndarray, calibrated: float | None, is_float16: bool
) -> None:
    maps = to_float32(*to_float16(maps))
    thresholds = gallery.level_thresholds(maps, calibrated)
    levels = gallery.to_levels(maps, thresholds, is_float16=is_float16)
    assert (np.diff(thresholds) >= 0).all()
    assert calibrated is None or calibrated in thresholds
    for k in range(256):
        assert ((levels > k) == (maps > thresholds[k])).all()


def test_the_highest_of_a_block_counts_and_incomplete_blocks_remain() -> None:
    values = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    assert gallery.highest_of_blocks(values, 2).tolist() == [[[4, 5], [7, 8]]]
    assert gallery.highest_of_blocks(values > 7, 2).tolist() == [[[False, False], [False, True]]]
    assert gallery.highest_of_blocks(values, 1) is values
    assert [gallery.block_side(n) for n in (0, 250_000_000, 250_000_001, 1_000_000_000)] == [1, 1, 2, 2]


def test_the_threshold_with_the_highest_f1_is_found() -> None:
    scores, labels = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])
    assert gallery.highest_f1_threshold(scores, labels) == 1.0  # F1 0.8; 0.67 above 0, 0.5 above 2, 0.67 above 3
    assert gallery.highest_f1_threshold(scores, np.ones(4, bool)) is None
    below_all = gallery.highest_f1_threshold(np.array([1.0, 1.0]), np.array([True, False]))
    assert below_all is not None
    assert below_all < 1


# ---- content


def test_a_gallery_has_every_image_and_the_maps_of_each_method(simulate: Simulate) -> None:
    simulate(("bolt", "cap"), ("A", "B"), (0, 1))
    store = simulate(("bolt",), ("A",), protocol="kshot", k=4)
    listed = galleries(store)
    assert [(each.benchmark, each.category) for each in listed] == [
        ("parts · kshot k=4", "bolt"),
        ("parts · one-for-one", "bolt"),
        ("parts · one-for-one", "cap"),
    ]
    content = listed[1].read()
    assert [method["name"] for method in content["methods"]] == ["A", "B"]
    record = next(each for each in store.records() if each.run.protocol != "kshot" and each.category == "bolt")
    predictions = store.predictions(record)
    assert predictions.maps is not None
    method = content["methods"][0]
    assert [case["file"] for case in method["cases"]] == list(predictions.files)
    thresholds = np.array(method["thresholds"])
    for index, case in enumerate(method["cases"]):
        assert case["score"] == predictions.scores[index]
        levels = levels_of(method, case)
        for k in (0, 100, 254, 255):
            assert ((levels > k) == (predictions.maps[index] > thresholds[k])).all()
        mask = np.unpackbits(inflate(content["masks"][case["mask"]]), count=24 * 24).reshape(24, 24)
        assert (mask == predictions.masks[index]).all()


def test_stored_pictures_replace_missing_images_and_the_reason_of_others_is_kept(simulate: Simulate) -> None:
    content = galleries(simulate(("bolt",), ("A",)))[0].read()
    cases = content["methods"][0]["cases"]
    with_image = [case for case in cases if "image" in case]
    assert len(with_image) == 4  # best, median, worst and good
    assert {content["reasons"][case["reason"]] for case in cases if "image" not in case} == {"no folder"}


def test_the_image_of_the_source_is_read_once_for_all_methods(simulate: Simulate) -> None:
    read: list[str] = []

    def images(_record: Record, file: str) -> Image.Image:
        read.append(file)
        return Image.new("RGB", (640, 320), (255, 0, 0))

    content = galleries(simulate(("bolt",), ("A", "B")), images)[0].read()
    assert len(read) == 20
    assert content["reasons"] == []
    (uri,) = content["images"]
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == (320, 160)


def test_images_without_maps_labels_or_predictions_are_shown(
    tmp_path: Path, make_record: MakeRecord, make_predictions: MakePredictions
) -> None:
    store = Store(tmp_path / "runs")
    predictions = make_predictions(count=4)
    unlabeled = replace(predictions, maps=None, has_pixel_labels=np.array([True, False, True, True]))
    store.save(make_record(title="A", name="a", test_files=list(predictions.files)), unlabeled)
    store.save(make_record(title="B", name="b", group_hash="b", test_files=list(predictions.files)), None)
    first, second = galleries(store)[0].read()["methods"]
    assert first["thresholds"] is None
    assert [case["levels"] for case in first["cases"]] == [None] * 4
    assert first["cases"][1]["mask"] is None
    assert second["cases"] == []
    assert "not stored" in second["problem"]


def test_the_calibrated_thresholds_are_those_of_the_record(
    tmp_path: Path, make_record: MakeRecord, make_predictions: MakePredictions
) -> None:
    store = Store(tmp_path / "runs")
    predictions = make_predictions(count=4)
    record = make_record(threshold=0.25, pixel_threshold=1.125, calibrate=0.05, test_files=list(predictions.files))
    store.save(record, predictions)
    (method,) = galleries(store)[0].read()["methods"]
    assert method["scoreThreshold"] == 0.25
    assert method["scoreThresholdOrigin"] == "calibrated for a false positive rate of 5 %"
    assert method["thresholds"][method["calibratedLevel"]] == 1.125


def test_names_cannot_end_the_element_that_holds_the_data() -> None:
    text = gallery.to_script({"name": ODD})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": ODD}


# ---- files


def test_galleries_that_do_not_fit_have_separate_pages(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    store = simulate(("bolt", "cap", "nut"), ("A",))
    listed = galleries(store)
    report = registry.report_content().results(list(store.records()), store, [], "", listed)
    together = dict(html_report.render_files(report))
    assert list(together) == ["report.html"]
    assert together["report.html"] == html_report.render(report)
    assert all(f'id="data-{each.name}"' in together["report.html"] for each in listed)
    first_size = len(gallery.to_script(listed[0].read()))
    monkeypatch.setattr(html_report, "MAX_PAGE_BYTES", html_report.TEXT_BYTES + int(1.5 * first_size))
    files = dict(html_report.render_files(report))
    first, *others = (each.name for each in listed)
    assert set(files) == {"report.html", *(f"images/{name}.html" for name in others)}
    assert f'id="data-{first}"' in files["report.html"]
    for name in others:
        assert f'data-page="images/{name}.html"' in files["report.html"]
        assert f'id="data-{name}"' not in files["report.html"]
        assert f'id="data-{name}"' in files[f"images/{name}.html"]
        assert 'href="../report.html"' in files[f"images/{name}.html"]
    assert html_report.render(report).count('id="data-') == 1


# ---- in JavaScript


def run_node(code: str) -> Any:
    """Run code after gallery.js, without a page; the code is the body of an async function."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js: apt-get install nodejs")
    source = (files("bench.reports") / "parts" / "gallery.js").read_text("utf-8")
    script = f"{source}\n(async () => {{ {code} }})().then((result) => console.log(JSON.stringify(result)));"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_javascript_counts_the_pixels_of_a_map_of_four_pixels() -> None:
    # level > 1 for the last two pixels; the second and the last are defects
    counts = run_node("const c = countPixels([0, 1, 2, 3], [0, 1, 0, 1], 1); return [c, precisionRecall(c)];")
    assert counts == [{"tp": 1, "fp": 1, "fn": 1}, {"precision": 0.5, "recall": 0.5}]
    undefined = run_node("return [precisionRecall(countPixels([0, 1], [0, 0], 5)), formatPercent(null)];")
    assert undefined == [{"precision": None, "recall": None}, "–"]


def test_javascript_decodes_what_python_encodes(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",))
    content = galleries(store)[0].read()
    method = content["methods"][0]
    case = next(each for each in method["cases"] if each["anomalous"])
    code = f"""
      const levels = addDifferences(await inflate({json.dumps(case["levels"])}), 24);
      const mask = unpackBits(await inflate({json.dumps(content["masks"][case["mask"]])}), 576);
      return [...Array(256).keys()].map((k) => countPixels(levels, mask, k));
    """
    predictions = store.predictions(next(iter(store.records())))
    assert predictions.maps is not None
    index = predictions.files.index(case["file"])
    values, mask = predictions.maps[index], predictions.masks[index]
    for counts, threshold in zip(run_node(code), method["thresholds"], strict=True):
        above = values > threshold
        expected = (above & mask).sum(), (above & ~mask).sum(), (~above & mask).sum()
        assert (counts["tp"], counts["fp"], counts["fn"]) == expected


def test_javascript_filters_by_the_decision_and_sorts_by_score() -> None:
    cases = [("a", 3, False), ("b", 1, True), ("c", 2, True), ("d", 1, False)]
    items = json.dumps([{"file": file, "score": score, "anomalous": bad} for file, score, bad in cases])
    code = f"""
      const names = (...choices) => selectCases({items}, ...choices).map((each) => each.file).join("");
      return [names("all", "highest", 1), names("all", "lowest", 1), names("defect", "highest", 1),
        names("good", "highest", 1), names("false positive", "highest", 1), names("false negative", "highest", 1),
        names("false positive", "highest", null)];
    """
    assert run_node(code) == ["acbd", "bdca", "cb", "ad", "a", "b", ""]


def test_a_link_in_javascript_names_its_case_again() -> None:
    names = [["g", "A / B", "bolt/test/dent/0 1.png"], ["g", "%25", ODD], ["g", "A", "\udcff.png"], ["ä", "‡", "#?&"]]
    code = f"return {json.dumps(names)}.map((each) => parseHash(caseHash(...each)));"
    parsed = [[each["gallery"], each["method"], each["file"]] for each in run_node(code)]
    names[2][2] = "\ufffd.png"  # a byte that is no text
    assert parsed == names
    assert run_node('return ["#case=%", "#case=a/b", "#results"].map(parseHash);') == [None] * 3


# ---- in a browser


@pytest.mark.slow
def test_an_image_opens_with_its_counts_in_a_browser(browser: Any, simulate: Simulate, tmp_path: Path) -> None:
    store = simulate(("bolt", "cap"), ("A", "B"), calibrate=0.05)
    for record in list(store.records()):
        predictions = store.predictions(record)
        files = tuple(f"{file}{ODD}" for file in predictions.files)
        renamed = replace(predictions, files=files)
        changed = replace(record, threshold=0.5, pixel_threshold=1.0, test_files=list(files), artifacts={})
        store.save(changed, renamed, map_precision="float16")
    listed = galleries(store, lambda _record, _file: Image.new("RGB", (24, 24), (200, 0, 0)))
    report = registry.report_content().results(list(store.records()), store, [], "", listed)
    path = tmp_path / "report.html"
    path.write_text(html_report.render(report), "utf-8")
    browser.open(path)
    assert browser.errors == []
    n_visible = "document.querySelectorAll('.gallery-block[open] .case').length"
    assert browser.evaluate(n_visible) == 20
    assert not browser.evaluate("document.documentElement.scrollWidth > innerWidth")

    # filters follow the calibrated threshold
    record = next(iter(store.records()))
    predictions = store.predictions(record)
    assert predictions.maps is not None
    false_positives = int((predictions.scores[~predictions.is_anomalous] > 0.5).sum())
    change = "const s = document.querySelector('.case-filter'); s.value = '{}'; s.dispatchEvent(new Event('change'));"
    browser.evaluate(f"{{ {change.format('false positive')} }}")
    assert browser.evaluate(n_visible) == false_positives
    browser.evaluate(f"{{ {change.format('defect')} }}")

    # a click opens the defect with the highest score, with the counts at the calibrated threshold
    wait = "new Promise((done) => setTimeout(done, 200))"
    browser.evaluate("document.querySelector('.case').click()")
    browser.evaluate(wait)
    index = int(np.argmax(np.where(predictions.is_anomalous, predictions.scores, -np.inf)))
    assert browser.evaluate("document.getElementById('case-title').textContent") == predictions.files[index]

    def counts(threshold: float) -> str:
        assert predictions.maps is not None
        above, mask = predictions.maps[index] > threshold, predictions.masks[index]
        return f"TP {(above & mask).sum()}, FP {(above & ~mask).sum()}, FN {(~above & mask).sum()}"

    text = browser.evaluate("document.getElementById('case-counts').textContent")
    assert text.startswith("Pixel threshold 1 (calibrated): ")
    assert counts(1.0) in text
    set_slider = "{ const s = document.getElementById('pixel-threshold'); s.value = 200; "
    browser.evaluate(set_slider + "s.dispatchEvent(new Event('input', { bubbles: true })); }")
    thresholds = listed[0].read()["methods"][0]["thresholds"]
    assert counts(thresholds[200]) in browser.evaluate("document.getElementById('case-counts').textContent")

    # the next image, and a link that opens the same image in a new page
    title = "document.getElementById('case-title').textContent"
    browser.evaluate("document.getElementById('case-next').click()")
    browser.evaluate(wait)
    second = browser.evaluate(title)
    assert second != predictions.files[index]
    link = browser.evaluate("location.hash")
    assert link.startswith("#case=")
    browser.evaluate("document.querySelector('#case .close').click()")
    assert not browser.evaluate("document.getElementById('case').open")
    browser.evaluate(f"location.hash = {json.dumps(link)}")
    browser.evaluate(wait)
    assert browser.evaluate("document.getElementById('case').open")
    assert browser.evaluate(title) == second
    assert browser.errors == []
