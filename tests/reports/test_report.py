"""Reports of simulated records: which sections appear, that the values are right, and that text is escaped."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.errors import BenchError
from bench.evaluation.bootstrap import bootstrap, differences, intervals, mean_over_categories
from bench.evaluation.metric_variants import exact_metrics
from bench.evaluation.summary import METRICS
from bench.record import Predictions, Record
from bench.reports.parts import prediction_data
from bench.store import Store

CATEGORIES = ("bolt", "cap", "disc", "gear", "hook", "nut")
Save = Callable[..., Record]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def save(store: Store, make_record: Callable[..., Record], make_predictions: Callable[..., Predictions]) -> Save:
    """Return a function of title, category, effect_size and seed that stores a record with predictions."""

    def build(title: str, category: str, effect_size: float, seed: int = 0, **changes: Any) -> Record:
        predictions = make_predictions([*category.encode(), seed], effect_size, count=24).rounded("float16")
        values = {"metrics": exact_metrics(predictions), "test_files": list(predictions.files), "seed": seed}
        names = {"title": title, "name": title.lower(), "category": category, "data_hash": category}
        return store.save(make_record(**(names | values | changes)), predictions)

    return build


def rendered(store: Store, name: str = "markdown") -> str:
    """Return the report of all records in one format."""
    content = registry.report_content()
    return str(registry.load("reports", name).render(content.results(list(store.records()), store, [], "")))


def audited(store: Store) -> str:
    """Return the audit of all records as Markdown."""
    content = registry.report_content()
    return str(registry.load("reports", "markdown").render(content.audit(list(store.records()), store, "")))


def rows(text: str, first: str) -> list[list[str]]:
    """Return the cells of each row whose first cell is `first`, with the parts of divided tables joined."""
    tables: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        if cells and tables and [row[0] for row in cells] == [row[0] for row in tables[-1]]:
            tables[-1] = [row + more[1:] for row, more in zip(tables[-1], cells, strict=True)]
        else:
            tables.append(cells)
    return [row for table in tables for row in table if row[0] == first]


def pair(text: str, names: str) -> list[list[str]]:
    """Return the rows of the table that compares two methods, without its header."""
    if f"**{names}**" not in text:
        return []
    lines = text.split(f"**{names}**\n\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


# ---- which sections appear


def test_one_method_with_one_seed_has_nothing_to_compare(store: Store, save: Save) -> None:
    save("A", "bolt", 1)
    text = rendered(store)
    assert "## parts · one-for-one\n" in text
    assert "### A · parts · one-for-one" in text
    assert "### Statistics" not in text
    assert "### Selection gap" not in text


def test_two_methods_with_the_same_runs_are_compared_in_tables_and_sentences(store: Store, save: Save) -> None:
    first = [save("A", category, 2.5) for category in CATEGORIES]
    second = [save("B", category, 0.5) for category in CATEGORIES]
    text = rendered(store)
    assert "categories: 6, seeds: 1" in text
    result = pair(text, "A − B")
    assert [row[0] for row in result] == list(METRICS.values())
    for metric, row in zip(METRICS, result, strict=True):
        gap = np.mean([a.metrics[metric] - b.metrics[metric] for a, b in zip(first, second, strict=True)])
        assert row[1] == f"{100 * gap:+.2f}"
    assert result[0][3:] == ["6", "0", "0.031", "0.031"]  # the smallest exact p of 6 categories is 2 / 2^6
    assert "- image AUROC: A is on average" in text
    assert "- pixel AUROC: A is on average" in text
    assert "The difference over categories is significant." in text
    assert "which excludes zero." in text
    assert "Only one seed per method" in text
    assert "Mean ranks" not in text


def test_the_interval_pairs_both_methods_on_the_same_sampled_images(store: Store, save: Save) -> None:
    samples: dict[str, list] = {"A": [], "B": []}
    for name, effect_size in (("A", 1.5), ("B", 1.0)):
        for category in CATEGORIES:
            predictions = store.predictions(save(name, category, effect_size))
            seed = [0, crc32(category.encode())]
            arguments = (predictions.scores, predictions.is_anomalous, predictions.maps, predictions.masks)
            samples[name].append(bootstrap(*arguments, seed=seed))
    result = differences(mean_over_categories(samples["A"]), mean_over_categories(samples["B"]))
    for metric, row in zip(METRICS, pair(rendered(store), "A − B"), strict=True):
        assert row[2] == f"{100 * result[metric].low:+.2f} to {100 * result[metric].high:+.2f}"


def test_the_same_predictions_under_two_names_do_not_differ(store: Store, save: Save) -> None:
    for name in "AB":
        for category in CATEGORIES:
            save(name, category, 1)
    result = pair(rendered(store), "A − B")
    assert len(result) == len(METRICS)
    assert all(row[1:] == ["0.00", "0.00 to 0.00", "0", "0", "1", "1"] for row in result)


def test_three_methods_are_ranked(store: Store, save: Save) -> None:
    for name, effect_size in (("A", 3.0), ("B", 1.0), ("C", 0.0)):
        for category in CATEGORIES:
            save(name, category, effect_size)
    text = rendered(store)
    assert "**Mean ranks (1 is best; critical difference by Nemenyi at 5%)**" in text
    assert rows(text, "critical difference") == [["critical difference", *["1.35"] * 6]]  # 2.343 sqrt(3 * 4 / (6 * 6))
    assert rows(text, "A")[-1][:2] == ["A", "1.00"]
    assert "image AUROC: Friedman's test of 3 methods on 6 categories" in text
    assert len([line for line in text.splitlines() if "number of tests: 3" in line]) == 3 * 2


def test_methods_with_other_runs_are_named_and_not_compared(store: Store, save: Save) -> None:
    for name in "AB":
        for category in CATEGORIES[:2]:
            save(name, category, 1)
    save("C", "bolt", 1)
    save("D", "bolt", 1, test_files=["other.png"])
    text = rendered(store)
    assert "evaluation options or selection differ: C, D." in text
    assert pair(text, "A − B")
    assert not pair(text, "A − C")
    assert not pair(text, "C − D")


def test_last_and_best_on_the_test_set_are_never_compared_as_two_methods(store: Store, save: Save) -> None:
    save("A", "bolt", 1)
    save("B", "bolt", 1, selection="oracle", eval_every=10)
    assert "### Statistics" not in rendered(store)


def test_without_predictions_the_interval_is_unknown_and_the_report_states_it(store: Store, save: Save) -> None:
    for name in "AB":
        for category in CATEGORIES:
            record = save(name, category, 1)
    path = store.path(record.run, record.data_hash, record.category, record.selection)
    path.with_suffix(".npz").unlink()
    text = rendered(store)
    assert pair(text, "A − B")[0][2] == "–"
    assert "the variation over test images is unknown" in text


def test_several_formats_bootstrap_each_record_once(store: Store, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AB":
        save(name, "bolt", 1)
    calls: list[object] = []

    def counted(*args: Any, **kwargs: Any) -> object:
        calls.append(args)
        return bootstrap(*args, **kwargs)

    monkeypatch.setattr(prediction_data, "bootstrap", counted)
    for name in ("markdown", "latex", "html"):
        rendered(store, name)
    assert len(calls) == 2


def test_two_settings_of_one_method_have_unique_names(store: Store, save: Save) -> None:
    save("A", "bolt", 1)
    save("A", "bolt", 2, group_hash="w", settings={"size": 2})
    save("A", "bolt", 0, name="alias")
    text = rendered(store)
    assert pair(text, "A, method=a, width=8 − A, method=a, size=2")
    assert pair(text, "A, method=a, width=8 − A, method=alias, width=8")


def test_the_variation_over_seeds_is_that_of_the_means_over_categories(store: Store, save: Save) -> None:
    values = {0: (0.5, 0.7), 1: (0.7, 0.9), 2: (0.9, 1.0)}  # means 0.6, 0.8, 0.95
    for seed, by_category in values.items():
        for category, value in zip(("bolt", "cap"), by_category, strict=True):
            save("A", category, 1, seed, protocol="kshot", k=2, metrics={"image_auroc": value})
    text = rendered(store)
    assert "a seed is a training run and a draw of the training images" in text
    row = next(row for row in rows(text, "A") if row[1] == "image AUROC")
    # mean 0.78333, deviations -.18333, .01667, .16667: std 0.17559; t(2) 4.3027 * 0.17559 / sqrt(3) = 0.4362
    assert row[2:] == ["3", "78.3", "17.56", "34.7 to 100.0"]  # the upper end of 122 is limited to 100


def test_each_category_has_an_interval_for_every_metric(store: Store, save: Save) -> None:
    for category in CATEGORIES[:2]:
        record = save("A", category, 1, threshold=0.5, calibrate=0.1)
    text = rendered(store)
    section = text[text.index("95 % intervals over test images") :]
    predictions = store.predictions(record)
    seed = [0, crc32(b"cap")]
    samples = bootstrap(
        predictions.scores, predictions.is_anomalous, predictions.maps, predictions.masks, threshold=0.5, seed=seed
    )
    result = intervals(samples)
    (row,) = rows(section, "cap")
    assert len(row) == 1 + len(result) == 1 + 8 + 4
    interval = result["image_auroc"]
    expected = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    assert row[1] == f"{100 * record.metrics['image_auroc']:.1f} ({expected})"
    assert len(rows(section, "mean")) == 1
    assert "### Statistics" not in text  # a single method has nothing to compare with


def test_pixel_metrics_at_original_resolution_have_no_interval_and_the_report_states_why(
    store: Store, save: Save
) -> None:
    save("A", "bolt", 1, resolution="original")
    section = rendered(store).split("95 % intervals over test images")[1]
    assert len(rows(section, "bolt")[0]) == 1 + 3
    assert "maps are stored at input size" in section


def test_methods_with_other_training_images_are_not_compared(store: Store, save: Save) -> None:
    for name, train in (("A", ["x.png"]), ("B", ["y.png"])):
        save(name, "bolt", 1, train_files=train)
    assert not pair(rendered(store), "A − B")


# ---- the selection gap


def test_the_selection_gap_has_epochs_both_values_and_the_curve(store: Store, save: Save) -> None:
    curve = [
        {"epoch": 10.0, "image_auroc": 0.75, "pixel_auroc": 0.5},
        {"epoch": 20.0, "image_auroc": 0.625},
    ]
    for category, last, best in (("bolt", 0.625, 0.75), ("cap", 0.875, 0.875)):
        metrics = {"image_auroc": last, "pixel_auroc": 0.5}
        save("A", category, 1, epoch=20, metrics=metrics, metrics_by_epoch=curve)
        metrics = {"image_auroc": best, "pixel_auroc": 0.5}
        save("A", category, 1, epoch=10, metrics=metrics, metrics_by_epoch=curve, selection="oracle", eval_every=10)
    text = rendered(store)
    section = text[text.index("### Selection gap") : text.index("### A · parts")]
    assert rows(section, "bolt") == [["bolt", "20", "10", "62.5, 75.0, +12.50", "50.0, 50.0, 0.00"]]
    assert rows(section, "mean") == [["mean", "", "", "75.0, 81.2, +6.25", "50.0, 50.0, 0.00"]]
    assert "- bolt, seed 0: 10: 75.0 / 50.0, 20: 62.5 / –" in section


def test_a_metric_that_a_category_lacks_has_no_mean_gap(store: Store, save: Save) -> None:
    for category, metrics in (("bolt", {"image_auroc": 0.5, "pixel_auroc": 0.5}), ("cap", {"image_auroc": 0.5})):
        for selection, every in (("last", 0), ("oracle", 10)):
            save("A", category, 1, metrics=metrics, selection=selection, eval_every=every)
    text = rendered(store)
    section = text[text.index("### Selection gap") : text.index("### A · parts")]
    assert rows(section, "mean") == [["mean", "", "", "50.0, 50.0, 0.00", "–"]]


def test_in_a_sweep_each_gap_names_its_point(store: Store, save: Save) -> None:
    for clusters in (2, 3):
        point = {"settings": {"clusters": clusters}, "sweep_keys": ["clusters"], "group_hash": f"v{clusters}"}
        for selection, every in (("last", 0), ("oracle", 10)):
            save("A", "bolt", 1, selection=selection, eval_every=every, **point)
    text = rendered(store)
    section = text[text.index("### Selection gap") : text.index("### A [clusters=2] · parts")]
    assert "**A [clusters=2], mean over seeds**" in section
    assert "**A [clusters=3], mean over seeds**" in section


# ---- the audit


def test_the_audit_shows_how_much_each_variant_changes_the_mean_and_one_category(store: Store, save: Save) -> None:
    records = [save("A", category, 1) for category in CATEGORIES]
    text = audited(store)
    assert "## A · parts · one-for-one" in text
    exact_values = np.array([record.metrics["image_auroc"] for record in records])
    row = next(row for row in rows(text, "AUROC flipped below 0.5") if row[1] == "image AUROC")
    assert row[2] == f"{100 * exact_values.mean():.2f}"
    variant_values = []
    for record in records:
        predictions = store.predictions(record)
        assert predictions.maps is not None
        peaks = predictions.maps.max(axis=(1, 2))
        bad = predictions.is_anomalous
        variant_values.append(np.mean(np.sign(peaks[bad][:, None] - peaks[~bad]) / 2 + 0.5))
    changes = np.array(variant_values) - exact_values
    most = int(np.argmax(np.abs(changes)))
    row = next(row for row in rows(text, "image score max") if row[1] == "image AUROC")
    mean, largest = f"{100 * changes.mean():+.2f}", f"{100 * changes[most]:+.2f} ({CATEGORIES[most]})"
    assert row[3:] == [f"{100 * np.mean(variant_values):.2f}", mean, largest]


def test_the_audit_shows_that_the_reference_and_min_max_change_nothing(store: Store, save: Save) -> None:
    for category in CATEGORIES[:2]:
        save("A", category, 1)
    text = audited(store)
    for variant in ("scikit-learn", "min-max over the test set"):
        result = [row for row in rows(text, variant) if len(row) == 6]
        assert len(result) == 4
        assert all(row[4:] == ["0.00", "0.00"] for row in result)


def test_the_audit_is_printed_as_json(store: Store, save: Save) -> None:
    for category in CATEGORIES[:2]:
        save("A", category, 1)
    result = CliRunner().invoke(app.app, ["report", "--audit", "--json", "--runs", str(store.root)])
    values, text = json.loads(result.stdout), audited(store)
    assert len(values) > 10
    for value in values:
        row = next(row for row in rows(text, value["variant"]) if row[1] == METRICS[value["metric"]])
        assert row[2:4] == [f"{100 * value['exact']:.2f}", f"{100 * value['value']:.2f}"]
        assert value["difference"] == value["value"] - value["exact"]
        assert value["n_categories"] == 2
        assert (value["name"], value["selection"]) == ("parts/one-for-one/a", "last")


def test_the_audit_names_missing_predictions(store: Store, save: Save) -> None:
    record = save("A", "bolt", 1)
    path = store.path(record.run, record.data_hash, record.category, record.selection)
    path.with_suffix(".npz").unlink()
    text = audited(store)
    assert "No stored predictions: bolt, seed 0." in text


def test_the_audit_uses_bilinear_masks_or_states_that_they_are_not_stored(store: Store, save: Save) -> None:
    record = save("A", "bolt", 1)
    assert "No bilinearly resized masks are stored for: bolt, seed 0." in audited(store)
    predictions = store.predictions(record)
    soft = predictions.masks * np.uint8(255)
    soft[predictions.is_anomalous, 12, 8:14] = 200  # one more row with intermediate values of a bilinear filter
    store.save(record, replace(predictions, soft_masks=soft))
    text = audited(store)
    assert "No bilinearly" not in text
    wider = predictions.masks.copy()
    wider[predictions.is_anomalous, 12, 8:14] = True
    (row,) = (row for row in rows(text, "bilinear masks, threshold 0.5") if row[1:2] == ["pixel AP"])
    value = exact_metrics(replace(predictions, masks=wider))["pixel_ap"]
    assert row[2:4] == [f"{100 * record.metrics['pixel_ap']:.2f}", f"{100 * value:.2f}"]
    assert [row[5] for row in rows(text, "bilinear masks, threshold 1") if len(row) == 6] == ["0.00"] * 4


def test_a_variant_that_is_undefined_in_some_category_states_in_how_many_it_is_defined(
    store: Store, save: Save
) -> None:
    save("A", "bolt", 1)
    record = save("A", "cap", 1)
    predictions = store.predictions(record)
    assert predictions.maps is not None
    predictions.maps[0, 0, 0] = 1e6  # with one outlier, linear thresholds give no value
    store.save(record, predictions)
    (row,) = [row for row in rows(audited(store), "200 linear thresholds") if len(row) == 6]
    assert row[1] == "AUPRO@0.3 (defined in 1 of 2 categories)"


# ---- escaped text


@pytest.mark.parametrize("render", [rendered, audited])
def test_names_become_neither_html_nor_table_cells(store: Store, save: Save, render: Callable[[Store], str]) -> None:
    for title in ("<script>x</script>", "B|C"):
        for category in ("bolt", "c<b>|d"):
            for selection in ("last", "oracle"):
                save(title, category, 1, name=f"n{len(title)}", selection=selection, eval_every=10)
    text = render(store)
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert tables
    for lines in tables:
        cells = {line.replace("\\|", "").count("|") for line in lines}
        assert len(cells) == 1, lines


# ---- the command


def test_the_command_prints_the_audit_or_writes_it_to_a_file(store: Store, save: Save, tmp_path: Path) -> None:
    save("A", "bolt", 1)
    words = ["report", "--runs", str(store.root), "--audit"]
    result = CliRunner().invoke(app.app, words)
    assert result.exit_code == 0, result.output
    assert len([row for row in rows(result.stdout, "scikit-learn") if len(row) == 6]) == 4
    CliRunner().invoke(app.app, [*words, "--out", str(tmp_path / "out")])
    CliRunner().invoke(app.app, [*words[:-1], "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.md", "figures", "report.md"]


def test_an_audit_has_every_format_except_csv(store: Store, save: Save, tmp_path: Path) -> None:
    save("A", "bolt", 1)
    words = ["report", "--runs", str(store.root), "--audit", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app.app, [*words, "--format", "html,latex"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.html", "audit.tex"}
    result = CliRunner().invoke(app.app, [*words, "--format", "csv"])
    assert isinstance(result.exception, BenchError)
    assert "Use --format markdown, html or latex" in str(result.exception)


def test_the_figures_alone_are_a_report(store: Store, save: Save, tmp_path: Path) -> None:
    save("A", "bolt", 1)
    result = CliRunner().invoke(app.app, ["report", "--runs", str(store.root), "--figures", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "figures.md").read_text("utf-8")
    assert text.startswith("# maskbench: figures\n\n## ")
    assert "|" not in text
    result = CliRunner().invoke(app.app, ["report", "--runs", str(store.root), "--figures"])
    assert "Figures are drawn with `--out DIR`." in result.stdout


def test_a_report_separates_two_datasets_of_one_name(store: Store, save: Save) -> None:
    save("A", "nut", 1, data_fingerprints={"bolt": "a1", "nut": "a2"}, started="2026-01-01")
    save("A", "bolt", 1, data_fingerprints={"bolt": "b1"}, started="2026-01-02", group_hash="w")
    text = rendered(store)
    assert "## parts (1 of 2) · one-for-one\n" in text
    assert "### A · parts (2 of 2) · one-for-one" in text
    assert "one of several datasets named parts" in text
    assert len(rows(text, "nut")) == len(rows(text, "bolt")) == 2  # values and intervals, each in its own table
