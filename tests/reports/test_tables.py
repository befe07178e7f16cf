"""The papers' tables beside ours: what is published, what differs, what is missing, what can be verified."""

import csv
import io
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.config.bench_toml import load_config
from bench.errors import BenchError
from bench.evaluation.summary import groups
from bench.record import Record, Run
from bench.store import Store

papers, columns, beside, checks, tables, ablation = (
    import_module(f"bench.reports.parts.{name}")
    for name in ("papers", "columns", "beside", "checks", "tables", "ablation")
)

RUN = Run(
    dataset="mvtec",
    synthetic=False,
    protocol="one-for-one",
    k=0,
    seed=0,
    limit=0,
    name="aminet_jitter",
    method="aminet",
    title="AMI-Net‡",
    settings={"jitter": True},
    preprocessing={},
    precision="float32",
    file_hashes={},
    profile="code",
    profile_note="",
    group_hash="v",
)
PATCHCORE = {"name": "patchcore", "method": "patchcore", "title": "PatchCore", "settings": {}, "epoch": 0}


def record(category: str, image: float, pixel: float, seed: int = 0, **changed: object) -> Record:
    """A record with these AUROCs in percent; further arguments are fields of the run or of the record."""
    mine = {key: changed.pop(key) for key in list(changed) if key in Record.__dataclass_fields__}
    if mine.get("selection") == "oracle":
        mine["every"] = 10
    metrics = {"image_auroc": image / 100, "pixel_auroc": pixel / 100}
    made = {"metrics": metrics, "epoch": 300, **mine}
    return Record(run=replace(RUN, seed=seed, **changed), category=category, data_digest=category, **made)


def whole(moved: float = 0.0, **changed: object) -> list[Record]:
    """Table I's own values of AMI-Net‡, as if measured here, all of them moved by so many points."""
    name = papers.published_name(replace(RUN, **{k: v for k, v in changed.items() if k in Run.__dataclass_fields__}))
    return [
        record(category, float(printed["image"]) - moved, float(printed["pixel"]) - moved, **changed)
        for (method, _, category), printed in papers.values(papers.TABLES["1"].file).items()
        if method == name and category not in papers.AVERAGES
    ]


def saved(folder: Path, records: list[Record]) -> Store:
    store = Store(folder)
    for each in records:
        store.save(each, None)
    return store


def told(*words: str, store: Store) -> tuple[int, str]:
    """The exit code and the output of `bench report` on that store; a BenchError's words and 2."""
    done = CliRunner().invoke(app.app, ["report", "--runs", str(store.root), *words])
    if isinstance(done.exception, BenchError):
        return 2, str(done.exception)
    return done.exit_code, done.stdout


def first_table(number: str, records: list[Record]) -> dict[str, dict[str, list[tables.Entry]]]:
    """The paper's table with ours beside it: entries by row and by head, in the order of the columns."""
    table = beside.beside(papers.TABLES[number], groups(records)).blocks[0]
    found: dict[str, dict[str, list[tables.Entry]]] = {}
    for row in table.rows:
        for head, entry in zip(table.head, row, strict=True):
            found.setdefault(row[0].text, {}).setdefault(head.text, []).append(entry)
    return found


# ---- what is published


@pytest.mark.parametrize("row", papers.rows("average_checks.csv"), ids=lambda row: f"{row['table']}-{row['method']}")
def test_each_printed_average_stands_to_its_own_rows_as_the_audit_says(row: dict[str, str]) -> None:
    file = next(paper.file for paper in papers.TABLES.values() if paper.number == row["table"])
    values = papers.values(file)
    printed = values[row["method"], 0, row["average"]][row["level"]]
    own = [values[row["method"], 0, name][row["level"]] for name in papers.members(row["average"], file)]
    assert printed == row["printed"]
    if not all(own):
        assert row["status"] == "rows_missing"
        return
    mean = sum(map(float, own)) / len(own)
    assert f"{mean:.3f}" == row["mean_of_printed_rows"]
    if not printed:
        assert row["status"] == "printed_missing"
        return
    off = abs(float(printed) - mean)
    assert row["status"] == ("ok" if off < 0.0501 else "rounding_0.1" if off < 0.1 else "MISMATCH")


