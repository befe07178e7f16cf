"""Summaries: values are means over seeds, means over categories are computed per seed, and groups are never mixed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench.evaluation.group_names import benchmark_name, groups_by_unique_name, heading
from bench.evaluation.summary import (
    LATENCY,
    MEAN,
    METRICS,
    THRESHOLD_METRICS,
    Group,
    MeanStd,
    caveats,
    format_latency,
    format_percent,
    groups,
    latency_note,
    missing_reasons,
    rows,
    table_metrics,
    table_notes,
    timed_devices,
)
from bench.record import Record

MakeRecord = Callable[..., Record]


@pytest.fixture
def record(make_record: MakeRecord) -> MakeRecord:
    """Return a function of category, seed and image AUROC that builds a record of real data."""

    def build(category: str, seed: int = 0, image_auroc: float | None = None, **changes: Any) -> Record:
        metrics = {} if image_auroc is None else {"image_auroc": image_auroc}
        defaults = {"dataset": "real", "synthetic": False, "title": "Memory", "name": "memory"}
        values = {"category": category, "data_hash": category, "seed": seed, "metrics": metrics}
        return make_record(**(defaults | values | changes))

    return build


def single_group(records: list[Record]) -> Group:
    (group,) = groups(records)
    return group


# ---- values


def test_a_value_is_the_mean_over_seeds_with_standard_deviation_by_n_minus_1(record: MakeRecord) -> None:
    group = single_group([record("bolt", 0, 0.5), record("bolt", 1, 0.75), record("bolt", 2, 1.0)])
    assert group.mean_std("bolt", "image_auroc") == MeanStd(0.75, 0.25, 3)


def test_one_seed_has_no_standard_deviation(record: MakeRecord) -> None:
    assert single_group([record("bolt", 0, 0.5)]).mean_std("bolt", "image_auroc") == MeanStd(0.5, None, 1)


def test_the_mean_is_computed_over_categories_per_seed_and_then_over_seeds(record: MakeRecord) -> None:
    group = single_group(
        [record("bolt", 0, 0.5), record("tile", 0, 1.0), record("bolt", 1, 0.25), record("tile", 1, 0.25)]
    )
    # the means of the seeds are 0.75 and 0.25, with a standard deviation of 0.5 / sqrt(2)
    assert group.mean_std(MEAN, "image_auroc") == MeanStd(0.5, pytest.approx(0.5 / 2**0.5), 2)


def test_a_seed_without_some_category_is_not_part_of_the_mean_but_of_its_categories(record: MakeRecord) -> None:
    group = single_group([record("bolt", 0, 0.5), record("tile", 0, 1.0), record("bolt", 1, 0.0)])
    assert group.mean_std(MEAN, "image_auroc") == MeanStd(0.75, None, 1)
    assert group.mean_std("bolt", "image_auroc") == MeanStd(0.25, pytest.approx(0.5 / 2**0.5), 2)
    assert group.seed_means(["bolt"], "image_auroc") == [0.5, 0.0]


def test_a_seed_in_which_a_category_lacks_the_metric_is_not_part_of_its_mean(record: MakeRecord) -> None:
    group = single_group([record("bolt", 0, 0.5), record("tile", 0)])
    assert group.mean_std(MEAN, "image_auroc") is None
    assert group.mean_std("tile", "image_auroc") is None
    assert group.mean_std("bolt", "image_auroc") == MeanStd(0.5, None, 1)


def test_a_failed_category_is_listed_and_there_is_no_mean_over_the_others(record: MakeRecord) -> None:
    group = single_group([record("bolt", 0, 0.5), record("tile", 0, failure="it broke")])
    assert group.categories == ["bolt", "tile"]
    assert [record.category for record in group.failed] == ["tile"]
    assert group.mean_std("tile", "image_auroc") is None
    assert group.mean_std(MEAN, "image_auroc") is None


def test_a_group_of_failures_only_has_a_heading(record: MakeRecord) -> None:
    group = single_group([record("tile", 0, failure="it broke")])
    assert heading(group) == "Memory · real · one-for-one"
    assert group.mean_std(MEAN, LATENCY) is None
    assert latency_note(group).endswith("not measured")


def test_latency_is_averaged_like_a_metric(record: MakeRecord) -> None:
    group = single_group([record("bolt", latency={"median_ms": 2.0}), record("tile", latency={"median_ms": 4.0})])
    assert group.mean_std(MEAN, LATENCY) == MeanStd(3.0, None, 1)


# ---- groups


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "other"},
        {"protocol": "unified"},
        {"k": 4},
        {"name": "alias"},
        {"title": "Other"},
        {"group_hash": "v2"},
        {"selection": "oracle"},
        {"data_fingerprints": {"bolt": "other images"}},
    ],
    ids=str,
)
def test_records_that_differ_are_never_averaged(record: MakeRecord, changes: dict[str, object]) -> None:
    members = groups([record("bolt", 0, 0.5), record("bolt", 1, 1.0, **changes)])
    assert sorted(group.mean_std("bolt", "image_auroc").mean for group in members) == [0.5, 1.0]


def test_oracle_and_last_epoch_of_one_fit_are_separate_groups(record: MakeRecord) -> None:
    members = groups([record("bolt", 0, 0.5), record("bolt", 0, 0.75, selection="oracle", eval_every=10)])
    assert [(group.selection, group.mean_std("bolt", "image_auroc").mean) for group in members] == [
        ("last", 0.5),
        ("oracle", 0.75),
    ]
    assert "oracle: epoch chosen on the test set" in table_notes(members[1])
    assert "(oracle)" in heading(members[1])


def test_groups_are_sorted_by_the_number_k(record: MakeRecord) -> None:
    members = groups([record("bolt", k=k, protocol="kshot", title=title) for title in "BA" for k in (16, 2)])
    keys = [(group.first.run.k, group.first.run.title) for group in members]
    assert keys == [(2, "A"), (2, "B"), (16, "A"), (16, "B")]


def test_the_latest_of_two_records_of_one_category_and_seed_counts_in_any_order(record: MakeRecord) -> None:
    older = record("bolt", 0, 0.5, started="2025-01-01T00:00:00+00:00")
    newer = record("bolt", 0, 1.0, started="2025-06-01T00:00:00+00:00")
    for pair in ([older, newer], [newer, older]):
        assert single_group(pair).mean_std("bolt", "image_auroc") == MeanStd(1.0, None, 1)
    failed = replace(newer, failure="it broke")
    assert single_group([failed, older]).records == {}


def test_no_records_give_no_groups() -> None:
    assert groups([]) == []


def test_two_datasets_of_one_name_are_separate_groups_with_distinct_labels(record: MakeRecord) -> None:
    site_a = {"data_fingerprints": {"bolt": "a1", "nut": "a2"}, "started": "2026-01-01"}
    site_b = {"data_fingerprints": {"bolt": "b1"}, "started": "2026-01-02"}
    records = [record("nut", 0, 0.5, **site_a), record("bolt", 0, 1.0, **site_b), record("bolt", 0, 0.75, **site_a)]
    first, second = groups(records)
    assert (first.dataset, first.categories) == ("real (1 of 2)", ["bolt", "nut"])
    assert (second.dataset, second.categories) == ("real (2 of 2)", ["bolt"])
    assert first.mean_std(MEAN, "image_auroc") == MeanStd(0.625, None, 1)
    assert benchmark_name(second) == "real (2 of 2) · one-for-one"
    assert list(groups_by_unique_name([first, second])) == ["Memory on real (1 of 2)", "Memory on real (2 of 2)"]
    assert "one of several datasets named real" in caveats(first)
    assert {row["dataset_label"] for row in rows([first, second])} == {"real (1 of 2)", "real (2 of 2)"}


def test_a_category_added_to_a_dataset_stays_in_its_group(record: MakeRecord) -> None:
    before = record("bolt", 0, 0.5, data_fingerprints={"bolt": "f1"})
    after = record("nut", 0, 1.0, data_fingerprints={"bolt": "f1", "nut": "f2"})
    group = single_group([before, after])
    assert (group.dataset, group.categories) == ("real", ["bolt", "nut"])


# ---- text


def test_percent_has_one_decimal_and_the_standard_deviation_if_there_is_one() -> None:
    assert format_percent(MeanStd(0.98765, None, 1)) == "98.8"
    assert format_percent(MeanStd(0.5, 0.0125, 3)) == "50.0 ± 1.2"
    assert format_percent(MeanStd(1.0, 0.0, 2)) == "100.0 ± 0.0"
    assert format_percent(None) == "–"


def test_milliseconds_have_three_digits() -> None:
    assert format_latency(MeanStd(12.345, None, 1)) == "12.3 ms"
    assert format_latency(None) == "–"


def test_notes_contain_all_caveats(record: MakeRecord) -> None:
    assert table_notes(single_group([record("bolt")])) == []
    changes = {"synthetic": True, "profile_note": "small profile", "limit": 5, "file_hashes": {"net": "random"}}
    group = single_group([record("bolt", protocol="kshot", k=4, **changes)])
    assert table_notes(group) == [
        "synthetic data",
        "small profile",
        "limited to 5 training, 5 good and 5 defective test images per category",
        "random weights in the network",
    ]
    assert heading(group) == "Memory · real · kshot k=4"


def test_the_latency_of_a_cpu_names_the_threads(record: MakeRecord) -> None:
    latency = {"median_ms": 2.0}
    on_cpu = record("bolt", environment={"device": "Xeon", "threads": 2}, latency=latency)
    assert latency_note(single_group([on_cpu])) == "latency: batch size 1, network to map and score, Xeon, 2 threads"
    on_gpu = record("tile", environment={"device": "H100", "threads": 2, "cuda": "13"}, latency=latency)
    assert latency_note(single_group([on_gpu])) == "latency: batch size 1, network to map and score, H100"
    assert latency_note(single_group([on_cpu, on_gpu])).endswith("H100 and Xeon, 2 threads")
    assert latency_note(single_group([record("bolt")])).endswith("not measured")


def test_overridden_settings_and_undefined_metrics_are_notes(record: MakeRecord) -> None:
    origin = {"settings.epochs": "--set", "settings.width": "default", "preprocessing": "--preprocessing"}
    preprocessing = {"height": 256, "width": 256, "resample": "bilinear", "crop": 224}
    run = {"settings": {"epochs": 1, "width": 8}, "preprocessing": preprocessing, "precision": "bfloat16"}
    undefined = {"pixel_auroc": "no masks", "aupro_30": "no masks"}
    assert table_notes(single_group([record("bolt", origin=origin, undefined_metrics=undefined, **run)])) == [
        "in bfloat16",
        "preprocessing: 256 x 256, bilinear, center crop 224",
        "set: epochs=1",
        "no pixel metrics in bolt (no masks)",
    ]


def test_calibrated_runs_and_original_resolution_are_notes(record: MakeRecord) -> None:
    options = {"calibrate": 0.1, "resolution": "original"}
    group = single_group([record("bolt", metric_error_bound=2e-6, **options), record("nut", **options)])
    assert table_notes(group) == [
        "threshold for a false positive rate of 0.1, set on good images excluded from training",
        "pixel metrics at original resolution",
        "pixel metrics exact to 2e-06",
    ]
    assert table_metrics(group) == METRICS | THRESHOLD_METRICS
    assert table_metrics(single_group([record("bolt")])) == METRICS


def test_the_metrics_of_loco_are_in_the_table_of_a_group_that_has_them(record: MakeRecord) -> None:
    without, with_spro = record("bolt"), record("nut")
    with_spro.metrics["spro_05"] = 0.5
    assert table_metrics(single_group([without, with_spro])) == METRICS | {"spro_05": "sPRO@0.05"}


def test_categories_that_lack_a_metric_for_one_reason_share_a_sentence(record: MakeRecord) -> None:
    without_latency = [record(name, 0, 0.5) for name in ("bolt", "gear")]
    without_gpu = record("tile", 0, 0.5, undefined_metrics={"latency": "no GPU"})
    group = single_group([*without_latency, without_gpu, record("nut", failure="out of memory\nat line 3")])
    assert missing_reasons(group, ["bolt", "gear", "nut", "tile", "wire"], LATENCY) == [
        "failed in nut, seed 0: out of memory",
        "wire did not run",
        "no latency in bolt, gear: not measured",
        "no latency in tile: no GPU",
    ]


def test_a_latency_is_labeled_by_the_machine_that_measured_it(record: MakeRecord) -> None:
    fitted_on = {"device": "H100", "cuda": "13.0", "threads": 1}
    timed_later = {"median_ms": 7.0, "environment": {"device": "Xeon", "threads": 4}}
    failed = record("nut", environment=fitted_on, latency={"error": "the measurement failed; see the warnings"})
    group = single_group([record("bolt", environment=fitted_on, latency=timed_later), failed])
    assert timed_devices(group) == "Xeon, 4 threads"
