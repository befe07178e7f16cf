"""Summaries: a cell is a mean over seeds, a mean over categories is taken a seed first, and nothing is mixed."""

from dataclasses import replace

import pytest

from bench.evaluation.summary import (
    CALIBRATED,
    LATENCY,
    MEAN,
    METRICS,
    Cell,
    Group,
    groups,
    heading,
    latency_device,
    milliseconds,
    missing_reasons,
    percent,
    table_metrics,
    table_notes,
)
from bench.record import Record, Run

RUN = Run(
    dataset="real",
    synthetic=False,
    protocol="one-for-one",
    k=0,
    seed=0,
    limit=0,
    name="memory",
    method="memory",
    title="Memory",
    settings={},
    preprocessing={},
    precision="float32",
    file_hashes={},
    profile="code",
    profile_note="",
    group_hash="v1",
)


def record(category: str, seed: int = 0, image_auroc: float | None = None, **changed: object) -> Record:
    metrics = {} if image_auroc is None else {"image_auroc": image_auroc}
    made = {name: changed.pop(name) for name in list(changed) if name in Record.__dataclass_fields__}
    return Record(
        run=replace(RUN, seed=seed, **changed), category=category, data_digest=category, metrics=metrics, **made
    )


def only(records: list[Record]) -> Group:
    (group,) = groups(records)
    return group


# ---- cells


def test_a_cell_is_the_mean_over_seeds_with_a_spread_by_n_minus_1() -> None:
    group = only([record("bolt", 0, 0.5), record("bolt", 1, 0.75), record("bolt", 2, 1.0)])
    assert group.cell("bolt", "image_auroc") == Cell(0.75, 0.25, 3)


def test_one_seed_has_no_spread() -> None:
    assert only([record("bolt", 0, 0.5)]).cell("bolt", "image_auroc") == Cell(0.5, None, 1)


def test_the_mean_is_taken_over_categories_a_seed_first_then_over_seeds() -> None:
    group = only(
        [record("bolt", 0, 0.5), record("tile", 0, 1.0), record("bolt", 1, 0.25), record("tile", 1, 0.25)],
    )
    # a seed's means are 0.75 and 0.25; their standard deviation is 0.5 / sqrt(2)
    assert group.cell(MEAN, "image_auroc") == Cell(0.5, pytest.approx(0.5 / 2**0.5), 2)


def test_a_seed_that_lacks_a_category_is_left_out_of_the_mean_but_not_of_its_categories() -> None:
    group = only([record("bolt", 0, 0.5), record("tile", 0, 1.0), record("bolt", 1, 0.0)])
    assert group.cell(MEAN, "image_auroc") == Cell(0.75, None, 1)
    assert group.cell("bolt", "image_auroc") == Cell(0.25, pytest.approx(0.5 / 2**0.5), 2)


def test_a_seed_in_which_a_category_lacks_the_metric_is_left_out_of_its_mean() -> None:
    group = only([record("bolt", 0, 0.5), record("tile", 0)])
    assert group.cell(MEAN, "image_auroc") is None
    assert group.cell("tile", "image_auroc") is None
    assert group.cell("bolt", "image_auroc") == Cell(0.5, None, 1)


def test_a_category_that_failed_is_listed_and_leaves_no_mean_over_the_others() -> None:
    group = only([record("bolt", 0, 0.5), record("tile", 0, failure="it broke")])
    assert group.categories == ["bolt", "tile"]
    assert [each.category for each in group.failed] == ["tile"]
    assert group.cell("tile", "image_auroc") is None
    assert group.cell(MEAN, "image_auroc") is None


def test_a_group_of_failures_only_can_still_be_named() -> None:
    group = only([record("tile", 0, failure="it broke")])
    assert heading(group) == "Memory · real · one-for-one"
    assert group.cell(MEAN, LATENCY) is None
    assert latency_device(group)


def test_latency_is_a_cell_like_any_other() -> None:
    group = only([record("bolt", latency={"median_ms": 2.0}), record("tile", latency={"median_ms": 4.0})])
    assert group.cell(MEAN, LATENCY) == Cell(3.0, None, 1)


# ---- groups


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": "other"},
        {"protocol": "unified"},
        {"k": 4},
        {"name": "alias"},
        {"title": "Other"},
        {"group_hash": "v2"},
        {"selection": "oracle"},
    ],
    ids=str,
)
def test_what_differs_is_never_averaged(changed: dict[str, object]) -> None:
    found = groups([record("bolt", 0, 0.5), record("bolt", 1, 1.0, **changed)])
    assert sorted(group.cell("bolt", "image_auroc").mean for group in found) == [0.5, 1.0]


def test_oracle_and_last_of_one_fit_stand_apart() -> None:
    found = groups([record("bolt", 0, 0.5), record("bolt", 0, 0.75, selection="oracle", eval_every=10)])
    assert [(group.selection, group.cell("bolt", "image_auroc").mean) for group in found] == [
        ("last", 0.5),
        ("oracle", 0.75),
    ]
    assert "oracle: epoch chosen on the test set" in table_notes(found[1])
    assert "(oracle)" in heading(found[1])


