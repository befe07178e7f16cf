"""The short report, the choice of records, the names of groups, and the comparison of two runs."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import BenchError
from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.summary import groups, select_records
from bench.store import Store

Simulate = Callable[..., Store]


def run(store: Store, *words: str) -> str:
    result = CliRunner().invoke(app.app, [words[0], "--runs", str(store.root), *words[1:]])
    if isinstance(result.exception, BenchError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.stdout


# ---- the short report


def test_the_printed_report_is_one_table_per_protocol_and_names_the_option_that_prints_more(simulate: Simulate) -> None:
    store = simulate(("bolt", "nut"), ("A", "B"))
    text = run(store, "report")
    assert text.count("| A ") == text.count("| B ") == 1
    assert "`bench report --full`" in text
    assert len(text.splitlines()) < 40
    full = run(store, "report", "--full")
    assert "By category" in full
    assert len(full.splitlines()) > 2 * len(text.splitlines())


def test_a_written_report_is_always_full(simulate: Simulate, tmp_path: Path) -> None:
    run(simulate(("bolt", "nut"), ("A", "B")), "report", "--out", str(tmp_path / "out"))
    assert "By category" in (tmp_path / "out" / "report.md").read_text("utf-8")


# ---- the choice of records


def test_a_report_shows_only_the_chosen_records(simulate: Simulate) -> None:
    store = simulate(("bolt", "nut"), ("A", "B"), (0, 1))
    records = list(store.records())
    assert len(records) == 8
    assert len(select_records(records, {"method": ["a"]})) == 4
    assert len(select_records(records, {"method": ["a", "b"], "category": ["nut"], "seed": ["1"]})) == 2
    assert len(select_records(records, {"method": []})) == 8
    text = run(store, "report", "--method", "a", "--category", "bolt")
    assert "| A " in text
    assert "| B " not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "c"), "'c' is not a method of these records. Known: a, b."),
        (("--category", "bolts"), "'bolts' is not a category of these records. Did you mean 'bolt'?"),
        (("--seed", "7"), "'7' is not a seed of these records."),
    ],
    ids=str,
)
def test_a_value_that_matches_no_record_is_rejected(simulate: Simulate, words: tuple[str, ...], message: str) -> None:
    assert message in run(simulate(("bolt",), ("A", "B")), "report", *words)


# ---- names of groups


def test_groups_of_one_title_are_named_by_the_values_in_which_they_differ(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), settings={"width": 1, "depth": 2}, group_hash="1")
    simulate(("bolt",), ("A",), settings={"width": 3, "depth": 2}, group_hash="2")
    assert list(groups_by_unique_name(groups(store.records()))) == ["A, width=1", "A, width=3"]


def test_groups_that_differ_in_the_content_of_files_only_are_numbered(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), file_hashes={"backbone": "1" * 64}, group_hash="1")
    simulate(("bolt",), ("A",), file_hashes={"backbone": "2" * 64}, group_hash="2")
    assert list(groups_by_unique_name(groups(store.records()))) == ["A, 1 of 2", "A, 2 of 2"]


# ---- the comparison of two runs


def test_a_comparison_shows_settings_differences_latency_and_images(simulate: Simulate) -> None:
    store = simulate(("bolt", "nut"), ("A", "B"))
    name = "/".join(next(store.root.rglob("*.json")).relative_to(store.root).parts[:2])
    text = run(store, "compare", f"{name}/a", f"{name}/b")
    assert text.startswith("# A and B\n")
    assert "| method " in text.split("## Metrics")[0]  # the only setting that differs
    assert "30 ms" in text.split("## Latency")[1]  # 10 times the effect size of A
    first, second = (
        {group.first.run.name: group for group in groups(store.records())}[key].mean_std("bolt", "image_auroc")
        for key in "ab"
    )
    row = next(line for line in text.splitlines() if line.startswith("| bolt ") and "image AUROC" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:5] == [
        f"{100 * first.mean:.1f}", f"{100 * second.mean:.1f}", f"{100 * (first.mean - second.mean):+.2f}"
    ]  # fmt: skip
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.split("disagree most")[1].splitlines()
    ]
    ranks = [(float(row[2]), float(row[3])) for row in rows if len(row) == 4 and row[2].isdigit()]
    assert len(ranks) == 10
    distances = [abs(a - b) for a, b in ranks]
    assert all(first >= second - 1 for first, second in pairwise(distances))  # printed rounded
    assert {0 <= rank <= 100 for pair in ranks for rank in pair} == {True}


def test_a_name_of_several_runs_needs_the_hash(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), settings={"width": 1}, group_hash="1" * 12)
    simulate(("bolt",), ("A",), settings={"width": 3}, group_hash="2" * 12)
    simulate(("bolt",), ("B",))
    name = "/".join(next(store.root.rglob("*.json")).relative_to(store.root).parts[:2])
    assert "names 2 runs; add the hash" in run(store, "compare", f"{name}/a", f"{name}/b")
    assert "| settings.width | 1" in run(store, "compare", f"{name}/a/{'1' * 12}", f"{name}/a/{'2' * 12}")
    assert "is not in the store. Known: " in run(store, "compare", f"{name}/a/{'1' * 12}", "x/y/z")
    assert "are the same" in run(store, "compare", f"{name}/b", f"{name}/b")


# ---- verification of a choice


def test_a_verification_lists_only_the_requested_published_rows(simulate: Simulate) -> None:
    store = simulate(("bottle", "cable"), ("PatchCore",), method="patchcore", dataset="mvtec", protocol="one-for-one")
    words = ["report", "--runs", str(store.root), "--table", "1", "--verify"]
    everything = CliRunner().invoke(app.app, words).stdout
    bottle = CliRunner().invoke(app.app, [*words, "--category", "bottle"]).stdout
    assert "| hazelnut " in everything  # was not run
    assert "| bottle " in bottle
    assert not {"cable", "hazelnut", "average"} & {line.split()[1] for line in bottle.splitlines() if line[:2] == "| "}


def test_other_images_of_the_same_names_have_no_interval_and_a_note(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",), data_fingerprints={"bolt": "1" * 12})
    simulate(("bolt",), ("B",), data_fingerprints={"bolt": "2" * 12}, group_hash="2" * 12)
    name = next(iter(groups(store.records()))).first.run.store_name.rpartition("/")[0]
    text = run(store, "compare", f"{name}/a", f"{name}/b")
    assert "Not comparable as a whole" in text
    row = next(line for line in text.splitlines() if line.startswith("| bolt ") and "image AUROC" in line)
    assert row.strip("|").split("|")[-1].strip() == "–"
    assert "They have no predictions of the same images." in text