def test_seven_of_129_printed_averages_disagree_with_their_rows() -> None:
    found = [row["status"] for row in papers.rows("average_checks.csv")]
    assert found.count("ok") == 122
    assert [row["method"] for row in papers.rows("average_checks.csv") if row["status"] == "MISMATCH"] == [
        "AE-SSIM", "RIAD", "RIAD", "DFR", "FastFlow",
    ]  # fmt: skip
    assert found.count("rounding_0.1") == 2


def test_the_four_tables_are_the_one_that_holds_them_all() -> None:
    own = [row for paper in papers.TABLES.values() for row in papers.rows(paper.file)]
    assert sorted(map(str, own)) == sorted(map(str, papers.rows("ami_net_tables_all.csv")))


def test_each_table_has_a_campaign_that_runs_what_it_shows() -> None:
    known = load_config().tables["campaign"]
    for paper in papers.TABLES.values():
        campaign = known[paper.campaign]
        assert (campaign["dataset"], campaign["protocol"]) == (paper.dataset, paper.protocol)
        assert tuple(campaign["method"]) == paper.methods
        assert tuple(campaign.get("k", [0])) == paper.ks


def test_the_slips_of_the_published_tables_are_told_and_not_mended() -> None:
    found = first_table("1", [])
    (carpet,) = found["carpet"]["RIAD"]
    assert carpet.text == "84.2/94.2"
    assert "96.3" in carpet.notes[0]
    (average,) = found["average of all"]["RIAD"]
    assert average.text == "91.7/94.2"
    assert "93.85" in average.notes[0]
    (image,) = found["tile"]["AE-SSIM"]
    assert "no AUROC" in image.notes[0]
    (lost,) = found["object average"]["AMI-Net‡"]
    assert lost.text == "–/–"
    assert "98.62" in lost.notes[0]
    assert "90.97" in first_table("2", [])["average of all"]["FastFlow"][0].notes[0]


# ---- ours beside it


def test_the_paper_and_ours_are_ranked_apart_and_last_and_oracle_too() -> None:
    both = [*whole(5), *whole(1, selection="oracle"), *whole(3, **PATCHCORE)]
    found = first_table("1", both)["bottle"]
    published, last, oracle = found["AMI-Net‡"]
    assert [piece.text for piece in last.pieces] == ["95.0", "93.8"]
    assert [(piece.bold, piece.underlined) for piece in published.pieces] == [(True, False), (False, True)]
    assert [(piece.bold, piece.underlined) for piece in last.pieces] == [(False, True), (False, True)]
    assert not any(piece.bold or piece.underlined for piece in oracle.pieces)  # alone among its like
    assert found["PatchCore"][1].pieces[0].bold
    assert oracle.notes == ("oracle: epoch chosen on the test set",)


def test_equal_as_printed_is_equal_in_rank() -> None:
    entries = tables.ranked([tables.Entry.of(text) for text in ("99.0 ± 0.1", "98", "99.00", "–", "97")])
    assert [(e.pieces[0].bold, e.pieces[0].underlined) for e in entries] == [
        (True, False), (False, True), (True, False), (False, False), (False, False),
    ]  # fmt: skip
    fast = tables.ranked([tables.Entry.of(text) for text in ("12 ms", "3 ms")], lowest=True)
    assert [entry.pieces[0].bold for entry in fast] == [False, True]


def test_an_average_is_of_all_its_categories_or_not_at_all() -> None:
    textures = papers.members("average_texture", papers.TABLES["1"].file)
    assert textures == ("carpet", "grid", "leather", "tile", "wood")
    found = first_table("1", [record(name, 90 + i, 80) for i, name in enumerate(textures)])
    assert found["texture average"]["AMI-Net‡"][1].text == "92.0/80.0"
    average = found["average of all"]["AMI-Net‡"][1]
    assert average.text == "–/–"
    assert average.notes == ("10 of 15 categories are not done",)
    assert found["bottle"]["AMI-Net‡"][1].text == "missing"


