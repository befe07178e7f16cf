"""The tables of the paper with measured values: what is published, differs, is missing, and can be verified."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.config.bench_toml import load_config
from bench.errors import BenchError
from bench.evaluation.summary import groups
from bench.record import Record
from bench.report_format import TableCell
from bench.reports.parts import ablations, paper_tables, published, published_comparison, tables
from bench.store import Store

MakeRecord = Callable[..., Record]
MakeRecords = Callable[..., list[Record]]
PATCHCORE = {"name": "patchcore", "method": "patchcore", "title": "PatchCore", "settings": {}, "epoch": 0}


@pytest.fixture
def record(make_record: MakeRecord) -> MakeRecord:
    """Return a function that builds a record of AMI-Net‡ on MVTec AD with these AUROCs in percent."""

    def build(category: str, image: float, pixel: float, seed: int = 0, **changes: Any) -> Record:
        method = {"name": "aminet_jitter", "method": "aminet", "title": "AMI-Net‡", "settings": {"jitter": True}}
        values = {"dataset": "mvtec", "synthetic": False, "epoch": 300, "preprocessing": {}, "environment": {}}
        values |= {"metrics": {"image_auroc": image / 100, "pixel_auroc": pixel / 100}, "seed": seed}
        values |= {"category": category, "data_hash": category, "started": "", "command": ""}
        values |= {"eval_every": 10} if changes.get("selection") == "oracle" else {}
        return make_record(**(method | values | changes))

    return build


@pytest.fixture
def published_records(record: MakeRecord) -> Callable[..., list[Record]]:
    """Return a function that builds records with the published values of Table I minus an offset in points."""

    def build(offset: float = 0.0, **changes: Any) -> list[Record]:
        name = published.published_name(record("bottle", 0, 0, **changes).run)
        return [
            record(
                category, float(published_value["image"]) - offset, float(published_value["pixel"]) - offset, **changes
            )
            for (method, _, category), published_value in published.printed_values(published.TABLES["1"].file).items()
            if method == name and category not in published.AVERAGES
        ]

    return build


def save_records(folder: Path, records: list[Record]) -> Store:
    store = Store(folder)
    for record in records:
        store.save(record, None)
    return store


def run_report(*words: str, store: Store) -> tuple[int, str]:
    """Return the exit code and the output of `bench report` on this store; 2 and the message of a BenchError."""
    result = CliRunner().invoke(app.app, ["report", "--runs", str(store.root), *words])
    if isinstance(result.exception, BenchError):
        return 2, str(result.exception)
    return result.exit_code, result.stdout


def render(name: str, records: list[Record], store: Store) -> str:
    return str(registry.load("reports", name).render(registry.report_content().results(records, store, [], "")))


def first_table(number: str, records: list[Record]) -> dict[str, dict[str, list[TableCell]]]:
    """Return the cells of a published table with measured values, by row and column title, in column order."""
    table = published_comparison.compare_with_published(published.TABLES[number], groups(records)).blocks[0]
    cells: dict[str, dict[str, list[TableCell]]] = {}
    for row in table.rows:
        for title, cell in zip(table.header, row, strict=True):
            cells.setdefault(row[0].text, {}).setdefault(title.text, []).append(cell)
    return cells


# ---- published values


@pytest.mark.parametrize(
    "row", published.published_rows("average_checks.csv"), ids=lambda row: f"{row['table']}-{row['method']}"
)
def test_each_printed_average_relates_to_its_rows_as_the_check_states(row: dict[str, str]) -> None:
    file = next(table.file for table in published.TABLES.values() if table.number == row["table"])
    values = published.printed_values(file)
    published_value = values[row["method"], 0, row["average"]][row["level"]]
    row_values = [
        values[row["method"], 0, name][row["level"]] for name in published.averaged_categories(row["average"], file)
    ]
    assert published_value == row["printed"]
    if not all(row_values):
        assert row["status"] == "rows_missing"
        return
    mean = sum(map(float, row_values)) / len(row_values)
    assert f"{mean:.3f}" == row["mean_of_printed_rows"]
    if not published_value:
        assert row["status"] == "printed_missing"
        return
    difference = abs(float(published_value) - mean)
    assert row["status"] == ("ok" if difference < 0.0501 else "rounding_0.1" if difference < 0.1 else "MISMATCH")


def test_seven_of_129_printed_averages_disagree_with_their_rows() -> None:
    result = [row["status"] for row in published.published_rows("average_checks.csv")]
    assert result.count("ok") == 122
    assert [row["method"] for row in published.published_rows("average_checks.csv") if row["status"] == "MISMATCH"] == [
        "AE-SSIM", "RIAD", "RIAD", "DFR", "FastFlow",
    ]  # fmt: skip
    assert result.count("rounding_0.1") == 2


def test_each_table_has_a_campaign_that_runs_its_methods() -> None:
    campaigns = load_config().tables["campaign"]
    for table in published.TABLES.values():
        campaign = campaigns[table.campaign]
        assert (campaign["dataset"], campaign["protocol"]) == (table.dataset, table.protocol)
        assert tuple(campaign["method"]) == table.methods
        assert tuple(campaign.get("k", [0])) == table.ks


def test_the_errata_of_the_published_tables_are_notes_and_not_corrected() -> None:
    result = first_table("1", [])
    (carpet,) = result["carpet"]["RIAD"]
    assert carpet.text == "84.2/94.2"
    assert "96.3" in carpet.notes[0]
    (average,) = result["average of all"]["RIAD"]
    assert average.text == "91.7/94.2"
    assert "93.85" in average.notes[0]
    (image,) = result["tile"]["AE-SSIM"]
    assert "not AUROCs" in image.notes[0]
    (missing,) = result["object average"]["AMI-Net‡"]
    assert missing.text == "–/–"
    assert "98.62" in missing.notes[0]
    assert "90.97" in first_table("2", [])["average of all"]["FastFlow"][0].notes[0]


# ---- measured values


def test_published_values_last_epochs_and_oracle_epochs_are_ranked_separately(published_records: MakeRecords) -> None:
    both = [*published_records(5), *published_records(1, selection="oracle"), *published_records(3, **PATCHCORE)]
    result = first_table("1", both)["bottle"]
    published_value, last, oracle = result["AMI-Net‡"]
    assert [run.text for run in last.runs] == ["95.0", "93.8"]
    assert [(run.bold, run.underlined) for run in published_value.runs] == [(True, False), (False, True)]
    assert [(run.bold, run.underlined) for run in last.runs] == [(False, True), (False, True)]
    assert not any(run.bold or run.underlined for run in oracle.runs)  # the only one of its kind
    assert result["PatchCore"][1].runs[0].bold
    assert oracle.notes == ("oracle: epoch chosen on the test set",)


def test_values_that_are_printed_alike_have_one_rank() -> None:
    cells = tables.rank_cells([TableCell.from_text(text) for text in ("99.0 ± 0.1", "98", "99.00", "–", "97")])
    assert [(e.runs[0].bold, e.runs[0].underlined) for e in cells] == [
        (True, False), (False, True), (True, False), (False, False), (False, False),
    ]  # fmt: skip
    fast = tables.rank_cells([TableCell.from_text(text) for text in ("12 ms", "3 ms")], lowest=True)
    assert [cell.runs[0].bold for cell in fast] == [False, True]


def test_an_average_needs_all_its_categories(record: MakeRecord) -> None:
    textures = published.averaged_categories("average_texture", published.TABLES["1"].file)
    assert textures == ("carpet", "grid", "leather", "tile", "wood")
    result = first_table("1", [record(name, 90 + i, 80) for i, name in enumerate(textures)])
    assert result["texture average"]["AMI-Net‡"][1].text == "92.0/80.0"
    average = result["average of all"]["AMI-Net‡"][1]
    assert average.text == "–/–"
    assert average.notes == ("10 of 15 categories did not run",)
    assert result["bottle"]["AMI-Net‡"][1].text == "missing"


def test_a_failure_and_a_reduced_run_are_marked_in_the_cell(record: MakeRecord) -> None:
    failed = record("tile", 0, 0, failure="CUDA out of memory\nmore", metrics={}, profile_note="demo: reduced")
    result = first_table("1", [record("wood", 90, 80, profile_note="demo: reduced"), failed])
    tile, wood = (result[name]["AMI-Net‡"][1] for name in ("tile", "wood"))
    assert tile.text == "failed"
    assert tile.notes == ("demo: reduced", "failed in tile, seed 0: CUDA out of memory")
    assert wood.notes == ("demo: reduced",)


def test_seeds_give_a_standard_deviation_and_missing_ones_a_note(record: MakeRecord) -> None:
    result = first_table("1", [record("wood", 90, 80), record("wood", 92, 80, 1), record("tile", 90, 80)])
    assert result["wood"]["AMI-Net‡"][1].text == "91.0 ± 1.4 / 80.0 ± 0.0"
    assert result["tile"]["AMI-Net‡"][1].notes == ("1 of 2 seeds",)


def test_missing_runs_have_a_command(record: MakeRecord, published_records: MakeRecords) -> None:
    records = [record for record in published_records(selection="oracle") if record.category != "screw"]
    records += published_records(**PATCHCORE)
    table = replace(published.TABLES["1"], methods=("aminet", "aminet_jitter", "patchcore"))
    assert published_comparison.missing_commands(table, groups(records)) == [
        "bench run table1 --method aminet",
        "bench run table1 --method aminet_jitter --category screw",
    ]
    assert published_comparison.missing_commands(published.TABLES["2"], []) == ["bench run table2"]
    last = [record("bottle", 90, 90, protocol="kshot", k=2, epoch=300)]
    table = replace(published.TABLES["4"], methods=("aminet", "aminet_jitter"))
    commands = published_comparison.missing_commands(table, groups(last))
    assert commands[0] == "bench run table4 --method aminet"
    assert commands[1].startswith("bench run table4 --method aminet_jitter --k 2 --category carpet,grid,")
    assert commands[2:] == [
        "bench run table4 --method aminet_jitter --k 4,8",
        "bench run table4 --method aminet_jitter --selection both",
    ]


def test_a_sweep_is_not_a_column_of_a_published_table(record: MakeRecord, published_records: MakeRecords) -> None:
    swept_record = record(
        "bottle", 50, 50, settings={"jitter": True, "clusters": 2}, sweep_keys=["clusters"], group_hash="w"
    )
    assert len(first_table("1", [*published_records(), swept_record])["bottle"]["AMI-Net‡"]) == 2


def test_another_dataset_has_the_same_table(tmp_path: Path, record: MakeRecord) -> None:
    store = save_records(tmp_path, [record(name, 90, 80, dataset="parts") for name in ("bolt", "nut")])
    text = render("markdown", list(store.records()), store)
    assert "**By category: measured, last epoch**" in text
    assert "| average of all | 90.0/80.0 |" in text


# ---- verification


def checks_of(records: list[Record], number: str = "1") -> list[published_comparison.Check]:
    columns = paper_tables.method_columns(groups(records))
    table = published.TABLES[number]
    return list(published_comparison.published_checks(table, paper_tables.published_table_rows(table), columns))


def test_the_tolerance_is_half_a_point_for_a_category_and_a_tenth_for_the_mean(published_records: MakeRecords) -> None:
    result = {(check.category, check.metric): check for check in checks_of(published_records(0.2, selection="oracle"))}
    bottle, average = result["bottle", "image_auroc"], result["average of all", "image_auroc"]
    assert (bottle.expected, bottle.measured, bottle.difference, bottle.tolerance) == (100.0, 99.8, -0.2, 0.5)
    assert bottle.agrees is True
    assert (average.expected, average.measured, average.tolerance, average.agrees) == (99.0, 98.8, 0.1, False)
    assert result["texture average", "image_auroc"].tolerance == 0.17  # 0.1 sqrt(15 / 5)


def test_the_last_epoch_is_not_verified_if_the_paper_chose_the_epoch_on_the_test_set(
    published_records: MakeRecords,
) -> None:
    result = checks_of(published_records())
    assert {check.agrees for check in result} == {None}
    assert "chooses the epoch on the test set" in result[0].reason


@pytest.mark.parametrize(
    "changed", [{"profile_note": "demo"}, {"limit": 3}, {"synthetic": True}, {"file_hashes": {"net": "random"}}]
)
def test_reduced_runs_are_not_verified(changed: dict[str, object], published_records: MakeRecords) -> None:
    assert {check.agrees for check in checks_of(published_records(selection="oracle", **changed))} == {None}


def test_the_image_column_of_ae_ssim_is_not_an_auroc(published_records: MakeRecords) -> None:
    ae_ssim = {"name": "ae_ssim", "method": "autoencoder", "title": "AE-SSIM", "settings": {"loss": "ssim"}}
    result = checks_of(published_records(**ae_ssim))
    assert {check.reason for check in result if check.metric == "image_auroc"} == {
        "the published value is not an AUROC"
    }


def test_released_checkpoints_are_compared_with_their_readme(tmp_path: Path, record: MakeRecord) -> None:
    readme = [row for row in published.published_rows(published.RELEASED) if not row["category"].startswith("average")]
    records = []
    for row in readme:
        released = record(
            row["category"], float(row["image_auroc"]), float(row["pixel_auroc"]), file_hashes={"checkpoint": "f"}
        )
        levels = {"image_ap": float(row["image_ap"]) / 100, "pixel_ap": float(row["pixel_ap"]) / 100 - 0.01}
        records.append(replace(released, metrics=released.metrics | levels))
    result = list(published_comparison.released_checks(groups(records)))
    assert [check.agrees for check in result if check.metric != "pixel_ap"] == [True] * 3 * 16
    assert [check.agrees for check in result if check.metric == "pixel_ap"] == [False] * 16  # a point too low
    assert {check.agrees for check in checks_of(records)} == {None}  # Table I is another run
    code, text = run_report("--table", "1", store=save_records(tmp_path, records))
    assert code == 0
    assert "**Released checkpoints, values of their README: AMI-Net‡**" in text
    assert "released checkpoint, not trained here" in text


def test_the_exit_code_of_verify_states_whether_all_values_agree(
    tmp_path: Path, record: MakeRecord, published_records: MakeRecords
) -> None:
    near = save_records(tmp_path / "near", [*published_records(0.1, selection="oracle"), *published_records()])
    code, text = run_report("--verify", store=near)
    assert code == 0
    assert (
        "Result of 68 rows: agrees: 34, differs: 0, not verified: 34." in text
    )  # 15 categories and 2 averages, 2 levels
    far = save_records(tmp_path / "far", published_records(0.9, selection="oracle"))
    code, text = run_report("--verify", "--table", "1", store=far)
    assert code == 1
    assert "| bottle          | image AUROC | 100.0    | 99.1     | -0.9       | ±0.5      | **differs** |" in text
    nothing = save_records(tmp_path / "none", [record("bolt", 90, 90, dataset="parts")])
    code, text = run_report("--verify", store=nothing)
    assert code == 2
    assert "Nothing could be verified: no record belongs to a published table" in text
    assert "There are no published values for parts · one-for-one." in text


def test_verify_prints_the_checks_as_json(tmp_path: Path, record: MakeRecord, published_records: MakeRecords) -> None:
    far = save_records(tmp_path / "far", published_records(0.9, selection="oracle"))
    code, text = run_report("--verify", "--table", "1", "--json", store=far)
    assert code == 1
    result = json.loads(text)
    assert result["agrees"] is False
    (bottle,) = (
        check
        for check in result["checks"]
        if (check["category"], check["metric"]) == ("bottle", "image_auroc") and check["agrees"] is not None
    )
    assert bottle["expected_percent"] == 100.0
    assert bottle["measured_percent"] == 99.1
    assert bottle["difference_points"] == -0.9
    assert bottle["tolerance_points"] == 0.5
    assert bottle["agrees"] is False
    nothing = save_records(tmp_path / "none", [record("bolt", 90, 90, dataset="parts")])
    code, text = run_report("--verify", "--json", store=nothing)
    assert (code, json.loads(text)) == (2, {"agrees": None, "checks": []})


def test_verify_against_an_earlier_csv_finds_the_changed_record(tmp_path: Path, record: MakeRecord) -> None:
    before = save_records(tmp_path / "before", [record("bolt", 90, 80), record("nut", 70, 80), record("cap", 60, 80)])
    code, _ = run_report("--format", "csv", "--out", str(tmp_path), store=before)
    assert code == 0
    previous = ("--verify", "--against", str(tmp_path / "report.csv"))
    assert run_report(*previous, store=before)[0] == 0
    now = save_records(tmp_path / "now", [record("bolt", 90.4, 80), record("nut", 70.6, 80)])
    code, text = run_report(*previous, store=now)
    assert code == 1
    assert "Result of 6 rows: agrees: 3, differs: 1, not verified: 2." in text
    assert "no such run" in text


def test_verify_rejects_files_that_are_not_an_earlier_report(tmp_path: Path, record: MakeRecord) -> None:
    store = save_records(tmp_path / "runs", [record("bolt", 90, 80)])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", "utf-8")
    assert "lacks dataset, protocol" in run_report("--verify", "--against", str(tmp_path / "other.csv"), store=store)[1]
    assert "cannot be read" in run_report("--verify", "--against", str(tmp_path / "none.csv"), store=store)[1]
    previous = render("csv", list(store.records()), store)
    (tmp_path / "comma.csv").write_text(previous.replace(",0.9,", ',"0,9",'), "utf-8")
    code, text = run_report("--verify", "--against", str(tmp_path / "comma.csv"), store=store)
    assert (code, "has '0,9' as metrics.image_auroc" in text) == (2, True)
    assert "Add --verify" in run_report("--against", "x.csv", store=store)[1]
    assert "Use one of them" in run_report("--verify", "--audit", store=store)[1]


# ---- formats


def test_several_formats_are_written_at_once_and_named_after_the_table(
    tmp_path: Path, published_records: MakeRecords
) -> None:
    store = save_records(tmp_path / "runs", published_records())
    code, _ = run_report("--table", "1", "--format", "markdown,latex,csv", "--out", str(tmp_path / "out"), store=store)
    assert code == 0
    assert {"table1.md", "table1.tex", "table1.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "Add --out DIR" in run_report("--format", "markdown,csv", store=store)[1]
    assert "--table must be one of 1, 2, 3, 4, fig8, fig9" in run_report("--table", "5", store=store)[1]


def test_the_csv_contains_every_record_with_the_columns_of_the_frame(tmp_path: Path, record: MakeRecord) -> None:
    formula = record("=cmd|' /C calc'!A0", 90, 80, title='a,b\n"c"', losses=[0.5, 0.25])
    store = save_records(tmp_path, [record("bolt", 90, 80)])
    text = render("csv", [*store.records(), formula], store)
    first, second = csv.DictReader(io.StringIO(text))
    assert float(first["metrics.image_auroc"]) == 0.9
    assert second["category"] == "'=cmd|' /C calc'!A0"
    assert second["title"] == 'a,b\n"c"'
    assert second["losses"] == "[0.5, 0.25]"
    frame = store.to_frame()
    assert set(frame.columns) - set(first) <= {name for name in frame if isinstance(frame[name][0], dict)}


def test_figure_8_compares_times_on_one_machine_only(tmp_path: Path, published_records: MakeRecords) -> None:
    records = [
        *published_records(latency={"median_ms": 10.0}, environment={"device": "H100", "cuda": "13"}),
        *published_records(**PATCHCORE, latency={"median_ms": 25.0}, environment={"device": "H100", "cuda": "13"}),
        *published_records(
            name="slow", title="Slow", latency={"median_ms": 50.0}, environment={"device": "CPU", "threads": 1}
        ),
    ]
    code, text = run_report("--table", "fig8", store=save_records(tmp_path, records))
    assert code == 0
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "measured" in line]
    assert [(row[0], row[3]) for row in cells] == [("AMI-Net‡", "1.0"), ("PatchCore", "2.5"), ("Slow", "–")]
    assert "49.14 ms" in text


def test_figure_8_names_failed_categories_and_counts_missing_ones(
    tmp_path: Path, published_records: MakeRecords
) -> None:
    *records, last = published_records()
    failed = replace(last, metrics={}, failure="it fell")
    assert f"failed in {last.category}, seed 0: it fell" in run_report(
        "--table", "fig8", store=save_records(tmp_path / "1", [*records, failed])
    )[1].replace("\\", "")
    text = run_report("--table", "fig8", store=save_records(tmp_path / "2", records))[1]
    assert "1 of 15 categories did not run" in text


def test_figure_9_has_a_table_per_setting_that_differs_alone(tmp_path: Path, record: MakeRecord) -> None:
    records = [
        record("bottle", 80 + n, 80, settings={"jitter": True, "clusters": n, "patch": patch}, group_hash=f"{n}{patch}")
        for n, patch in ((2, 4), (8, 4), (10, 4), (8, 2), (10, 2))
    ]
    code, text = run_report("--table", "fig9", store=save_records(tmp_path, records))
    assert code == 0
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("**"):
            title = line.strip("*")
        elif re.match(r"\| \d", line):
            values.setdefault(title, []).append(line.split("|")[1].strip())
    assert values == {
        "AMI-Net‡, patch=2: clusters": ["8", "10"],
        "AMI-Net‡, patch=4: clusters": ["2", "8", "10"],
        "AMI-Net‡, clusters=10: patch": ["2", "4"],
        "AMI-Net‡, clusters=8: patch": ["2", "4"],
    }


@pytest.mark.parametrize(
    "option",
    [{"calibrate": 0.1}, {"limit": 5}, {"precision": "bfloat16"}, {"resolution": "original"}, {"compile": True}],
)
def test_runs_that_differ_in_an_option_only_are_not_an_ablation(option: dict[str, object], record: MakeRecord) -> None:
    records = [record("bottle", 90, 80, group_hash="1"), record("bottle", 80, 80, group_hash="2", **option)]
    assert ablations.ablation_tables(groups(records)) == []


def test_published_columns_that_were_selected_on_the_test_set_are_marked(published_records) -> None:
    records = published_records(name="patchcore", method="patchcore", title="PatchCore")
    table = published_comparison.compare_with_published(published.TABLES["2"], groups(records)).blocks[0]
    notes = {cell.text: cell.notes for cell in table.header}
    assert notes["CFA"] == (published.SELECTED_ON_TEST_SET["CFA"],)
    assert notes["SPADE"] == ()
    printed = {method for each in published.TABLES.values() for method, _, _ in published.printed_values(each.file)}
    assert published.SELECTED_ON_TEST_SET.keys() <= printed