def test_groups_are_sorted_and_k_by_its_number() -> None:
    found = groups([record("bolt", k=k, protocol="kshot", title=title) for title in "BA" for k in (16, 2)])
    assert [(group.first.run.k, group.first.run.title) for group in found] == [(2, "A"), (2, "B"), (16, "A"), (16, "B")]


def test_of_two_records_of_one_category_and_seed_the_latest_counts_in_any_order() -> None:
    older = record("bolt", 0, 0.5, started="2025-01-01T00:00:00+00:00")
    newer = record("bolt", 0, 1.0, started="2025-06-01T00:00:00+00:00")
    for pair in ([older, newer], [newer, older]):
        assert only(pair).cell("bolt", "image_auroc") == Cell(1.0, None, 1)
    failed = replace(newer, failure="it broke")
    assert only([failed, older]).records == {}


def test_no_records_are_no_groups() -> None:
    assert groups([]) == []


# ---- text


def test_percent_has_one_decimal_and_a_spread_where_there_is_one() -> None:
    assert percent(Cell(0.98765, None, 1)) == "98.8"
    assert percent(Cell(0.5, 0.0125, 3)) == "50.0 ± 1.2"
    assert percent(Cell(1.0, 0.0, 2)) == "100.0 ± 0.0"
    assert percent(None) == "–"


def test_milliseconds_have_three_digits() -> None:
    assert milliseconds(Cell(12.345, None, 1)) == "12.3 ms"
    assert milliseconds(None) == "–"


def test_marks_say_all_that_a_reader_must_know() -> None:
    assert table_notes(only([record("bolt")])) == []
    told = {"synthetic": True, "profile_note": "small profile", "limit": 5, "file_hashes": {"net": "random"}}
    group = only([record("bolt", protocol="kshot", k=4, **told)])
    assert table_notes(group) == [
        "synthetic data",
        "small profile",
        "limited to 5 images a kind",
        "random weights in it",
    ]
    assert heading(group) == "Memory · real · kshot k=4"


def test_the_machine_is_told_with_its_threads_where_it_is_a_processor() -> None:
    timed = {"median_ms": 2.0}
    on_cpu = record("bolt", environment={"device": "Xeon", "threads": 2}, latency=timed)
    assert latency_device(only([on_cpu])) == "latency: batch 1, network to map and score, Xeon, 2 threads"
    on_gpu = record("tile", environment={"device": "H100", "threads": 2, "cuda": "13"}, latency=timed)
    assert latency_device(only([on_gpu])) == "latency: batch 1, network to map and score, H100"
    assert latency_device(only([on_cpu, on_gpu])).endswith("H100 and Xeon, 2 threads")
    assert latency_device(only([record("bolt")])).endswith("not measured")


def test_what_the_call_set_and_what_is_missing_is_marked() -> None:
    origin = {"settings.epochs": "--set", "settings.width": "default", "preprocessing": "--preprocessing"}
    prepared = {"height": 256, "width": 256, "resample": "bilinear", "crop": 224}
    run = {"settings": {"epochs": 1, "width": 8}, "preprocessing": prepared, "precision": "bfloat16"}
    missing = {"pixel_auroc": "no masks", "aupro_30": "no masks"}
    assert table_notes(only([record("bolt", origin=origin, undefined_metrics=missing, **run)])) == [
        "in bfloat16",
        "prepared to 256 x 256, bilinear, centre 224",
        "set: epochs=1",
        "no pixel metrics in bolt (no masks)",
    ]


def test_a_calibrated_run_and_one_at_original_resolution_say_so() -> None:
    group = only([record("bolt", calibrate=0.1, resolution="original", metric_error_bound=2e-6), record("nut", calibrate=0.1,
                  resolution="original")])  # fmt: skip
    assert table_notes(group) == [
        "threshold for a false positive rate of 0.1, set by good images held out of training",
        "pixel metrics at original resolution",
        "pixel metrics exact to 2e-06",
    ]
    assert table_metrics(group) == METRICS | CALIBRATED
    assert table_metrics(only([record("bolt")])) == METRICS


def test_categories_that_lack_a_metric_for_one_reason_share_a_sentence() -> None:
    untimed = [record(name, 0, 0.5) for name in ("bolt", "gear")]
    bare = record("tile", 0, 0.5, undefined_metrics={"latency": "no GPU"})
    group = only([*untimed, bare, record("nut", failure="out of memory\nat line 3")])
    assert missing_reasons(group, ["bolt", "gear", "nut", "tile", "wire"], LATENCY) == [
        "failed in nut, seed 0: out of memory",
        "wire is not done",
        "no latency in bolt, gear: not measured",
        "no latency in tile: no GPU",
    ]
