"""Sweeps: the variants that a call's values give, their names, and how tables distinguish them."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import registry
from bench.config.bench_toml import Config, load_config
from bench.config.method_specs import MethodSpec, check_setting_names
from bench.config.plan import make_plan
from bench.config.sweep import for_method, grid_points, parse_values
from bench.errors import BenchError
from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.summary import groups, table_notes
from bench.execution.schedule import make_schedule
from bench.store import Store

METHODS = ("inpaint", "memory")


@dataclass(frozen=True)
class Inpaint:
    clusters: int = 8
    depth: int = 4
    stages: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Memory:
    width: int = 16


def specs(method: str = "inpaint", **call: Any) -> tuple[MethodSpec, ...]:
    """Return the methods of a call; keywords are those of `make_plan`."""
    campaign = {"sweep": {"clusters": [2, 8]}, "one_at_a_time": True}
    tables = {"profile": {"demo": {}}, "campaign": {"figure": campaign}}
    return make_plan(Config(tables), METHODS, options={"method": method}, **call).method_specs


def points(
    spec: MethodSpec, *, one_at_a_time: bool = False, settings_class: type = Inpaint
) -> list[tuple[Any, tuple[str, ...]]]:
    """Return the settings and the sweep keys of each variant."""
    variants = spec.variants(settings_class, one_at_a_time=one_at_a_time)
    return [(variant.resolve(settings_class, "")[0], variant.sweep_keys) for variant in variants]


# ---- values


def test_values_are_separated_by_semicolons_if_there_are_any_else_by_commas() -> None:
    assert parse_values("clusters", "2, 4,8") == ("2", "4", "8")
    assert parse_values("stages", "1,2;1,2,3") == ("1,2", "1,2,3")
    assert parse_values("stages", [[1, 2], [3]]) == ([1, 2], [3])
    assert parse_values("depth", 3) == (3,)


@pytest.mark.parametrize(("key", "values"), [("depth", ""), ("depth", []), ("depth", "2,,4"), ("", "2")])
def test_a_sweep_without_a_value_or_a_key_is_an_error(key: str, values: object) -> None:
    with pytest.raises(BenchError, match="A sweep must have values for a setting, for example --sweep clusters=2,4,8"):
        parse_values(key, values)


# ---- variants


def test_a_product_has_every_combination_and_the_last_key_changes_fastest() -> None:
    (spec,) = specs(sweep={"clusters": "2,4", "depth": "1,3"})
    keys = ("clusters", "depth")
    assert points(spec) == [(Inpaint(c, d), keys) for c, d in ((2, 1), (2, 3), (4, 1), (4, 3))]


def test_one_at_a_time_gives_the_defaults_once_and_then_each_key_alone() -> None:
    (spec,) = specs(sweep={"clusters": "2,8", "depth": "1,4"})  # 8 and 4 are the defaults
    assert points(spec, one_at_a_time=True) == [
        (Inpaint(), ("clusters", "depth")),
        (Inpaint(clusters=2), ("clusters",)),
        (Inpaint(depth=1), ("depth",)),
    ]


@given(
    sweep=st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)),
    one_at_a_time=st.booleans(),
)
def test_the_numbers_of_values_are_multiplied_or_added(sweep: dict[str, list[int]], one_at_a_time: bool) -> None:
    values = {key: (tuple(numbers), "--sweep") for key, numbers in sweep.items()}
    result = list(grid_points(values, one_at_a_time=one_at_a_time))
    expected = 1
    for numbers in sweep.values():
        expected = expected + len(numbers) if one_at_a_time else expected * len(numbers)
    assert len(result) == expected
    assert all({value for value, _ in point.values()} <= set(range(10)) for point, _ in result)
    assert len({repr(point) for point, _ in result}) == expected


def test_equal_values_in_two_spellings_are_one_variant() -> None:
    (spec,) = specs(sweep={"depth": "2,02"})
    assert len(points(spec)) == 1


def test_tuples_are_swept_and_parsed() -> None:
    (spec,) = specs(sweep={"stages": "1,2,3;2"})
    assert [settings.stages for settings, _ in points(spec)] == [(1, 2, 3), (2,)]


def test_without_a_sweep_the_method_is_its_only_variant() -> None:
    (spec,) = specs()
    assert spec.variants(Inpaint, one_at_a_time=False) == [spec]


# ---- methods of a sweep


def test_a_plain_key_varies_the_methods_that_have_it_and_the_others_run_once() -> None:
    inpaint, memory = specs("inpaint,memory", sweep={"clusters": "2,4", "memory.width": "1,2,3"})
    assert len(points(inpaint)) == 2
    assert [settings.width for settings, _ in points(memory, settings_class=Memory)] == [1, 2, 3]
    check_setting_names([inpaint, memory], {"inpaint": Inpaint, "memory": Memory})


def test_an_unknown_key_is_an_error_with_a_suggestion() -> None:
    (spec,) = specs(sweep={"clustrs": "2,4"})
    with pytest.raises(BenchError, match=r"'clustrs' is not a setting of inpaint\. Did you mean 'clusters'"):
        check_setting_names([spec], {"inpaint": Inpaint})
    (spec,) = specs(sweep={"inpaint.dept": "2,4"})
    with pytest.raises(BenchError, match=r"'dept' is not a setting of inpaint\. Did you mean 'depth'"):
        points(spec)
    with pytest.raises(BenchError, match=r"--sweep memory\.width names a method that is not part of the run"):
        specs(sweep={"memory.width": "1,2"})


def test_the_error_for_a_value_of_another_type_states_its_origin() -> None:
    (spec,) = specs(sweep={"depth": "2,deep"})
    with pytest.raises(BenchError, match=r"depth \(--sweep\) must be an integer, got 'deep'"):
        points(spec)


def test_the_call_overrides_the_sweep_of_a_campaign_key_by_key() -> None:
    (spec,) = specs(campaign="figure")
    assert spec.sweep == {"clusters": ((2, 8), "campaign figure, sweep")}
    (spec,) = specs(campaign="figure", sweep={"clusters": "4,6"})
    assert spec.sweep == {"clusters": (("4", "6"), "--sweep")}
    (spec,) = specs(campaign="figure", settings={"inpaint.clusters": "3"})
    assert points(spec) == [(Inpaint(clusters=3), ())]


def test_a_key_in_both_set_and_sweep_is_an_error() -> None:
    with pytest.raises(BenchError, match="--set and --sweep must name different settings; both name depth"):
        specs(settings={"depth": "3"}, sweep={"depth": "2,4"})
    sweep = {"depth": (("2",), "--sweep")}
    assert for_method(sweep, "inpaint", "inpaint", {"memory.depth": "3"}, METHODS) == sweep


# ---- runs of a sweep


def test_each_variant_is_a_separate_run_and_a_separate_row(plan_parts, run_plan) -> None:
    plan = plan_parts(category="bolt", sweep={"smoothing": "10,0,2"})
    records = run_plan(plan)
    assert [record.run.sweep_label for record in records] == ["smoothing=10.0", "smoothing=0.0", "smoothing=2.0"]
    assert records[0].origin["settings.smoothing"] == "--sweep"
    assert len({record.run.group_hash for record in records}) == 3
    table = groups(Store(plan.runs).records())
    assert [group.first.run.sweep_label for group in table] == ["smoothing=0.0", "smoothing=2.0", "smoothing=10.0"]
    assert any("smoothing=0.0" in note for note in table_notes(table[0]))
    assert list(groups_by_unique_name(table)) == [
        f"Mean map (baseline) [smoothing={value}]" for value in (0.0, 2.0, 10.0)
    ]


def test_a_sweep_reuses_an_existing_record_and_labels_it(plan_parts, run_plan) -> None:
    (record,) = run_plan(plan_parts(category="bolt", settings={"smoothing": "10"}))
    schedule = make_schedule(plan_parts(category="bolt", sweep={"smoothing": "1,10"}))
    assert [job.label for job in schedule.jobs] == ["Mean map (baseline) bolt, seed 0, smoothing=1.0"]
    (existing,) = schedule.existing
    assert (record.run.sweep_label, existing.run.sweep_label) == ("", "smoothing=10.0")
    assert existing.metrics == record.metrics


def test_a_variant_that_cannot_run_is_skipped_by_name_and_the_others_run(plan_parts, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sweep = {"backbone": "tf_efficientnet_lite0,wide_resnet50_2.tv_in1k"}
    schedule = make_schedule(plan_parts(method="patchcore", category="bolt", sweep=sweep))
    assert list(schedule.skipped) == ["patchcore backbone=wide_resnet50_2.tv_in1k"]
    assert [job.run.sweep_label for job in schedule.jobs] == ["backbone=tf_efficientnet_lite0"]


def test_if_no_variant_can_run_their_common_reason_is_the_error(plan_parts, monkeypatch, caplog) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = {"backbone": "wide_resnet50_2.tv_in1k"}
    plan = plan_parts(method="patchcore", settings=settings, sweep={"coreset": "0.1,0.5"})
    with pytest.raises(BenchError, match=r"wide_resnet50_2\.tv_in1k"):
        make_schedule(plan)
    assert "is skipped" not in caplog.text


def test_the_variants_of_a_sweep_share_the_features_of_a_frozen_backbone(plan_parts, run_plan) -> None:
    plan = plan_parts(method="aminet", category="bolt", sweep={"clusters": "2,3", "epochs": "1"})
    records = run_plan(plan)
    assert len({record.run.group_hash for record in records}) == 2
    assert len([path for path in (plan.cache / "features").rglob("*") if path.is_file()]) == 1


FIGURES = {
    "figure9_backbone": 5, "figure9_patch": 3, "figure9_clusters": 5, "figure9_depth": 5, "figure9_aggregation": 4,
    "figure9_lambda": 5, "mask_at_test": 12,
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_of_figure_9_is_a_campaign_that_contains_the_defaults(name: str) -> None:
    settings_class = registry.load("methods", "aminet").Settings
    plan = make_plan(load_config(), registry.names("methods"), campaign=name)
    (spec,) = plan.method_specs
    variants = spec.variants(settings_class, one_at_a_time=plan.tasks.one_at_a_time)
    assert len(variants) == FIGURES[name]
    assert settings_class(jitter=True) in [variant.resolve(settings_class, "")[0] for variant in variants]
