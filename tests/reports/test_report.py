"""Reports of a store of simulated records: which sections appear, that numbers are right, and that text is text."""

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.errors import BenchError
from bench.evaluation.metric_variants import exact
from bench.evaluation.statistics import bootstrap, differences, intervals, mean_over_categories
from bench.evaluation.summary import METRICS
from bench.record import Predictions, Record, Run
from bench.reports.parts import drawn
from bench.store import Store

RUN = Run(
    dataset="parts",
    synthetic=True,
    protocol="one-for-one",
    k=0,
    seed=0,
    limit=0,
    name="a",
    method="a",
    title="A",
    settings={},
    preprocessing={},
    precision="float32",
    file_hashes={},
    profile="code",
    profile_note="",
    group_hash="v",
)
CATEGORIES = ("bolt", "cap", "disc", "gear", "hook", "nut")


def answers(category: str, merit: float, seed: int = 0, count: int = 24) -> Predictions:
    """Half good, half defective; the noise hangs on the category and the seed, `merit` parts the two classes."""
    random = np.random.default_rng([*category.encode(), seed])
    bad = np.arange(count) % 2 == 1
    masks = np.zeros((count, 12, 12), dtype=bool)
    masks[bad, 3:7, 4:8] = True
    maps = (random.normal(0, 1, masks.shape) + merit * masks).astype(np.float32)
    return Predictions(
        files=tuple(f"{i:03}.png" for i in range(count)),
        defects=tuple("dent" if each else "good" for each in bad),
        scores=random.normal(0, 1, count) + merit * bad,
        maps=maps,
        masks=masks,
        has_pixel_labels=np.ones(count, dtype=bool),
    )


def save(store: Store, title: str, category: str, merit: float, seed: int = 0, **changed: object) -> Record:
    """A record with its answers, as a run leaves them; further arguments are fields of the run or of the record."""
    given = answers(category, merit, seed).rounded("float16")
    mine = {key: changed.pop(key) for key in list(changed) if key in Record.__dataclass_fields__}
    run = replace(RUN, **{"name": title.lower(), "title": title, "seed": seed, **changed})
    made = {"metrics": exact(given), "tests": list(given.files), "started": "2025-01-01", **mine}
    return store.save(Record(run=run, category=category, data_digest=category, **made), given)


