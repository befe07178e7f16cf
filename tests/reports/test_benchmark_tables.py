"""Tables of benchmarks: calibrated thresholds, ranks among comparable methods only, and the leaderboard."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import registry
from bench.evaluation.group_names import by_benchmark, groups_by_unique_name
from bench.evaluation.summary import format_significant, groups
from bench.record import Record
from bench.report_format import Table
from bench.reports import html_ as html_report
from bench.reports.parts.benchmark_tables import (
    ReachedRate,
    calibration_table,
    calibration_warnings,
    leaderboard_table,
    overview_table,
    reached_rate,
)
from bench.store import Store

MakeRecord = Callable[..., Record]
Simulate = Callable[..., Store]


def calibrated(make_record: MakeRecord, n_above: int, n_good: int = 26, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "calibrate": 0.05,
        "threshold": 0.123456,
        "pixel_threshold": 2.0,
        "metrics": {"image_auroc": 0.9, "image_fpr": n_above / n_good, "image_recall": 0.75},
        "calibration_files": [f"{i}.png" for i in range(19)],
        "data_report": {"good_scores": {"images": n_good}},
    }
    return make_record(**(values | changes))


# ---- target and reached rate


def test_the_test_of_the_rate_is_the_exact_binomial_test() -> None:
    # two images, target 0.5: all outcomes are as likely as or less likely than one of one, so p = 1; none: 2 * 0.25
    assert ReachedRate(0.5, 1, 2, 0).p == pytest.approx(1.0)
    assert ReachedRate(0.5, 0, 2, 0).p == pytest.approx(0.5)
    # 5 of 26 at 5 %: the probability of 5 or more; the probability of none is larger than that of 5
    more = 1 - sum(
        float(np.prod([(26 - i) / (i + 1) for i in range(k)])) * 0.05**k * 0.95 ** (26 - k) for k in range(5)
    )
    assert ReachedRate(0.05, 5, 26, 19).p == pytest.approx(more)


def test_the_expected_rates_over_calibrations_are_those_of_simulated_scores() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((20_000, 19 + 26))
    thresholds = np.sort(scores[:, :19], axis=1)[:, 18]  # ceil(20 * 0.95) = 19th lowest
    rates = (scores[:, 19:] > thresholds[:, None]).mean(axis=1)
    low, high = np.quantile(rates, [0.025, 0.975], method="inverted_cdf")
    assert ReachedRate(0.05, 0, 26, 19).expected == pytest.approx((low, high), abs=1.01 / 26)
    assert ReachedRate(0.05, 0, 26, 0).expected is None


def test_target_and_reached_rates_are_side_by_side_and_warned_of(make_record: MakeRecord) -> None:
    records = [calibrated(make_record, 5), calibrated(make_record, 2, category="cap"), make_record(category="nut")]
    by_name = groups_by_unique_name(groups(records))
    (table,) = calibration_table(by_name)
    texts = [[cell.text for cell in row] for row in table.rows]
    name = "Simulated"
    assert texts[0][:8] == [name, "bolt", "0", "0.1235", "2", "5", "19.2 (5 of 26)", "0.009"]
    assert texts[1][6] == "7.7 (2 of 26)"
    assert len(texts) == 2
    (warning,) = calibration_warnings(by_name)
    assert warning == (
        f"Warning: {name} reached a false positive rate of 19.2 % (5 of 26) on bolt, seed 0, for a target of 5 %: more "
        "than chance allows (binomial test, p = 0.0085)."
    )


def test_a_rate_needs_a_threshold_and_good_test_images(make_record: MakeRecord) -> None:
    assert reached_rate(make_record()) is None
    assert reached_rate(calibrated(make_record, 0, data_report={})) is None
    assert reached_rate(calibrated(make_record, 1)) == ReachedRate(0.05, 1, 26, 19)


# ---- ranking


def marks(table: Table, column: int) -> list[str]:
    """Return "best", "second" or "" for each row."""
    runs = [row[column].runs[0] for row in table.rows]
    return ["best" if run.bold else "second" if run.underlined else "" for run in runs]


def test_only_comparable_methods_are_ranked_and_notes_name_the_method(make_record: MakeRecord) -> None:
    def record(title: str, auroc: float, **changes: Any) -> Record:
        key = f"{title}{len(changes)}"
        metrics = {"image_auroc": auroc}
        latency = {"median_ms": 1450.4 if title == "B" else 10.0}
        return make_record(title=title, name=title, group_hash=key, metrics=metrics, latency=latency, **changes)

    members = groups([record("A", 0.8), record("B", 0.9), record("A", 0.99, limit=20), record("C", 0.7)])
    table = overview_table(members)
    names = [row[0].text for row in table.rows]
    assert names == ["A, no limit", "B", "C", "A, limit 20"]
    assert marks(table, 1) == ["second", "best", "", ""]
    assert table.rules_after == {2, 3}
    assert [row[-1].text for row in table.rows] == ["10 ms", "1450 ms", "10 ms", "10 ms"]
    assert marks(table, 7) == ["best", "second", "best", ""]
    limited = table.rows[3][0]
    assert limited.notes == (
        f"{limited.text}: limited to 20 training, 20 good and 20 defective test images per category",
    )
    assert table.remarks[0] == "Synthetic data."
    assert "only methods with the same images, limit" in table.remarks[1]


def test_latencies_of_different_machines_are_not_ranked_together(make_record: MakeRecord) -> None:
    records = [
        make_record(title=title, name=title, group_hash=title, latency={"median_ms": time}, environment=environment)
        for title, time, environment in (
            ("A", 5.0, {"device": "cpu", "threads": 1}),
            ("B", 6.0, {"device": "cpu", "threads": 1}),
            ("C", 1.0, {"device": "cpu", "threads": 8}),
        )
    ]
    table = overview_table(groups(records))
    assert marks(table, 7) == ["best", "second", ""]
    assert any("same device" in remark for remark in table.remarks)


def test_numbers_have_no_exponent() -> None:
    numbers = {1453.2: "1450", 0.000123456: "0.000123", 12.345: "12.3", 0.0: "0", 1e-9: "1e-09", -2.5: "-2.5"}
    assert {value: format_significant(value) for value in numbers} == numbers


# ---- leaderboard


@pytest.fixture
def store(simulate: Simulate) -> Store:
    """A merged store: two methods on two protocols, one with an oracle."""
    simulate(["bolt", "plate"], ["Best", "Worse"], (0, 1))
    store = simulate(["bolt"], ["Best"], protocol="kshot", k=4)
    record = next(record for record in store.records() if record.run.protocol == "one-for-one")
    store.save(replace(record, selection="oracle", eval_every=5, artifacts={}), None)
    return store


def rows(store: Store) -> list[tuple[str, ...]]:
    members = [
        pair for benchmark in by_benchmark(groups(store.records())).values()
        for pair in groups_by_unique_name(benchmark).items()
    ]  # fmt: skip
    return [tuple(cell.text for cell in row) for row in leaderboard_table(members).rows]


def test_rows_are_sorted_within_dataset_protocol_and_selection(store: Store) -> None:
    assert [row[:3] for row in rows(store)] == [
        ("parts", "kshot k=4", "last"),
        ("parts", "one-for-one", "last"),
        ("parts", "one-for-one", "last"),
        ("parts", "one-for-one", "oracle"),
    ]
    one_for_one = [row for row in rows(store) if row[1:3] == ("one-for-one", "last")]
    assert [row[3] for row in one_for_one] == ["Best", "Worse"]  # the values are simulated to be in this order
    assert [row[4] for row in one_for_one] == ["0, 1", "0, 1"]


def test_the_command_names_records_of_its_row_only(store: Store) -> None:
    for row in rows(store):
        program, name, flag, target = shlex.split(row[-1])
        assert (program, name, flag) == ("bench", "run", "--reproduce")
        path = store.root.parent / target
        records = list(store.records(path))
        assert records
        assert {record.selection for record in records} == {row[2]}
        assert {record.run.title for record in records} == {row[3].partition(" ")[0]}
        assert {record.run.protocol for record in records} == {row[1].partition(" ")[0]}
    worse = next(row for row in rows(store) if row[3] == "Worse")
    assert worse[-1] == "bench run --reproduce runs/parts/one-for-one/worse"  # all four records


def test_a_command_of_a_stranger_is_not_in_a_row_and_names_are_quoted(simulate: Simulate) -> None:
    store = simulate(["a b; rm -rf ~"], ["Evil"])
    for record in list(store.records()):
        store.update(replace(record, command="bench run; rm -rf ~"))
    (row,) = rows(store)
    (*_, target) = shlex.split(row[-1])
    assert (store.root.parent / target).is_file()
    assert row[-1].endswith("/a b; rm -rf ~.json'")


@pytest.mark.slow
def test_the_filters_of_the_page_work(store: Store, browser: Any, tmp_path: Path) -> None:
    report = registry.report_content().results(list(store.records()), store, [], "")
    path = tmp_path / "report.html"
    path.write_text(html_report.render(report), "utf-8")
    browser.open(path)
    n_visible = "[...document.querySelectorAll('#leaderboard tbody tr')].filter(row => !row.hidden).length"
    assert browser.evaluate(n_visible) == 4
    browser.evaluate("document.querySelector('#leaderboard').open = true")
    for column, value, count in ((1, "kshot k=4", 1), (1, "", 4), (2, "oracle", 1), (2, "", 4), (3, "Worse", 1)):
        browser.evaluate(
            f"(() => {{ const select = document.querySelector('#leaderboard select[data-column=\"{column}\"]');"
            f"select.value = {value!r}; select.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        )
        assert browser.evaluate(n_visible) == count, (column, value)
    assert browser.errors == []