def test_a_failure_and_a_reduced_run_are_marked_in_the_cell() -> None:
    failed = record("tile", 0, 0, failure="CUDA out of memory\nmore", metrics={}, note="demo: reduced")
    found = first_table("1", [record("wood", 90, 80, note="demo: reduced"), failed])
    tile, wood = (found[name]["AMI-Net‡"][1] for name in ("tile", "wood"))
    assert tile.text == "failed"
    assert tile.notes == ("demo: reduced", "failed in tile, seed 0: CUDA out of memory")
    assert wood.notes == ("demo: reduced",)


def test_seeds_give_a_spread_and_fewer_of_them_a_note() -> None:
    found = first_table("1", [record("wood", 90, 80), record("wood", 92, 80, 1), record("tile", 90, 80)])
    assert found["wood"]["AMI-Net‡"][1].text == "91.0 ± 1.4 / 80.0 ± 0.0"
    assert found["tile"]["AMI-Net‡"][1].notes == ("1 of 2 seeds",)


def test_what_is_missing_comes_with_the_command_that_fills_it() -> None:
    own = [each for each in whole(selection="oracle") if each.category != "screw"] + whole(**PATCHCORE)
    assert beside.missing(papers.TABLES["1"], groups(own)) == [
        "bench run table1 --method aminet",
        "bench run table1 --method aminet_jitter --category screw",
    ]
    assert beside.missing(papers.TABLES["2"], []) == ["bench run table2"]
    last = [record("bottle", 90, 90, protocol="kshot", k=2, epoch=300)]
    commands = beside.missing(papers.TABLES["4"], groups(last))
    assert commands[0] == "bench run table4 --method aminet"
    assert commands[1].startswith("bench run table4 --method aminet_jitter --k 2 --category carpet,grid,")
    assert commands[2:] == [
        "bench run table4 --method aminet_jitter --k 4,8",
        "bench run table4 --method aminet_jitter --selection both",
    ]


def test_a_sweep_is_no_column_of_a_papers_table() -> None:
    swept = record("bottle", 50, 50, settings={"jitter": True, "clusters": 2}, swept=["clusters"], variant="w")
    assert len(first_table("1", [*whole(), swept])["bottle"]["AMI-Net‡"]) == 2


def test_another_data_set_has_the_same_form(tmp_path: Path) -> None:
    store = saved(tmp_path, [record(name, 90, 80, dataset="parts") for name in ("bolt", "nut")])
    text = registry.load("reports", "markdown").render(list(store.records()), store)
    assert "**By category: measured here, last epoch**" in text
    assert "| average of all | 90.0/80.0 |" in text


# ---- verification


def judged(records: list[Record], number: str = "1") -> list[checks.Check]:
    return list(checks.published_checks(papers.TABLES[number], columns.columns(groups(records))))


def test_within_half_a_point_a_category_agrees_and_within_a_tenth_the_mean() -> None:
    found = {(each.category, each.metric): each for each in judged(whole(0.2, selection="oracle"))}
    bottle, average = found["bottle", "image_auroc"], found["average of all", "image_auroc"]
    assert (bottle.expected, bottle.found, bottle.difference, bottle.tolerance) == (100.0, 99.8, -0.2, 0.5)
    assert bottle.agrees is True
    assert (average.expected, average.found, average.tolerance, average.agrees) == (99.0, 98.8, 0.1, False)
    assert found["texture average", "image_auroc"].tolerance == 0.17  # 0.1 sqrt(15 / 5)


def test_the_last_epoch_of_a_method_that_chose_on_the_test_set_is_not_verified() -> None:
    found = judged(whole())
    assert {each.agrees for each in found} == {None}
    assert "chooses the epoch on the test set" in found[0].why


