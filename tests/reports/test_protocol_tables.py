"""Tables and figures over several protocols: k-shot over k, unified against one-for-one, and Fig. 8 of other data."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.evaluation.summary import Group, groups
from bench.identity import run_hash
from bench.record import Record
from bench.report_format import Report, Table
from bench.reports.parts import comparison_figures, few_shot, style, unified_drop
from bench.store import Store

Save = Callable[..., Record]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def save(store: Store, make_record: Callable[..., Record]) -> Save:
    """Return a function that stores a record with these AUROCs in percent; the pixel AUROC is 5 points lower.

    The group hash is that of a real run: a unified group's contains the hash of the images.
    """

    def build(title: str, category: str, percent: float, **changes: Any) -> Record:
        values = {"category": category, "title": title, "name": title.lower(), "method": title.lower()}
        values |= {"metrics": {"image_auroc": percent / 100, "pixel_auroc": percent / 100 - 0.05}}
        record = make_record(**(values | {"test_files": [f"{category}/test/good/000.png"]} | changes))
        data_hash = "images" if record.run.protocol == "unified" else ""
        run = replace(record.run, group_hash=run_hash(record.run, data_hash))
        return store.save(replace(record, run=run, data_hash=data_hash or category), None)

    return build


def members(store: Store) -> list[Group]:
    return groups(store.records())


def cells(table: Table | None, column_group: str) -> dict[str, dict[str, str]]:
    """Return the texts of one column group by row and column, with the best in ** and the second best in _."""
    assert table is not None
    start = 1
    for name, count in table.column_groups:
        if name == column_group:
            break
        start += count
    columns = range(start, start + count)
    return {row[0].text: {table.header[i].text: _marked(row[i]) for i in columns} for row in table.rows}


def _marked(cell: Any) -> str:
    (run,) = cell.runs
    return f"**{run.text}**" if run.bold else f"_{run.text}_" if run.underlined else run.text


def notes(table: Table | None, name: str) -> list[str]:
    assert table is not None
    return [note for row in table.rows if row[0].text == name for cell in row for note in cell.notes]


def build_report(store: Store, table: str = "") -> Report:
    return registry.report_content().results(list(store.records()), store, [], table)


# ---- k-shot


@pytest.fixture
def few_shot_store(store: Store, save: Save) -> Store:
    """Records of A for k = 1 and 2, of B for k = 1, each with two draws of two categories; A, k = 2 lacks one."""
    values = {
        ("A", 1, 0): (70, 90),  # mean 80
        ("A", 1, 1): (72, 90),  # mean 81
        ("A", 2, 0): (80, 100),  # mean 90
        ("A", 2, 1): (85, None),  # incomplete
        ("B", 1, 0): (60, 60),
        ("B", 1, 1): (60, 60),
        ("B", 2, 0): (99, None),
    }
    for (title, k, seed), percents in values.items():
        for category, percent in zip(("bolt", "plate"), percents, strict=True):
            if percent is not None:
                save(title, category, percent, protocol="kshot", k=k, seed=seed)
    return store


def test_the_table_over_k_has_complete_means_with_the_interval_over_draws(few_shot_store: Store) -> None:
    table = few_shot.few_shot_table(members(few_shot_store))
    # draws 80 and 81: mean 80.5, deviation 1/sqrt(2); t(1) 12.706 * (1/sqrt(2)) / sqrt(2) = 6.353
    assert cells(table, "image AUROC") == {
        "A": {"k = 1": "**80.5 [74.1, 86.9]**", "k = 2": "90.0"},
        "B": {"k = 1": "_60.0 [60.0, 60.0]_", "k = 2": "–"},
    }
    assert cells(table, "pixel AUROC")["A"] == {"k = 1": "**75.5 [69.1, 81.9]**", "k = 2": "85.0"}
    assert notes(table, "A")[:2] == ["n = 1 (seed 0)", "1 of 2 draws are incomplete and not part of the mean"]
    assert notes(table, "B")[0] == "B, k = 2: 1 of 2 categories did not run"
    assert table is not None
    assert "Mean over 2 categories: bolt, plate." in table.remarks
    assert any("n = 2 (seeds 0, 1) unless a note states others" in remark for remark in table.remarks)


def test_one_k_alone_has_no_table_and_no_figure_over_k(store: Store, save: Save) -> None:
    save("A", "bolt", 80, protocol="kshot", k=4)
    assert few_shot.few_shot_table(members(store)) is None
    assert not few_shot.few_shot_figure("parts", members(store), style.method_styles(["A"])).files
    assert "## parts · kshot k=4" in overview(store)


def overview(store: Store) -> str:
    content = registry.report_content()
    return str(registry.load("reports", "markdown").render(content.overview(list(store.records()))))


def test_the_printed_report_has_one_table_over_k_instead_of_one_per_k(few_shot_store: Store) -> None:
    text = overview(few_shot_store)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["parts · k-shot"]
    assert "| A      | **80.5 [74.1, 86.9]** | 90.0 ᵃᵇ |" in text


@pytest.mark.parametrize("change", [{"limit": 5}, {"selection": "oracle", "eval_every": 5}, {"calibrate": 0.1}])
def test_only_comparable_methods_are_ranked_over_k(store: Store, save: Save, change: dict[str, Any]) -> None:
    for k in (1, 2):
        save("A", "bolt", 90, protocol="kshot", k=k)
        save("B", "bolt", 80, protocol="kshot", k=k, **change)
    by_row = cells(few_shot.few_shot_table(members(store)), "image AUROC")
    assert [texts["k = 1"] for texts in by_row.values()] == ["90.0", "80.0"]


def test_methods_with_other_draws_or_categories_are_not_ranked_together(store: Store, save: Save) -> None:
    for k in (1, 2):
        save("A", "bolt", 90, protocol="kshot", k=k)
        save("B", "bolt", 80, protocol="kshot", k=k, seed=1)
        for category in ("bolt", "plate"):
            save("C", category, 70, protocol="kshot", k=k)
    table = few_shot.few_shot_table(members(store))
    assert [texts["k = 2"] for texts in cells(table, "image AUROC").values()] == ["90.0", "80.0", "70.0"]
    assert "B: mean over 1 category: bolt" in notes(table, "B")
    assert "C: mean over 2 categories: bolt, plate" in notes(table, "C")


@pytest.mark.parametrize("count", [2, few_shot.MAX_LINES + 1])
def test_few_methods_are_lines_over_k_and_many_are_rows_with_a_panel_per_k(
    store: Store, save: Save, count: int
) -> None:
    titles = [f"M{index:02}" for index in range(count)]
    for index, title in enumerate(titles):
        for k in (1, 2, 4):
            for seed in (0, 1):
                save(title, "bolt", 50 + index + k + seed, protocol="kshot", k=k, seed=seed)
    figure = few_shot.few_shot_figure("parts", members(store), style.method_styles(titles))
    assert isinstance(figure.files, style.RenderedFigure)
    panels = figure.files._canvas.axes
    if count == 2:
        assert [axes.get_title(loc="left") for axes in panels] == ["image AUROC", "pixel AUROC"]
        assert [text.get_text() for text in panels[0].get_xticklabels()] == ["1", "2", "4"]
    else:
        assert [axes.get_title(loc="left") for axes in panels] == ["k = 1", "k = 2", "k = 4"]
        assert [text.get_text() for text in panels[0].get_yticklabels()] == titles  # the best at the top
    assert "n = 2." in figure.files._canvas.get_supxlabel()


# ---- unified against one-for-one


@pytest.fixture
def unified_store(store: Store, save: Save) -> Store:
    values = {
        ("one-for-one", 0): (90, 80),  # mean 85
        ("one-for-one", 1): (92, 84),  # mean 88
        ("unified", 0): (85, 75),  # mean 80, drop 5
        ("unified", 1): (80, 82),  # mean 81, drop 7
    }
    for (protocol, seed), percents in values.items():
        for category, percent in zip(("bolt", "plate"), percents, strict=True):
            save("A", category, percent, protocol=protocol, seed=seed)
            save("B", category, percent - 10, protocol=protocol, seed=seed)
    return store


def drop_table(store: Store) -> Table:
    table = unified_drop.unified_drop_blocks(members(store))[0]
    assert isinstance(table, Table)
    return table


def test_the_drop_is_one_for_one_minus_unified_over_the_same_seeds(unified_store: Store) -> None:
    table = drop_table(unified_store)
    # drops of 5 and 7 points: mean 6, deviation sqrt(2); t(1) 12.706 * sqrt(2) / sqrt(2) = 12.7
    assert cells(table, "image AUROC") == {
        "A": {"one per category": "**86.5 ± 2.1**", "one for all": "**80.5 ± 0.7**", "drop": "+6.0 [-6.7, +18.7]"},
        "B": {"one per category": "_76.5 ± 2.1_", "one for all": "_70.5 ± 0.7_", "drop": "+6.0 [-6.7, +18.7]"},
    }
    assert cells(table, "pixel AUROC")["A"]["one for all"] == "**75.5 ± 0.7**"
    assert any("positive means that one model for all is worse" in remark for remark in table.remarks)


def test_a_drop_needs_both_protocols_of_a_seed(store: Store, save: Save) -> None:
    for category in ("bolt", "plate"):
        save("A", category, 90, seed=0)
        save("A", category, 50, seed=1)
        save("A", category, 92, protocol="unified", seed=0)
        save("A", category, 10, protocol="unified", seed=2)
    assert cells(drop_table(store), "image AUROC") == {
        "A": {"one per category": "90.0", "one for all": "92.0", "drop": "-2.0"}
    }


def test_an_incomplete_seed_has_no_drop(store: Store, save: Save) -> None:
    for category in ("bolt", "plate"):
        save("A", category, 90)
    save("A", "bolt", 80, protocol="unified")
    save("A", "plate", 0, protocol="unified", metrics={}, failure="it fell")
    table = drop_table(store)
    assert cells(table, "image AUROC") == {"A": {"one per category": "–", "one for all": "–", "drop": "–"}}
    assert notes(table, "A")[0] == ("A: no seed has all categories in both protocols; missing or failed: plate, seed 0")
    assert not unified_drop.unified_drop_figure("parts", members(store)).files


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": {"width": 9}}, "its settings, weights or options differ between the protocols"),
        ({"limit": 5}, "its settings, weights or options differ between the protocols"),
        ({"seed": 7}, "the protocols have no seed in common"),
        ({"test_files": ["other.png"]}, "the images of bolt differ between the protocols"),
        ({"title": "C"}, "there are no models per category"),
    ],
)
def test_runs_that_differ_in_more_than_the_protocol_are_not_compared(
    unified_store: Store, save: Save, change: dict[str, Any], reason: str
) -> None:
    save("D", "bolt", 90)
    title = change.get("title", "D")
    save(title, "bolt", 80, **({"protocol": "unified"} | {name: change[name] for name in change if name != "title"}))
    table, text = unified_drop.unified_drop_blocks(members(unified_store))
    assert isinstance(table, Table)
    assert list(cells(table, "image AUROC")) == ["A", "B"]
    assert text == f"Not in this table: {title}, because {reason}."


def test_a_category_with_settings_of_its_own_is_named(store: Store, save: Save) -> None:
    first = save("A", "bolt", 90, settings={"width": 8})
    second = save("A", "plate", 80, settings={"width": 9})
    store.save(replace(second, run=replace(second.run, group_hash=first.run.group_hash)), None)
    for category in ("bolt", "plate"):
        save("A", category, 70, protocol="unified", settings={"width": 8})
    assert "A: the model of plate has other values of width" in notes(drop_table(store), "A")


def test_every_format_contains_both_tables_and_figures(unified_store: Store, few_shot_store: Store, save: Save) -> None:
    assert unified_store is few_shot_store
    content = registry.report_content()
    records = list(unified_store.records())
    figures = content.draw_figures(records, unified_store, "")
    assert {"k", "unified"} <= {figure.kind for figure in figures if figure.files}
    report = content.results(records, unified_store, figures, "")
    for name, minus in (("markdown", "-6.7"), ("latex", r"\ensuremath{-}6.7"), ("html", "-6.7")):
        text = str(registry.load("reports", name).render(report))
        assert "80.5 [74.1, 86.9]" in text
        assert f"+6.0 [{minus}, +18.7]" in text
    text = str(registry.load("reports", "markdown").render(content.figures_only(records, figures, "")))
    assert "(figures/k-parts.png)" in text
    assert "(figures/unified-parts.png)" in text


# ---- Fig. 8


def test_figure_8_of_another_dataset_is_marked_as_such(store: Store, save: Save) -> None:
    for title, method, latency in (("AMI-Net", "aminet", 10.0), ("PatchCore", "patchcore", 25.0)):
        settings = {"jitter": False} if method == "aminet" else {}
        common = {"name": method, "method": method, "settings": settings, "latency": {"median_ms": latency}}
        save(title, "bolt", 90, profile="demo", protocol="kshot", k=4, **common)
    save("Fast", "bolt", 90)  # one-for-one, but without a latency
    (section,) = build_report(store, "fig8").sections
    assert section.title == "Fig. 8: speed against image AUROC, parts · kshot k=4 instead of MVTec AD"
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert [[cell.text for cell in row] for row in table.rows[2:]] == [
        ["AMI-Net", "measured, parts · kshot k=4", "10 ms", "1.0", "90.0"],
        ["PatchCore", "measured, parts · kshot k=4", "25 ms", "2.5", "90.0"],
    ]
    assert [row[1].text for row in table.rows[:2]] == ["published", "published"]
    assert "synthetic images of parts · kshot k=4, profile demo" in table.remarks[0]
    assert "comparable with the published values" in table.remarks[0]
    drawn = registry.report_content().draw_figures(list(store.records()), store, "fig8")
    (speed,) = (figure for figure in drawn if figure.kind == "speed")
    assert isinstance(speed.files, style.RenderedFigure)
    assert comparison_figures.PUBLISHED_OTHER_DATA in speed.files._canvas.get_supxlabel().replace("\n", " ")


def test_records_of_mvtec_ad_are_preferred_in_figure_8(store: Store, save: Save) -> None:
    save("A", "bolt", 90, protocol="kshot", k=4, latency={"median_ms": 1.0})
    save("B", "bottle", 90, dataset="mvtec", synthetic=False)
    (section,) = build_report(store, "fig8").sections
    assert section.title == "Fig. 8: speed against image AUROC, MVTec AD"
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert [row[0].text for row in table.rows[2:]] == ["B"]


def test_a_figure_is_as_high_as_its_legend(store: Store, save: Save) -> None:
    titles = [f"M{index:02}" for index in range(30)]
    for index, title in enumerate(titles):
        save(title, "bolt", 50 + index, latency={"median_ms": 1.0 + index})
    figure = comparison_figures.speed_figure("parts · one-for-one", members(store), style.method_styles(titles))
    assert isinstance(figure.files, style.RenderedFigure)
    canvas = figure.files._canvas
    (box,) = canvas.legends
    notes_top = max(text.get_window_extent().y1 for text in canvas.texts if text.get_text() == canvas.get_supxlabel())
    assert box.get_window_extent().y0 >= notes_top
    assert box.get_window_extent().y1 <= canvas.bbox.y1
