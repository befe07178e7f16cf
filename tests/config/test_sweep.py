"""Sweeps: which points a call's values lay out, what each is called, and how a table tells them apart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import registry
from bench.config.bench_toml import Config, load_config
from bench.config.method_specs import MethodSpec, check_setting_names
from bench.config.plan import Plan, make_plan
from bench.config.sweep import for_method, grid_points, parse_values
from bench.errors import BenchError
from bench.evaluation.summary import groups, table_notes, to_dict, unique_names
from bench.execution import schedule
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


def choices(**given: Any) -> tuple[MethodSpec, ...]:
    tables = {"profile": {"demo": {}}, "campaign": {"figure": {"over": {"clusters": [2, 8]}, "one_at_a_time": True}}}
    return make_plan(Config(tables), METHODS, **({"said": {"method": "inpaint"}} | given)).method_specs


def points(
    choice: MethodSpec, *, one_at_a_time: bool = False, kind: type = Inpaint
) -> list[tuple[Any, tuple[str, ...]]]:
    return [
        (found.resolve(kind, "")[0], found.sweep_keys) for found in choice.variants(kind, one_at_a_time=one_at_a_time)
    ]


# ---- values


def test_commas_separate_values_and_semicolons_where_there_are_some() -> None:
    assert parse_values("clusters", "2, 4,8") == ("2", "4", "8")
    assert parse_values("stages", "1,2;1,2,3") == ("1,2", "1,2,3")
    assert parse_values("stages", [[1, 2], [3]]) == ([1, 2], [3])
    assert parse_values("depth", 3) == (3,)


@pytest.mark.parametrize(("key", "given"), [("depth", ""), ("depth", []), ("depth", "2,,4"), ("", "2")])
def test_a_sweep_without_a_value_or_a_key_is_refused(key: str, given: object) -> None:
    with pytest.raises(BenchError, match="A sweep gives a setting its values, as --over clusters=2,4,8"):
        parse_values(key, given)


# ---- points


def test_the_product_has_every_combination_the_last_key_fastest() -> None:
    (choice,) = choices(over={"clusters": "2,4", "depth": "1,3"})
    both = ("clusters", "depth")
    assert points(choice) == [(Inpaint(c, d), both) for c, d in ((2, 1), (2, 3), (4, 1), (4, 3))]


def test_one_at_a_time_has_the_defaults_once_then_each_key_alone() -> None:
    (choice,) = choices(over={"clusters": "2,8", "depth": "1,4"})  # 8 and 4 are the defaults
    found = points(choice, one_at_a_time=True)
    assert found == [
        (Inpaint(), ("clusters", "depth")),
        (Inpaint(clusters=2), ("clusters",)),
        (Inpaint(depth=1), ("depth",)),
    ]


@given(
    over=st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)),
    one_at_a_time=st.booleans(),
)
def test_a_product_multiplies_the_counts_and_one_at_a_time_adds_them(over: dict, one_at_a_time: bool) -> None:
    found = list(
        grid_points({key: (tuple(several), "--over") for key, several in over.items()}, one_at_a_time=one_at_a_time)
    )
    expected = 1
    for several in over.values():
        expected = expected + len(several) if one_at_a_time else expected * len(several)
    assert len(found) == expected
    assert all({value for value, _ in point.values()} <= set(range(10)) for point, _ in found)
    assert len({repr(point) for point, _ in found}) == expected


def test_a_value_given_twice_in_two_spellings_is_one_variant() -> None:
    (choice,) = choices(over={"depth": "2,02"})
    assert len(points(choice)) == 1


def test_tuples_are_swept_and_typed() -> None:
    (choice,) = choices(over={"stages": "1,2,3;2"})
    assert [found.stages for found, _ in points(choice)] == [(1, 2, 3), (2,)]


def test_without_a_sweep_a_choice_is_its_only_variant() -> None:
    (choice,) = choices()
    assert choice.variants(Inpaint, one_at_a_time=False) == [choice]


# ---- for whom


def test_a_plain_key_varies_the_methods_that_have_it_and_the_others_run_once() -> None:
    inpaint, memory = choices(options={"method": "inpaint,memory"}, over={"clusters": "2,4", "memory.width": "1,2,3"})
    assert len(points(inpaint)) == 2
    assert [found.width for found, _ in points(memory, kind=Memory)] == [1, 2, 3]
    check_setting_names([inpaint, memory], {"inpaint": Inpaint, "memory": Memory})


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    (to_dict,) = choices(over={"clustrs": "2,4"})
    with pytest.raises(BenchError, match=r"'clustrs' is not a setting of inpaint\. Did you mean 'clusters'"):
        check_setting_names([to_dict], {"inpaint": Inpaint})
    (own,) = choices(over={"inpaint.dept": "2,4"})
    with pytest.raises(BenchError, match=r"'dept' is not a setting of inpaint\. Did you mean 'depth'"):
        points(own)
    with pytest.raises(BenchError, match=r"--over memory\.width names a method that is not run"):
        choices(over={"memory.width": "1,2"})


def test_a_value_of_another_type_is_refused_with_its_origin() -> None:
    (choice,) = choices(over={"depth": "2,deep"})
    with pytest.raises(BenchError, match=r"depth \(--over\) is an integer; 'deep' is not"):
        points(choice)


def test_a_campaign_sweeps_and_the_call_overrides_it_key_by_key() -> None:
    (choice,) = choices(campaign="figure")
    assert choice.sweep == {"clusters": ((2, 8), "campaign figure, over")}
    (choice,) = choices(campaign="figure", over={"clusters": "4,6"})
    assert choice.sweep == {"clusters": (("4", "6"), "--over")}
    (choice,) = choices(campaign="figure", settings={"inpaint.clusters": "3"})
    assert points(choice) == [(Inpaint(clusters=3), ())]


def test_what_a_call_both_sets_and_sweeps_is_refused() -> None:
    with pytest.raises(BenchError, match="--set fixes what --over varies; both name depth"):
        choices(settings={"depth": "3"}, over={"depth": "2,4"})
    kept = for_method({"depth": (("2",), "--over")}, "inpaint", {"memory.depth": "3"}, METHODS)
    assert kept == {"depth": (("2",), "--over")}


# ---- the whole way


def planned(parts: Path, **given: Any) -> Plan:
    said = {"dataset": "folder", "protocol": "one-for-one", "method": "meanmap", "threads": 1, "time": False}
    paths = {"data": parts, "runs": parts.parent / "runs", "cache": parts.parent / "cache"}
    said |= {"category": "bolt"} | given.pop("said", {})
    return make_plan(load_config(), registry.names("methods"), options=said, profile="check", paths=paths, **given)


def test_each_variant_is_a_run_of_its_own_told_apart_in_tables(parts: Path) -> None:
    plan = planned(parts, over={"smoothing": "10,0,2"})
    records = list(schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None))
    assert [record.run.sweep_label for record in records] == ["smoothing=10.0", "smoothing=0.0", "smoothing=2.0"]
    assert records[0].origin["settings.smoothing"] == "--over"
    assert to_dict(records[0])["over"] == {"smoothing": 10.0}
    assert len({record.run.group_hash for record in records}) == 3
    found = groups(Store(plan.runs).records())
    assert [group.first.run.sweep_label for group in found] == ["smoothing=0.0", "smoothing=2.0", "smoothing=10.0"]
    assert "over: smoothing=0.0" in table_notes(found[0])
    assert list(unique_names(found)) == [f"Mean map (floor) [smoothing={value}]" for value in (0.0, 2.0, 10.0)]


def test_a_run_made_before_is_found_by_a_sweep_and_named_as_in_it(parts: Path) -> None:
    alone = planned(parts, settings={"smoothing": "10"})
    (made,) = schedule.run_schedule(alone, schedule.make_schedule(alone), lambda *_: None)
    survey = schedule.make_schedule(planned(parts, over={"smoothing": "1,10"}))
    assert [job.label for job in survey.jobs] == ["Mean map (floor) bolt, seed 0, smoothing=1.0"]
    (found,) = survey.existing
    assert (made.run.sweep_label, found.run.sweep_label) == ("", "smoothing=10.0")
    assert found.metrics == made.metrics


def test_a_variant_that_can_not_run_here_is_left_out_by_name_and_the_others_go_on(parts: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    over = {"backbone": "tf_efficientnet_lite0,wide_resnet50_2.tv_in1k"}
    survey = schedule.make_schedule(planned(parts, options={"method": "patchcore"}, over=over))
    assert list(survey.skipped) == ["patchcore backbone=wide_resnet50_2.tv_in1k"]
    assert [job.run.sweep_label for job in survey.jobs] == ["backbone=tf_efficientnet_lite0"]


def test_where_no_variant_can_run_their_one_reason_is_told_once(parts: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = {"backbone": "wide_resnet50_2.tv_in1k"}
    plan = planned(parts, options={"method": "patchcore"}, settings=settings, over={"coreset": "0.1,0.5"})
    with pytest.raises(BenchError, match="A backbone needs weights"):
        schedule.make_schedule(plan)
    assert "left out" not in caplog.text


def test_the_variants_of_a_sweep_compute_the_features_of_their_images_once(parts: Path) -> None:
    plan = planned(parts, options={"method": "aminet"}, over={"clusters": "2,3", "epochs": "1"})
    records = list(schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None))
    assert len({record.run.group_hash for record in records}) == 2
    assert len([path for path in (plan.cache / "features").rglob("*") if path.is_file()]) == 1


FIGURES = {
    "figure9_backbone": 5, "figure9_patch": 3, "figure9_clusters": 5, "figure9_depth": 5, "figure9_aggregation": 4,
    "figure9_lambda": 5, "mask_at_test": 12,
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_of_figure_9_is_a_campaign_and_contains_the_defaults(name: str) -> None:
    settings = registry.load("methods", "aminet").Settings
    plan = make_plan(load_config(), registry.names("methods"), options={}, campaign=name)
    (choice,) = plan.method_specs
    found = choice.variants(settings, one_at_a_time=plan.options.one_at_a_time)
    assert len(found) == FIGURES[name]
    assert settings(jitter=True) in [variant.resolve(settings, "")[0] for variant in found]
