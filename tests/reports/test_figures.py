"""Figures of simulated records: what is drawn where, that lines are the metrics' own, and that text stays text."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.evaluation.summary import groups, unique_names
from bench.record import Record, Run
from bench.report import Figure
from bench.reports.parts import cases, comparisons, curves, drawing, evidence, style
from bench.store import Store

Simulate = Callable[..., Store]
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
)


def figures(store: Store) -> list[Figure]:
    drawn: list[Figure] = registry.load("reports", "figures").draw(list(store.records()), store)
    return drawn


# ---- what is drawn where


@pytest.mark.slow
def test_every_figure_is_drawn_in_three_formats_and_sheets_as_photographs(simulate: Simulate) -> None:
    simulate(("bolt", "cap", "disc"), ("A", "B", "C"), (0, 1), protocol="kshot", k=2)
    simulate(("bolt", "cap", "disc"), ("A", "B", "C"), (0, 1), protocol="kshot", k=4)
    store = simulate(
        ("bolt", "cap", "disc"), ("A",), (0, 1), protocol="kshot", k=4, settings={"width": 9}, group_hash="w"
    )
    found = figures(store)
    kinds = {figure.kind for figure in found if figure.files}
    assert kinds == {"speed", "k", "heat", "ranks", "ablation", "epochs", "roc", "pro", "scores", "sheet"}
    assert {figure.kind for figure in found if not figure.files} == {"ablation"}  # of k = 2
    assert len({figure.name for figure in found}) == len(found)
    for figure in found:
        if figure.kind == "sheet":
            assert set(figure.files) == {"jpg"}
        elif figure.files:
            assert set(figure.files) == {"png", "svg", "pdf"}
            with Image.open(io.BytesIO(figure.files["png"])) as image:
                assert image.width > 400
            ET.fromstring(figure.files["svg"])
            assert figure.files["pdf"].startswith(b"%PDF")
    assert sum(figure.kind == "sheet" for figure in found) == 3 * 7


def test_what_cannot_be_drawn_says_which_command_would_give_it(tmp_path: Path, simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), protocol="kshot", k=4)
    (record,) = store.records()
    bare = Store(tmp_path / "bare")
    bare.save(replace(record, latency={}, losses=[], metrics_by_epoch=[], artifacts={}), None)
    found = {figure.kind: figure for figure in figures(bare)}
    assert set(found) == {"k", "speed", "heat", "ranks", "ablation", "epochs", "roc", "pro"}
    assert not any(figure.files for figure in found.values())
    assert "`bench run --method a --dataset parts --k 2,4,8`" in found["k"].caption
    assert "`bench run --dataset parts --method meanmap,patchcore,aminet`" in found["ranks"].caption
    assert "--over a.width=VALUE,VALUE`" in found["ablation"].caption
    assert all("`bench run" in figure.caption for figure in found.values())


def test_a_command_asked_again_has_each_option_once() -> None:
    record = Record(
        run=replace(RUN, name="a"),
        category="bolt",
        data_digest="",
        command="bench run --k 4 --time --method a --set x=1",
    )
    assert drawing.again(record, "--k", "2,4,8") == "`bench run --time --method a --set x=1 --k 2,4,8`"
    assert drawing.again(record, "--time", "--force") == "`bench run --k 4 --method a --set x=1 --time --force`"
    assert drawing.again(replace(record, command="bench run --k=4"), "--k", "2") == "`bench run --k 2`"
    assert drawing.again(replace(record, command="a 'b"), "--force") == "`bench run --method a --dataset parts --force`"
    assert drawing.again(replace(record, command=""), "--force") == "`bench run --method a --dataset parts --force`"


def test_an_ablation_needs_runs_that_differ_in_one_setting_alone(simulate: Simulate) -> None:
    simulate(("bolt",), ("A",), settings={"width": 8, "depth": 1}, group_hash="1")
    simulate(("bolt",), ("A",), settings={"width": 4, "depth": 1}, group_hash="2")
    store = simulate(("bolt",), ("A",), settings={"width": 2, "depth": 3}, group_hash="3")
    simulate(("bolt",), ("A",), settings={"width": 16, "depth": 1}, calibrate=0.1, group_hash="4")
    panels = comparisons._swept(groups(store.records()))
    assert [(setting, [value for value, _ in own]) for _, setting, own in panels] == [("width", [4, 8])]


def test_an_ablation_by_the_oracle_says_so() -> None:
    runs = [replace(RUN, settings={"width": width}, group_hash=f"{width}") for width in (4, 8)]
    both = [
        Record(run=run, category="bolt", data_digest="", selection=rule) for run in runs for rule in ("last", "oracle")
    ]
    assert [title for title, _, _ in comparisons._swept(groups(both))] == ["A", "A (oracle)"]


def test_panels_of_a_product_tell_where_they_were_held() -> None:
    points = [{"width": width, "depth": depth} for width in (4, 8) for depth in (1, 2)]
    runs = [replace(RUN, settings=point, group_hash=f"{point}") for point in points]
    product = groups([Record(run=run, category="bolt", data_digest="") for run in runs])
    found = {(title, setting) for title, setting, _ in comparisons._swept(product)}
    assert found == {("A, width=4", "depth"), ("A, width=8", "depth"), ("A, depth=1", "width"), ("A, depth=2", "width")}
    one_at_a_time = comparisons._swept(product[:3])
    assert {(title, setting) for title, setting, _ in one_at_a_time} == {("A", "depth"), ("A", "width")}


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [(10.0, 90.0), (20.0, 80.0), (5.0, 70.0), (30.0, 95.0), (10.0, 60.0)]
    assert comparisons._front(points) == [(5.0, 70.0), (10.0, 90.0), (30.0, 95.0)]


# ---- the lines are the metrics' own


def test_the_area_below_a_drawn_curve_is_the_metric(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A", "B", "C"))
    found = evidence.gathered(groups(store.records()), store)
    assert len(found) == 3
    for each in found.values():
        assert each.roc
        assert each.overlap
        rates, shares = each.roc
        assert np.trapezoid(shares, rates) == pytest.approx(each.record.metrics["image_auroc"], abs=1e-12)
        rates, shares = each.overlap
        aupro = np.trapezoid(shares, rates) / evidence.LIMIT
        assert aupro == pytest.approx(each.record.metrics["aupro_30"], abs=2e-3)  # at 601 points


def test_the_evidence_is_of_the_lowest_seed_and_of_last_epochs(simulate: Simulate) -> None:
    store = simulate(("bolt", "cap"), ("A",), (3, 1))
    (group,) = groups(store.records())
    assert [record.run.seed for record in evidence.first_seed(group)] == [1, 1]
    for record in list(store.records()):
        store.save(replace(record, selection="oracle", eval_every=5), store.predictions(record))
    assert {
        key[2]: each.record.selection for key, each in evidence.gathered(groups(store.records()), store).items()
    } == {
        "bolt": "last",
        "cap": "last",
    }


def test_cases_have_the_rank_of_their_score_and_a_hundredth_of_normal_pixels_lies_within_the_dots(
    simulate: Simulate,
) -> None:
    store = simulate(("bolt",), ("A",))
    (each,) = evidence.gathered(groups(store.records()), store).values()
    by_name = {case.name: case for case in each.cases}
    assert list(by_name) == ["best", "median", "worst", "good"]
    assert by_name["best"].score == each.scores[each.is_anomalous].max()
    assert by_name["worst"].place == 1 + int((each.scores > by_name["worst"].score).sum())
    assert by_name["good"].mask is not None
    assert not by_name["good"].mask.any()
    given = store.predictions(each.record)
    assert given.maps is not None
    assert np.mean(given.maps[~given.masks] > each.threshold) == pytest.approx(evidence.RATE, abs=1e-3)


def test_the_star_stands_where_the_sum_of_both_aurocs_is_highest() -> None:
    points = [
        {"image_auroc": 0.9, "pixel_auroc": 0.5, "image_ap": 0.9},
        {"image_auroc": 0.7, "pixel_auroc": 0.8, "image_ap": 0.1},
        {"image_auroc": 0.8, "pixel_auroc": 0.7, "image_ap": 0.2},
    ]
    merits = [curves._merit(point) for point in points]
    assert max(range(3), key=merits.__getitem__) == 2  # 1.5 twice; the second has the higher APs


# ---- sheets


def test_a_sheet_has_a_row_a_case_and_a_column_a_picture(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",))
    members = groups(store.records())
    found = evidence.gathered(members, store)
    rows = list(cases.pictures(next(iter(found.values())), store, 48))
    assert [case.name for case, _ in rows] == ["best", "median", "worst", "good"]
    assert all(list(shown) == ["image", "ground truth", "anomaly map", "overlay", "distance"] for _, shown in rows)
    assert all(picture.size == (48, 48) for _, shown in rows for picture in shown.values())
    (sheet,) = cases.sheets("parts · one-for-one", members, found, store)
    with Image.open(io.BytesIO(sheet.files["jpg"])) as image:
        assert image.height > 4 * cases.SHEET


def test_a_picture_that_is_gone_or_broken_is_left_out(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",))
    (record,) = store.records()
    views = store.views(record)
    views["best.image"].write_bytes(b"no picture")
    views["good.distance"].unlink()
    (found,) = evidence.gathered(groups(store.records()), store).values()
    rows = {case.name: list(shown) for case, shown in cases.pictures(found, store, 48)}
    assert rows["best"] == ["ground truth", "anomaly map", "distance"]  # and nothing to lay the map over
    assert rows["good"] == ["image", "ground truth", "anomaly map", "overlay"]


# ---- text and looks


def test_what_a_reader_must_know_stands_within_the_figure(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A", "B"))
    for record in list(store.records()):
        if record.run.title == "B":
            store.save(replace(record, selection="oracle", eval_every=5), store.predictions(record))
    told = style.notes(groups(store.records()))
    assert told == ["synthetic data", "B (oracle): oracle: epoch chosen on the test set"]
    with style.themed():
        canvas, _ = style.canvas(3, 2)
        style.files(canvas, "title", told)
        assert canvas.get_supxlabel() == "\n".join(told)


def test_odd_names_neither_break_a_figure_nor_hide_in_its_legend(simulate: Simulate) -> None:
    name = "_$a_b$ <b>&\x01\u5b57"
    store = simulate((name, "cap"), (name,), name="a", method="a")
    members = groups(store.records())
    figure = comparisons.heat("parts", members)
    ET.fromstring(figure.files["svg"])
    assert style.label(name) == " _$a_b$ <b>& \u5b57"
    assert drawing.named("Speed parts · kshot k=4 <b>/..") == "speed-parts-kshot-k-4-b"


def test_drawing_leaves_no_state_behind(simulate: Simulate) -> None:
    store = simulate(("bolt", "cap"), ("A",))
    before = dict(mpl.rcParams)
    comparisons.heat("parts", groups(store.records()))
    assert dict(mpl.rcParams) == before
    from matplotlib import pyplot as plt

    assert plt.get_fignums() == []


def test_the_same_records_give_the_same_bytes(simulate: Simulate) -> None:
    members = groups(simulate(("bolt", "cap"), ("A",)).records())
    first, second = (comparisons.heat("parts", members).files for _ in range(2))
    assert first == second


def test_methods_are_told_apart_without_colour() -> None:
    looks = style.looks([f"m{i}" for i in range(20)])
    assert len({look.marker for look in list(looks.values())[:10]}) == 10
    assert len({look.dash for look in list(looks.values())[:10]}) == 10
    assert len({(look.colour, look.marker) for look in looks.values()}) == 20


def test_of_many_categories_the_hardest_are_drawn_and_the_rest_is_told(simulate: Simulate) -> None:
    categories = [f"c{i:02}" for i in range(curves.PANELS + 2)]
    members = groups(simulate(categories, ("A",)).records())
    chosen, told = curves._hardest(members, categories)
    values = {category: members[0].records[category, 0].metrics["image_auroc"] for category in categories}
    assert len(chosen) == curves.PANELS
    assert max(values[category] for category in chosen) <= min(values[c] for c in categories if c not in chosen)
    assert "15 categories of lowest mean image AUROC, of 17" in told
    assert unique_names(members)


def test_a_figure_is_written_only_as_the_files_that_are_asked_for() -> None:
    with style.themed():
        canvas, _ = style.canvas(2, 2)
        drawn = style.files(canvas, "title", [])
    asked: list[str] = []
    save = canvas.savefig
    canvas.savefig = lambda *args, **more: (asked.append(more["format"]), save(*args, **more))  # type: ignore[method-assign]
    assert set(drawn) == {"png", "svg", "pdf"}
    assert drawn["svg"] == drawn["svg"]
    assert asked == ["svg"]
    assert b"/TrueType" in drawn["pdf"] or b"/CIDFontType2" in drawn["pdf"]
    assert b"/Type3" not in drawn["pdf"]  # publishers refuse such fonts