@pytest.mark.parametrize(
    "changed", [{"profile_note": "demo"}, {"limit": 3}, {"synthetic": True}, {"file_hashes": {"net": "random"}}]
)
def test_reduced_runs_verify_nothing(changed: dict[str, object]) -> None:
    assert {each.agrees for each in judged(whole(selection="oracle", **changed))} == {None}


def test_the_image_column_of_ae_ssim_is_no_auroc_to_verify() -> None:
    own = {"name": "ae_ssim", "method": "autoencoder", "title": "AE-SSIM", "settings": {"loss": "ssim"}}
    found = judged(whole(**own))
    assert {each.why for each in found if each.metric == "image_auroc"} == {"the published value is no AUROC"}


def test_released_weights_are_held_against_what_their_readme_tells(tmp_path: Path) -> None:
    readme = [row for row in papers.rows(papers.RELEASED) if not row["category"].startswith("average")]
    made = []
    for row in readme:
        own = record(row["category"], float(row["image_auroc"]), float(row["pixel_auroc"]), inputs={"checkpoint": "f"})
        levels = {"image_ap": float(row["image_ap"]) / 100, "pixel_ap": float(row["pixel_ap"]) / 100 - 0.01}
        made.append(replace(own, metrics=own.metrics | levels))
    found = list(checks.released_checks(groups(made)))
    assert [each.agrees for each in found if each.metric != "pixel_ap"] == [True] * 3 * 16
    assert [each.agrees for each in found if each.metric == "pixel_ap"] == [False] * 16  # a point too low
    assert {each.agrees for each in judged(made)} == {None}  # Table I is another run
    code, text = told("--table", "1", store=saved(tmp_path, made))
    assert code == 0
    assert "**Released weights, as their README tells: AMI-Net‡**" in text
    assert "released checkpoint, not trained here" in text


def test_verify_tells_by_its_exit_code_whether_all_agrees(tmp_path: Path) -> None:
    near = saved(tmp_path / "near", [*whole(0.1, selection="oracle"), *whole()])
    code, text = told("--verify", store=near)
    assert code == 0
    assert "Of 68 rows: agrees: 34, differs: 0, not verified: 34." in text  # 15 categories and 2 averages, 2 levels
    far = saved(tmp_path / "far", whole(0.9, selection="oracle"))
    code, text = told("--verify", "--table", "1", store=far)
    assert code == 1
    assert "| bottle          | image AUROC | 100.0    | 99.1  | -0.9       | ±0.5      | **differs** |" in text
    nothing = saved(tmp_path / "none", [record("bolt", 90, 90, dataset="parts")])
    code, text = told("--verify", store=nothing)
    assert code == 2
    assert "Nothing could be verified: no record here is of a method and table" in text
    assert "Nothing is published of parts · one-for-one." in text


def test_verify_against_an_earlier_csv_finds_the_record_that_moved(tmp_path: Path) -> None:
    before = saved(tmp_path / "before", [record("bolt", 90, 80), record("nut", 70, 80), record("cap", 60, 80)])
    code, _ = told("--format", "csv", "--out", str(tmp_path), store=before)
    assert code == 0
    earlier = ("--verify", "--against", str(tmp_path / "report.csv"))
    assert told(*earlier, store=before)[0] == 0
    now = saved(tmp_path / "now", [record("bolt", 90.4, 80), record("nut", 70.6, 80)])
    code, text = told(*earlier, store=now)
    assert code == 1
    assert "Of 6 rows: agrees: 3, differs: 1, not verified: 2." in text
    assert "no such run here" in text


def test_verify_refuses_what_is_no_earlier_report(tmp_path: Path) -> None:
    store = saved(tmp_path / "runs", [record("bolt", 90, 80)])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", "utf-8")
    assert "lacks dataset, protocol" in told("--verify", "--against", str(tmp_path / "other.csv"), store=store)[1]
    assert "can't be read" in told("--verify", "--against", str(tmp_path / "none.csv"), store=store)[1]
    earlier = registry.load("reports", "csv").render(list(store.records()), store)
    (tmp_path / "comma.csv").write_text(earlier.replace(",0.9,", ',"0,9",'), "utf-8")
    code, text = told("--verify", "--against", str(tmp_path / "comma.csv"), store=store)
    assert (code, "has '0,9' as metrics.image_auroc" in text) == (2, True)
    assert "Add it" in told("--against", "x.csv", store=store)[1]
    assert "Give one of them" in told("--verify", "--audit", store=store)[1]