def rendered(store: Store, form: str = "markdown") -> str:
    return registry.load("reports", form).render(list(store.records()), store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of each table row whose first cell is `first`, put together where the table was folded."""
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
    """The rows of the table that compares two methods, without its head."""
    if f"**{names}**" not in text:
        return []
    lines = text.split(f"**{names}**\n\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


# ---- which sections appear


def test_one_method_with_one_seed_has_nothing_to_compare(store: Store) -> None:
    save(store, "A", "bolt", 1)
    text = rendered(store)
    assert "## parts · one-for-one\n" in text
    assert "### A · parts · one-for-one" in text
    assert "### Statistics" not in text
    assert "### Selection gap" not in text


def test_two_methods_with_the_same_runs_are_compared_in_numbers_and_words(store: Store) -> None:
    first = [save(store, "A", category, 2.5) for category in CATEGORIES]
    second = [save(store, "B", category, 0.5) for category in CATEGORIES]
    text = rendered(store)
    assert "categories: 6, seeds: 1" in text
    found = pair(text, "A − B")
    assert [row[0] for row in found] == list(METRICS.values())
    for metric, row in zip(METRICS, found, strict=True):
        gap = np.mean([a.metrics[metric] - b.metrics[metric] for a, b in zip(first, second, strict=True)])
        assert row[1] == f"{100 * gap:+.2f}"
    assert found[0][3:] == ["6", "0", "0.031", "0.031"]  # the exact test's least p of 6 categories is 2 / 2^6
    assert "- image AUROC: A lies" in text
    assert "- pixel AUROC: A lies" in text
    assert "That is more than chance among categories explains." in text
    assert "they would not turn it round" in text
    assert "One seed each" in text
    assert "Mean ranks" not in text


def test_the_interval_pairs_both_methods_on_the_same_drawn_images(store: Store) -> None:
    drawn: dict[str, list] = {"A": [], "B": []}
    for name, merit in (("A", 1.5), ("B", 1.0)):
        for category in CATEGORIES:
            given = store.predictions(save(store, name, category, merit))
            seed = [0, crc32(category.encode())]
            drawn[name].append(bootstrap(given.scores, given.is_anomalous, given.maps, given.masks, seed=seed))
    found = differences(mean_over_categories(drawn["A"]), mean_over_categories(drawn["B"]))
    for metric, row in zip(METRICS, pair(rendered(store), "A − B"), strict=True):
        assert row[2] == f"{100 * found[metric].low:+.2f} to {100 * found[metric].high:+.2f}"


def test_the_same_answers_under_two_names_differ_by_nothing(store: Store) -> None:
    for name in "AB":
        for category in CATEGORIES:
            save(store, name, category, 1)
    found = pair(rendered(store), "A − B")
    assert len(found) == len(METRICS)
    assert all(row[1:] == ["0.00", "0.00 to 0.00", "0", "0", "1", "1"] for row in found)


def test_three_methods_are_ranked(store: Store) -> None:
    for name, merit in (("A", 3.0), ("B", 1.0), ("C", 0.0)):
        for category in CATEGORIES:
            save(store, name, category, merit)
    text = rendered(store)
    assert "**Mean ranks (1 is best; critical difference by Nemenyi at 5%)**" in text
    assert rows(text, "critical difference") == [["critical difference", *["1.35"] * 6]]  # 2.343 sqrt(3 * 4 / (6 * 6))
    assert rows(text, "A")[-1][:2] == ["A", "1.00"]
    assert "image AUROC: Friedman's test of 3 methods on 6 categories" in text
    assert len([line for line in text.splitlines() if "after Holm's correction for 3" in line]) == 3 * 2


def test_a_method_with_other_runs_is_named_and_left_out(store: Store) -> None:
    for name in "AB":
        for category in CATEGORIES[:2]:
            save(store, name, category, 1)
    save(store, "C", "bolt", 1)
    save(store, "D", "bolt", 1, tests=["other.png"])
    text = rendered(store)
    assert "resolution or selection: C, D." in text
    assert pair(text, "A − B")
    assert not pair(text, "A − C")
    assert not pair(text, "C − D")


def test_last_and_best_on_the_test_set_are_never_compared_as_two_methods(store: Store) -> None:
    save(store, "A", "bolt", 1)
    save(store, "B", "bolt", 1, selection="oracle", every=10)
    assert "### Statistics" not in rendered(store)


def test_without_raw_answers_the_interval_is_unknown_and_told(store: Store) -> None:
    for name in "AB":
        for category in CATEGORIES:
            record = save(store, name, category, 1)
    place = store.path(record.run, record.data_digest, record.category, record.selection)
    place.with_suffix(".npz").unlink()
    text = rendered(store)
    assert pair(text, "A − B")[0][2] == "–"
    assert "what other test images would change is not known" in text


def test_several_formats_draw_the_images_of_each_record_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "AB":
        save(store, name, "bolt", 1)
    asked: list[object] = []
    monkeypatch.setattr(drawn, "resample", lambda *args, **more: (asked.append(args), bootstrap(*args, **more))[1])
    for form in ("markdown", "latex", "html"):
        rendered(store, form)
    assert len(asked) == 2


def test_two_settings_of_one_method_have_names_of_their_own(store: Store) -> None:
    save(store, "A", "bolt", 1)
    save(store, "A", "bolt", 2, variant="w", settings={"size": 2})
    save(store, "A", "bolt", 0, name="alias")
    text = rendered(store)
    assert pair(text, "A [a v] − A [a w]")
    assert pair(text, "A [a v] − A [alias]")


def test_the_spread_over_draws_is_of_the_means_over_categories(store: Store) -> None:
    values = {0: (0.5, 0.7), 1: (0.7, 0.9), 2: (0.9, 1.0)}  # means 0.6, 0.8, 0.95
    for seed, own in values.items():
        for category, value in zip(("bolt", "cap"), own, strict=True):
            save(store, "A", category, 1, seed, protocol="kshot", k=2, metrics={"image_auroc": value})
    text = rendered(store)
    assert "a seed is a fit and a draw of the training images" in text
    row = next(row for row in rows(text, "A") if row[1] == "image AUROC")
    # mean 0.78333, deviations -.18333, .01667, .16667: std 0.17559; t(2) 4.3027 * 0.17559 / sqrt(3) = 0.4362
    assert row[2:] == ["3", "78.3", "17.56", "34.7 to 100.0"]  # 122 can not be, so it ends at 100


def test_each_category_has_an_interval_for_every_metric(store: Store) -> None:
    for category in CATEGORIES[:2]:
        record = save(store, "A", category, 1, threshold=0.5, calibrate=0.1)
    text = rendered(store)
    section = text[text.index("95 % intervals over test images") :]
    given = store.predictions(record)
    seed = [0, crc32(b"cap")]
    drawn = bootstrap(given.scores, given.is_anomalous, given.maps, given.masks, threshold=0.5, seed=seed)
    found = intervals(drawn)
    (row,) = rows(section, "cap")
    assert len(row) == 1 + len(found) == 1 + 8 + 4
    interval = found["image_auroc"]
    expected = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    assert row[1] == f"{100 * record.metrics['image_auroc']:.1f} ({expected})"
    assert len(rows(section, "mean")) == 1
    assert "### Statistics" not in text  # of one method there is nothing to compare


def test_pixels_at_original_resolution_have_no_interval_and_the_report_says_why(store: Store) -> None:
    save(store, "A", "bolt", 1, resolution="original")
    section = rendered(store).split("95 % intervals over test images")[1]
    assert len(rows(section, "bolt")[0]) == 1 + 3
    assert "the maps are stored at input size" in section


def test_methods_fitted_on_other_images_are_not_compared(store: Store) -> None:
    for name, train in (("A", ["x.png"]), ("B", ["y.png"])):
        save(store, name, "bolt", 1, train=train)
    assert not pair(rendered(store), "A − B")


# ---- the selection gap


def test_the_selection_gap_has_epochs_both_values_and_the_curve(store: Store) -> None:
    curve = [
        {"epoch": 10.0, "image_auroc": 0.75, "pixel_auroc": 0.5},
        {"epoch": 20.0, "image_auroc": 0.625},
    ]
    for category, last, best in (("bolt", 0.625, 0.75), ("cap", 0.875, 0.875)):
        metrics = {"image_auroc": last, "pixel_auroc": 0.5}
        save(store, "A", category, 1, epoch=20, metrics=metrics, curve=curve)
        metrics = {"image_auroc": best, "pixel_auroc": 0.5}
        save(store, "A", category, 1, epoch=10, metrics=metrics, curve=curve, selection="oracle", every=10)
    text = rendered(store)
    section = text[text.index("### Selection gap") : text.index("### A · parts")]
    assert rows(section, "bolt") == [["bolt", "20", "10", "62.5, 75.0, +12.50", "50.0, 50.0, 0.00"]]
    assert rows(section, "mean") == [["mean", "", "", "75.0, 81.2, +6.25", "50.0, 50.0, 0.00"]]
    assert "- bolt, seed 0: 10: 75.0 / 50.0, 20: 62.5 / –" in section


def test_a_metric_that_a_category_lacks_has_no_mean_gap(store: Store) -> None:
    for category, metrics in (("bolt", {"image_auroc": 0.5, "pixel_auroc": 0.5}), ("cap", {"image_auroc": 0.5})):
        for selection, every in (("last", 0), ("oracle", 10)):
            save(store, "A", category, 1, metrics=metrics, selection=selection, every=every)
    text = rendered(store)
    section = text[text.index("### Selection gap") : text.index("### A · parts")]
    assert rows(section, "mean") == [["mean", "", "", "50.0, 50.0, 0.00", "–"]]


def test_in_a_sweep_each_gap_is_of_a_point_that_is_named(store: Store) -> None:
    for clusters in (2, 3):
        point = {"settings": {"clusters": clusters}, "swept": ("clusters",), "group_hash": f"v{clusters}"}
        for selection, every in (("last", 0), ("oracle", 10)):
            save(store, "A", "bolt", 1, selection=selection, every=every, **point)
    text = rendered(store)
    section = text[text.index("### Selection gap") : text.index("### A · parts")]
    assert "**A [clusters=2], mean over seeds**" in section
    assert "**A [clusters=3], mean over seeds**" in section


# ---- the audit


def test_the_audit_tells_how_far_each_dialect_moves_the_mean_and_one_category(store: Store) -> None:
    records = [save(store, "A", category, 1) for category in CATEGORIES]
    text = rendered(store, "audit")
    assert "## A · parts · one-for-one" in text
    ours = np.array([record.metrics["image_auroc"] for record in records])
    row = next(row for row in rows(text, "flipped below 0.5") if row[1] == "image AUROC")
    assert row[2] == f"{100 * ours.mean():.2f}"
    theirs = []
    for record in records:
        given = store.predictions(record)
        assert given.maps is not None
        peaks = given.maps.max(axis=(1, 2))
        bad = given.is_anomalous
        theirs.append(np.mean(np.sign(peaks[bad][:, None] - peaks[~bad]) / 2 + 0.5))
    moves = np.array(theirs) - ours
    most = int(np.argmax(np.abs(moves)))
    row = next(row for row in rows(text, "image score max") if row[1] == "image AUROC")
    mean, largest = f"{100 * moves.mean():+.2f}", f"{100 * moves[most]:+.2f} ({CATEGORIES[most]})"
    assert row[3:] == [f"{100 * np.mean(theirs):.2f}", mean, largest]


def test_the_audit_shows_that_the_reference_and_min_max_move_nothing(store: Store) -> None:
    for category in CATEGORIES[:2]:
        save(store, "A", category, 1)
    text = rendered(store, "audit")
    for dialect in ("scikit-learn", "min-max over the test set"):
        found = [row for row in rows(text, dialect) if len(row) == 6]
        assert len(found) == 4
        assert all(row[4:] == ["0.00", "0.00"] for row in found)


def test_the_audit_says_what_it_can_not_know(store: Store) -> None:
    record = save(store, "A", "bolt", 1)
    place = store.path(record.run, record.data_digest, record.category, record.selection)
    place.with_suffix(".npz").unlink()
    text = rendered(store, "audit")
    assert "No raw answers: bolt, seed 0." in text


def test_the_audit_judges_masks_by_another_filter_or_says_that_they_were_not_kept(store: Store) -> None:
    record = save(store, "A", "bolt", 1)
    assert "no masks by another filter; --force keeps them: bolt, seed 0." in rendered(store, "audit")
    given = store.predictions(record)
    soft = given.masks * np.uint8(255)
    soft[given.is_anomalous, 7, 4:8] = 200  # a fifth row that a bilinear filter half touches
    store.save(record, replace(given, soft_masks=soft))
    text = rendered(store, "audit")
    assert "another filter" not in text
    wider = given.masks.copy()
    wider[given.is_anomalous, 7, 4:8] = True
    (row,) = (row for row in rows(text, "bilinear masks, cut at 0.5") if row[1:2] == ["pixel AP"])
    theirs = exact(replace(given, masks=wider))["pixel_ap"]
    assert row[2:4] == [f"{100 * record.metrics['pixel_ap']:.2f}", f"{100 * theirs:.2f}"]
    assert [row[5] for row in rows(text, "bilinear masks, cut at 1") if len(row) == 6] == ["0.00"] * 4


def test_a_dialect_without_a_value_in_some_category_says_in_how_many_it_has_one(store: Store) -> None:
    save(store, "A", "bolt", 1)
    record = save(store, "A", "cap", 1)
    given = store.predictions(record)
    assert given.maps is not None
    given.maps[0, 0, 0] = 1e6  # one outlier, and linear thresholds have nothing to integrate
    store.save(record, given)
    (row,) = [row for row in rows(rendered(store, "audit"), "200 linear thresholds") if len(row) == 6]
    assert row[1] == "AUPRO@0.3 (1 of 2 categories have it)"


# ---- text stays text


@pytest.mark.parametrize("form", ["markdown", "audit"])
def test_names_become_neither_html_nor_cells(store: Store, form: str) -> None:
    for title in ("<script>x</script>", "B|C"):
        for category in ("bolt", "c<b>|d"):
            for selection in ("last", "oracle"):
                save(store, title, category, 1, name=f"n{len(title)}", selection=selection, every=10)
    text = rendered(store, form)
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert tables
    for lines in tables:
        cells = {line.replace("\\|", "").count("|") for line in lines}
        assert len(cells) == 1, lines


# ---- the command


def test_the_command_prints_the_audit_or_writes_it_beside_the_report(store: Store, tmp_path: Path) -> None:
    save(store, "A", "bolt", 1)
    words = ["report", "--runs", str(store.root), "--audit"]
    told = CliRunner().invoke(app.app, words)
    assert told.exit_code == 0, told.output
    assert len([row for row in rows(told.stdout, "scikit-learn") if len(row) == 6]) == 4
    CliRunner().invoke(app.app, [*words, "--out", str(tmp_path / "out")])
    CliRunner().invoke(app.app, [*words[:-1], "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.md", "figures", "report.md"]


def test_an_audit_in_another_format_is_refused(store: Store) -> None:
    told = CliRunner().invoke(app.app, ["report", "--runs", str(store.root), "--audit", "--format", "html"])
    assert isinstance(told.exception, BenchError)
    assert "--format html" in str(told.exception)
