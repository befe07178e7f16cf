"""Figures of simulated records: which are drawn, that curves have the area of the metrics, and that text is escaped."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.evaluation.summary import groups
from bench.record import Record
from bench.report_format import Figure
from bench.reports.parts import (
    ablations,
    comparison_figures,
    curve_figures,
    picture_figures,
    prediction_data,
    style,
)
from bench.store import Store

Simulate = Callable[..., Store]
MakeRecord = Callable[..., Record]


def figures(store: Store) -> list[Figure]:
    return registry.report_content().draw_figures(list(store.records()), store, "")


# ---- which figures are drawn


@pytest.mark.slow
def test_every_figure_has_three_formats_and_sheets_are_photographs(simulate: Simulate) -> None:
    simulate(("bolt", "cap", "disc"), ("A", "B", "C"), (0, 1), protocol="kshot", k=2)
    simulate(("bolt", "cap", "disc"), ("A", "B", "C"), (0, 1), protocol="kshot", k=4)
    store = simulate(
        ("bolt", "cap", "disc"), ("A",), (0, 1), protocol="kshot", k=4, settings={"width": 9}, group_hash="w"
    )
    all_figures = figures(store)
    kinds = {figure.kind for figure in all_figures if figure.files}
    assert kinds == {"speed", "k", "heatmap", "ranks", "ablation", "epochs", "roc", "pro", "scores", "examples"}
    assert {figure.kind for figure in all_figures if not figure.files} == {"ablation"}  # of k = 2
    assert len({figure.name for figure in all_figures}) == len(all_figures)
    for figure in all_figures:
        if figure.kind == "examples":
            assert set(figure.files) == {"jpg"}
        elif figure.files:
            assert set(figure.files) == {"png", "svg", "pdf"}
            with Image.open(io.BytesIO(figure.files["png"])) as image:
                assert image.width > 400
            ET.fromstring(figure.files["svg"])
            assert figure.files["pdf"].startswith(b"%PDF")
    assert sum(figure.kind == "examples" for figure in all_figures) == 3 * 7


def test_a_figure_without_data_names_the_command_that_produces_them(tmp_path: Path, simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), protocol="kshot", k=4)
    (record,) = store.records()
    bare = Store(tmp_path / "bare")
    bare.save(replace(record, latency={}, losses=[], metrics_by_epoch=[], artifacts={}), None)
    by_kind = {figure.kind: figure for figure in figures(bare)}
    assert set(by_kind) == {"k", "speed", "heatmap", "ranks", "ablation", "epochs", "roc", "pro"}
    assert not any(figure.files for figure in by_kind.values())
    assert "`bench run --method a --dataset parts --k 1,2,4,8`" in by_kind["k"].caption
    assert "`bench run --dataset parts --method meanmap,patchcore,aminet`" in by_kind["ranks"].caption
    assert "--sweep a.width=VALUE,VALUE`" in by_kind["ablation"].caption
    assert all("`bench run" in figure.caption for figure in by_kind.values())


def test_a_rerun_command_has_each_option_once(make_record: MakeRecord) -> None:
    record = make_record(name="a", command="bench run --k 4 --time --method a --set x=1")
    assert style.rerun_command(record, "--k", "2,4,8") == "`bench run --time --method a --set x=1 --k 2,4,8`"
    assert style.rerun_command(record, "--time", "--force") == "`bench run --k 4 --method a --set x=1 --time --force`"
    assert style.rerun_command(replace(record, command="bench run --k=4"), "--k", "2") == "`bench run --k 2`"
    described = "`bench run --method a --dataset parts --protocol one-for-one --seed 0 --force`"
    assert style.rerun_command(replace(record, command="a 'b"), "--force") == described
    assert style.rerun_command(replace(record, command=""), "--force") == described


def test_an_ablation_needs_runs_that_differ_in_one_setting_only(simulate: Simulate) -> None:
    simulate(("bolt",), ("A",), settings={"width": 8, "depth": 1}, group_hash="1")
    simulate(("bolt",), ("A",), settings={"width": 4, "depth": 1}, group_hash="2")
    store = simulate(("bolt",), ("A",), settings={"width": 2, "depth": 3}, group_hash="3")
    simulate(("bolt",), ("A",), settings={"width": 16, "depth": 1}, calibrate=0.1, group_hash="4")
    assert ablations_of(list(store.records())) == {("A", "width"): [4, 8]}


def test_tables_and_figure_use_the_same_rule_for_ablations(simulate: Simulate) -> None:
    # The most frequent settings are width 8 and depth 1; a rule that compares with these finds two ablations of three.
    simulate(("bolt",), ("A",), settings={"width": 8, "depth": 1}, group_hash="1")
    simulate(("bolt",), ("A",), settings={"width": 8, "depth": 2}, group_hash="2")
    simulate(("bolt",), ("A",), settings={"width": 4, "depth": 1}, group_hash="3")
    store = simulate(("bolt",), ("A",), settings={"width": 4, "depth": 2}, group_hash="4")
    members = groups(store.records())
    titles = [table.title for table in ablations.ablation_tables(members)]
    assert titles == ["A, depth=1: width", "A, depth=2: width", "A, width=4: depth", "A, width=8: depth"]
    assert "Each panel varies one setting" in comparison_figures.ablation_figure("parts", members).caption


def test_runs_on_different_categories_are_not_an_ablation_in_tables_and_figure(simulate: Simulate) -> None:
    simulate(("bolt", "cap"), ("A",), settings={"width": 8}, group_hash="1")
    members = groups(simulate(("bolt",), ("A",), settings={"width": 4}, group_hash="2").records())
    assert ablations.ablation_tables(members) == []
    assert not comparison_figures.ablation_figure("parts", members).files


def test_runs_with_different_backbones_are_an_ablation_and_with_different_weights_are_not(
    make_record: MakeRecord,
) -> None:
    def run_of(backbone: str, **hashes: str) -> Record:
        return make_record(settings={"backbone": backbone, "width": 8}, file_hashes=hashes, group_hash=str(hashes))

    assert ablations_of([run_of("small", small="1"), run_of("large", large="2")]) == {
        ("Simulated", "backbone"): ["large", "small"]
    }
    assert ablations_of([run_of("small", small="1"), run_of("large", large="random")]) == {}
    assert ablations_of([run_of("small", small="1"), run_of("small", small="2")]) == {}


def test_an_ablation_of_oracle_epochs_has_oracle_in_its_title(make_record: MakeRecord) -> None:
    records = [
        make_record(settings={"width": width}, group_hash=f"{width}", selection=selection)
        for width in (4, 8)
        for selection in ("last", "oracle")
    ]
    assert ablations_of(records) == {("Simulated", "width"): [4, 8], ("Simulated (oracle)", "width"): [4, 8]}


def test_the_titles_of_a_grid_contain_the_fixed_values(make_record: MakeRecord) -> None:
    points = [{"width": width, "depth": depth} for width in (4, 8) for depth in (1, 2)]
    records = [make_record(settings=point, group_hash=f"{point}", title="A") for point in points]
    expected = {("A, width=4", "depth"), ("A, width=8", "depth"), ("A, depth=1", "width"), ("A, depth=2", "width")}
    assert set(ablations_of(records)) == expected
    assert set(ablations_of(records[:3])) == {("A", "depth"), ("A", "width")}


def ablations_of(records: list[Record]) -> dict[tuple[str, str], list[Any]]:
    """Return the values of each ablation by (title, setting)."""
    return {
        (ablation.title, ablation.setting): [value for value, _ in ablation.points]
        for ablation in ablations.find_ablations(groups(records))
    }


def test_the_pareto_front_contains_the_points_that_no_other_point_beats() -> None:
    points = [(10.0, 90.0), (20.0, 80.0), (5.0, 70.0), (30.0, 95.0), (10.0, 60.0)]
    assert comparison_figures.pareto_front(points) == [(5.0, 70.0), (10.0, 90.0), (30.0, 95.0)]


# ---- curves


def test_the_area_below_a_curve_is_the_metric(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A", "B", "C"))
    data = prediction_data.collect_figure_data(groups(store.records()), store)
    assert len(data) == 3
    for figure_data in data.values():
        assert figure_data.roc
        assert figure_data.pro
        rates, fractions = figure_data.roc
        assert np.trapezoid(fractions, rates) == pytest.approx(figure_data.record.metrics["image_auroc"], abs=1e-12)
        rates, fractions = figure_data.pro
        aupro = np.trapezoid(fractions, rates) / prediction_data.MAX_FPR
        assert aupro == pytest.approx(figure_data.record.metrics["aupro_30"], abs=2e-3)  # at 601 points


def test_figures_show_the_lowest_seed_and_the_last_epoch(simulate: Simulate) -> None:
    store = simulate(("bolt", "cap"), ("A",), (3, 1))
    (group,) = groups(store.records())
    assert [record.run.seed for record in prediction_data.first_seed_records(group)] == [1, 1]
    for record in list(store.records()):
        store.save(replace(record, selection="oracle", eval_every=5), store.predictions(record))
    assert {
        key[-1]: figure_data.record.selection
        for key, figure_data in prediction_data.collect_figure_data(groups(store.records()), store).items()
    } == {
        "bolt": "last",
        "cap": "last",
    }


def test_examples_have_the_rank_of_their_score_and_a_hundredth_of_normal_pixels_is_in_the_dotted_contour(
    simulate: Simulate,
) -> None:
    store = simulate(("bolt",), ("A",))
    (figure_data,) = prediction_data.collect_figure_data(groups(store.records()), store).values()
    by_name = {example.name: example for example in figure_data.examples}
    assert list(by_name) == ["best", "median", "worst", "good"]
    assert by_name["best"].score == figure_data.scores[figure_data.is_anomalous].max()
    assert by_name["worst"].rank == 1 + int((figure_data.scores > by_name["worst"].score).sum())
    assert by_name["good"].mask is not None
    assert not by_name["good"].mask.any()
    predictions = store.predictions(figure_data.record)
    assert predictions.maps is not None
    above = np.mean(predictions.maps[~predictions.masks] > figure_data.contour_threshold)
    assert above == pytest.approx(prediction_data.CONTOUR_FPR, abs=1e-3)


def test_the_star_marks_the_highest_sum_of_both_aurocs() -> None:
    points = [
        {"image_auroc": 0.9, "pixel_auroc": 0.5, "image_ap": 0.9},
        {"image_auroc": 0.7, "pixel_auroc": 0.8, "image_ap": 0.1},
        {"image_auroc": 0.8, "pixel_auroc": 0.7, "image_ap": 0.2},
    ]
    assert curve_figures.best_epoch_index(points) == 2  # 1.5 twice; the last has the higher AP


# ---- example sheets


def test_a_sheet_has_one_row_per_example_and_one_column_per_image(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",))
    members = groups(store.records())
    data = prediction_data.collect_figure_data(members, store)
    rows = list(picture_figures.example_rows(next(iter(data.values())), store, 48))
    assert [example.name for example, _ in rows] == ["best", "median", "worst", "good"]
    assert all(list(images) == ["image", "ground truth", "anomaly map", "overlay", "distance"] for _, images in rows)
    assert all(image.size == (48, 48) for _, images in rows for image in images.values())
    (sheet,) = picture_figures.example_sheets("parts · one-for-one", members, data, store)
    with Image.open(io.BytesIO(sheet.files["jpg"])) as image:
        assert image.height > 4 * picture_figures.IMAGE_SIZE


def test_a_missing_or_broken_image_is_omitted(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",))
    (record,) = store.records()
    pictures = store.pictures(record)
    pictures["best.image"].write_bytes(b"no image")
    pictures["good.distance"].unlink()
    (data,) = prediction_data.collect_figure_data(groups(store.records()), store).values()
    rows = {example.name: list(images) for example, images in picture_figures.example_rows(data, store, 48)}
    assert rows["best"] == ["ground truth", "anomaly map", "distance"]  # there is no image for the overlay
    assert rows["good"] == ["image", "ground truth", "anomaly map", "overlay"]


# ---- text and style


def test_the_caveats_are_inside_the_figure(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A", "B"))
    for record in list(store.records()):
        if record.run.title == "B":
            store.save(replace(record, selection="oracle", eval_every=5), store.predictions(record))
    notes = style.shared_and_other_caveats(groups(store.records()))
    assert notes == ["synthetic data", "B (oracle): oracle: epoch chosen on the test set"]
    with style.theme():
        canvas, _ = style.new_figure(3, 2)
        style.render_files(canvas, "title", notes)
        assert canvas.get_supxlabel() == "\n".join(notes)


def test_unusual_names_neither_break_a_figure_nor_disappear_from_its_legend(simulate: Simulate) -> None:
    name = "_$a_b$ <b>&\x01\u5b57"
    store = simulate((name, "cap"), (name,), name="a", method="a")
    members = groups(store.records())
    figure = comparison_figures.category_heatmap("parts", members)
    ET.fromstring(figure.files["svg"])
    assert style.label(name) == " _$a_b$ <b>& \u5b57"
    assert style.slug("Speed parts · kshot k=4 <b>/..") == "speed-parts-kshot-k-4-b"


def test_drawing_does_not_change_global_state(simulate: Simulate) -> None:
    store = simulate(("bolt", "cap"), ("A",))
    before = dict(mpl.rcParams)
    comparison_figures.category_heatmap("parts", groups(store.records()))
    assert dict(mpl.rcParams) == before
    from matplotlib import pyplot as plt

    assert plt.get_fignums() == []


def test_the_same_records_give_the_same_bytes(simulate: Simulate) -> None:
    members = groups(simulate(("bolt", "cap"), ("A",)).records())
    first, second = (comparison_figures.category_heatmap("parts", members).files for _ in range(2))
    assert first == second


def test_methods_are_distinguishable_without_color() -> None:
    styles = list(style.method_styles([f"m{i}" for i in range(20)]).values())
    assert len({method_style.marker for method_style in styles[:10]}) == 10
    assert len({method_style.dash for method_style in styles[:10]}) == 10
    assert len({(method_style.color, method_style.marker) for method_style in styles}) == 20


def test_of_many_categories_the_hardest_are_drawn(simulate: Simulate) -> None:
    categories = [f"c{i:02}" for i in range(curve_figures.MAX_PANELS + 2)]
    members = groups(simulate(categories, ("A",)).records())
    hardest, note = curve_figures.hardest_categories(members, categories)
    values = {category: members[0].records[category, 0].metrics["image_auroc"] for category in categories}
    assert len(hardest) == curve_figures.MAX_PANELS
    assert max(values[category] for category in hardest) <= min(values[c] for c in categories if c not in hardest)
    assert note == "The 15 of 17 categories with the lowest mean image AUROC."


def test_a_figure_is_rendered_only_in_the_formats_that_are_used() -> None:
    with style.theme():
        canvas, _ = style.new_figure(2, 2)
        all_figures = style.render_files(canvas, "title", [])
    formats: list[str] = []
    save = canvas.savefig
    canvas.savefig = lambda *args, **more: (formats.append(more["format"]), save(*args, **more))  # type: ignore[method-assign]
    assert set(all_figures) == {"png", "svg", "pdf"}
    assert all_figures["svg"] == all_figures["svg"]
    assert formats == ["svg"]
    assert b"/TrueType" in all_figures["pdf"] or b"/CIDFontType2" in all_figures["pdf"]
    assert b"/Type3" not in all_figures["pdf"]  # publishers do not accept such fonts


# ---- readable without the page


@pytest.mark.slow
def test_no_text_of_a_figure_with_long_names_is_cut(simulate: Simulate) -> None:
    methods = (
        "Masked autoencoder of industrial parts with a very long title",
        "B",
        "AMI-Net‡ (ours, wide, 600 epochs)",
    )
    categories = ("a_very_long_category_name_of_a_part", "bolt", "cap")
    for k in (2, 4):
        store = simulate(categories, methods, (0, 1), protocol="kshot", k=k, dataset="folder-camera-on-the-left-2026")
    rendered_figures = [figure for figure in figures(store) if isinstance(figure.files, style.RenderedFigure)]
    kinds = {figure.kind for figure in rendered_figures}
    assert kinds >= {"speed", "k", "heatmap", "ranks", "epochs", "roc", "pro", "scores"}
    for figure in rendered_figures:
        canvas = figure.files._canvas
        width, height = canvas.get_size_inches()
        box = canvas.get_tightbbox()  # of everything that is drawn
        assert min(box.x0, box.y0) > -0.03, (figure.kind, box)
        assert box.x1 < width + 0.03, (figure.kind, box)
        assert box.y1 < height + 0.03, (figure.kind, box)


def test_markers_at_0_and_100_percent_are_inside_the_axes_and_no_tick_is_beyond(tmp_path: Path) -> None:
    for values in ([0.0, 100.0], [98.0, 100.0], [100.0, 100.0], [0.0, 1.0]):
        with style.theme():
            _, (axes,) = style.new_figure(4, 3)
            axes.plot([0, 1], values, "o", ms=11)
            style.limit_to_percent(axes)
            low, high = axes.get_ylim()
            points = 72 * 3 * 0.7 / (high - low)  # points per percent; the axes have at least this height
            assert all(points * min(value - low, high - value) > 5.5 for value in values)
            assert all(0 <= tick <= 100 for tick in axes.get_yticks())


def test_error_bars_are_explained_inside_the_figure(simulate: Simulate) -> None:
    simulate(("bolt",), ("A",), (0, 1), protocol="kshot", k=2)
    store = simulate(("bolt",), ("A",), (0, 1), protocol="kshot", k=4)
    notes = {
        figure.kind: figure.files._canvas.get_supxlabel()
        for figure in figures(store)
        if isinstance(figure.files, style.RenderedFigure)
    }
    assert "Bars: standard deviation over seeds." in notes["speed"]
    assert "Bars: 95 % interval of the mean over draws" in notes["k"]


def test_dark_mode_replaces_the_colors_of_text_and_background_only(simulate: Simulate) -> None:
    store = simulate(("bolt", "cap"), ("A",))
    heatmap = next(figure for figure in figures(store) if figure.kind == "heatmap")
    svg = heatmap.files["svg"]
    dark = style.with_dark_mode(svg)
    ET.fromstring(dark)
    start, _, rest = dark.partition(b"<style>")
    rules, _, rest = rest.partition(b"</style>")
    assert start + rest == svg
    assert rules.startswith(b"@media (prefers-color-scheme: dark){")
    assert f'[style*="fill: {style.BLACK}"]'.encode() in rules
    assert f"fill: {style.BLACK}".encode() in svg  # the rule concerns something
    assert b'[style*="fill: #ffffff"]' in rules
    assert b'[id^="patch_"]' in rules  # white numbers on dark cells of a heat map remain white
    assert style.with_dark_mode(b"<svg/>") == b"<svg/>"


def test_a_histogram_states_the_reached_and_the_target_rate_with_their_decimals(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), calibrate=0.025)
    (data,) = prediction_data.collect_figure_data(groups(store.records()), store).values()
    metrics = {**data.record.metrics, "image_fpr": 0.125}
    record = replace(data.record, threshold=0.5, metrics=metrics, data_report={"good_scores": {"images": 8}})
    axes = mpl.figure.Figure().subplots()
    curve_figures._histogram_panel(axes, replace(data, record=record), 0.0, 0.0)
    assert "FPR 12.5 %, target 2.5 %" in [text.get_text() for text in axes.texts]