# ---- formats


def test_several_formats_are_written_at_once_and_named_after_the_table(tmp_path: Path) -> None:
    store = saved(tmp_path / "runs", whole())
    code, _ = told("--table", "1", "--format", "markdown,latex,csv", "--out", str(tmp_path / "out"), store=store)
    assert code == 0
    assert {"table1.md", "table1.tex", "table1.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "Add --out DIR" in told("--format", "markdown,csv", store=store)[1]
    assert "--table takes 1, 2, 3, 4, fig8 or fig9" in told("--table", "5", store=store)[1]


def test_the_csv_holds_every_record_flat_and_is_what_the_frame_holds(tmp_path: Path) -> None:
    nasty = record("=cmd|' /C calc'!A0", 90, 80, title='a,b\n"c"', losses=[0.5, 0.25])
    store = saved(tmp_path, [record("bolt", 90, 80)])
    text = registry.load("reports", "csv").render([*store.records(), nasty], store)
    first, second = csv.DictReader(io.StringIO(text))
    assert float(first["metrics.image_auroc"]) == 0.9
    assert second["category"] == "'=cmd|' /C calc'!A0"
    assert second["title"] == 'a,b\n"c"'
    assert second["losses"] == "[0.5, 0.25]"
    frame = store.to_frame()
    assert set(frame.columns) - set(first) <= {name for name in frame if isinstance(frame[name][0], dict)}


def test_figure_8_sets_times_in_proportion_on_one_machine_only(tmp_path: Path) -> None:
    made = [
        *whole(latency={"median_ms": 10.0}, machine={"device": "H100", "cuda": "13"}),
        *whole(**PATCHCORE, latency={"median_ms": 25.0}, machine={"device": "H100", "cuda": "13"}),
        *whole(name="slow", title="Slow", latency={"median_ms": 50.0}, machine={"device": "CPU", "threads": 1}),
    ]
    code, text = told("--table", "fig8", store=saved(tmp_path, made))
    assert code == 0
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "measured" in line]
    assert [(row[0], row[3]) for row in cells] == [("AMI-Net‡", "1.0"), ("PatchCore", "2.5"), ("Slow", "–")]
    assert "49.14 ms" in text


def test_figure_8_says_which_category_failed_and_how_many_are_not_done(tmp_path: Path) -> None:
    *made, last = whole()
    failed = replace(last, metrics={}, failure="it fell")
    assert f"failed in {last.category}, seed 0: it fell" in told(
        "--table", "fig8", store=saved(tmp_path / "1", [*made, failed])
    )[1].replace("\\", "")
    text = told("--table", "fig8", store=saved(tmp_path / "2", made))[1]
    assert "1 of 15 categories are not done" in text


def test_figure_9_tables_what_differs_in_one_setting(tmp_path: Path) -> None:
    made = [
        record("bottle", 80 + n, 80, settings={"jitter": True, "clusters": n, "patch": patch}, variant=f"{n}{patch}")
        for n, patch in ((2, 4), (8, 4), (10, 4), (8, 2), (10, 2))
    ]
    code, text = told("--table", "fig9", store=saved(tmp_path, made))
    assert code == 0
    assert [line.split("|")[1].strip() for line in text.splitlines() if re.match(r"\| \d", line)] == [
        "2", "8", "10", "2", "4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [{"calibrate": 0.1}, {"limit": 5}, {"precision": "bfloat16"}, {"resolution": "original"}, {"compile": True}],
)
def test_runs_that_differ_in_no_setting_are_no_ablation(other: dict[str, object]) -> None:
    made = [record("bottle", 90, 80, variant="1"), record("bottle", 80, 80, variant="2", **other)]
    assert ablation.ablations(groups(made)) == []
