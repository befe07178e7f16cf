"""Identity: which fields and options each projection contains, and which records belong to one dataset."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.evaluation.group_names import groups_by_unique_name
from bench.evaluation.summary import groups
from bench.identity import (
    comparison_key,
    cost_key,
    dataset_numbers,
    differing_values,
    group_key,
    number_differences,
    retry_key,
    run_hash,
    sweep_key,
)
from bench.record import Record, Run
from bench.store import Store


def group_of(run: Run) -> tuple[str, ...]:
    """Return the key of the group of a record of that run, whose group hash is computed as for a plan."""
    return group_key(Record(run=replace(run, group_hash=run_hash(run, "")), category="bolt", data_hash="d1"), 0)


PROJECTIONS: dict[str, Callable[[Run], Any]] = {
    "run_hash": lambda run: run_hash(run, "d1"),
    "retry_key": lambda run: retry_key(run, "bolt"),
    "cost_key": cost_key,
    "sweep_key": sweep_key,
    "comparison_key": comparison_key,
    "group_key": group_of,
}
CHANGES: dict[str, Any] = {
    "dataset": "cables",
    "synthetic": False,
    "data_fingerprints": {"bolt": "f9"},
    "protocol": "kshot",
    "k": 4,
    "seed": 7,
    "name": "jittered",
    "method": "inpaint",
    "title": "Inpaint‡",
    "settings": {"width": 16},
    "preprocessing": {"height": 32, "width": 24},
    "file_hashes": {"resnet18": "ab12"},
    "options": {"tasks": {"limit": 5}},
    "profile": "paper",
    "profile_note": "reduced width",
    "group_hash": "w",
    "sweep_keys": ["width"],
}
LABELS = {"synthetic", "data_fingerprints", "title", "profile", "profile_note", "group_hash", "sweep_keys"}
PATH = {"dataset", "protocol", "k", "name", "seed"}
# The fields of Run that do not change a projection, as its docstring states.
IGNORED = {
    "run_hash": LABELS | PATH,
    "retry_key": LABELS | {"file_hashes"},
    "cost_key": LABELS | PATH | {"file_hashes"},
    # sweep_keys leaves out the settings that it names
    "sweep_key": LABELS - {"sweep_keys"} | {"seed", "name", "file_hashes"},
    "comparison_key": LABELS | {"seed", "name", "method", "settings", "preprocessing", "file_hashes"},
    "group_key": LABELS - {"title", "sweep_keys"} | {"seed"},
}
IGNORED_OPTIONS = {"cost_key": {"limit", "calibrate"}, "comparison_key": {"precision", "compile"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterRun(Run):
    """A run of a later version, which has one more field."""

    background: str = "white"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterRecord(Record):
    """A record of a later version, which has one more field."""

    spread: float = 0.0


def test_the_changes_cover_every_field_of_a_run(make_run: Callable[..., Run]) -> None:
    run = make_run()
    assert CHANGES.keys() == {entry.name for entry in fields(Run)}
    assert all(getattr(run, name) != value for name, value in CHANGES.items())


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_contains_every_field_except_those_of_its_docstring(
    make_run: Callable[..., Run], name: str, field: str
) -> None:
    run, project = make_run(), PROJECTIONS[name]
    changed = replace(run, **{field: CHANGES[field]})
    assert (project(changed) == project(run)) == (field in IGNORED[name])


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_field_that_is_added_to_a_run_is_part_of_every_projection(make_run: Callable[..., Run], name: str) -> None:
    values = asdict(make_run())
    white, black = LaterRun(**values), LaterRun(**values, background="black")
    project = PROJECTIONS[name]
    assert project(white) == project(LaterRun(**values, background="white"))
    assert project(white) != project(black)


@pytest.mark.parametrize("group", ["tasks", "evaluation", "compute", "execution", "a later group"])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_an_option_that_is_added_to_a_group_is_part_of_every_projection(
    make_run: Callable[..., Run], name: str, group: str
) -> None:
    run, project = make_run(), PROJECTIONS[name]

    def with_option(value: int) -> Run:
        return replace(run, options=run.options | {group: {**run.options.get(group, {}), "added": value}})

    is_left_out = name == "comparison_key" and group in {"compute", "execution"}
    assert (project(with_option(1)) == project(with_option(2))) == is_left_out


@pytest.mark.parametrize(
    "change",
    [{"limit": 5}, {"calibrate": 0.1}, {"resolution": "original"}, {"precision": "bfloat16"}, {"compile": True}],
    ids=str,
)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_contains_every_option_except_those_of_its_docstring(
    make_run: Callable[..., Run], name: str, change: dict[str, Any]
) -> None:
    project = PROJECTIONS[name]
    is_left_out = change.keys() <= IGNORED_OPTIONS.get(name, set())
    assert (project(make_run(**change)) == project(make_run())) == is_left_out


def test_the_data_digest_is_part_of_the_run_hash_and_the_category_of_the_retry_key(make_run) -> None:
    run = make_run()
    assert run_hash(run, "d1") != run_hash(run, "d2")
    assert retry_key(run, "bolt") != retry_key(run, "plate")


def test_a_hash_is_the_same_for_tuples_and_lists_and_after_a_round_trip(make_run, make_record) -> None:
    run = make_run(settings={"stages": [1, 2], "lr": 1e-3})
    stored = Record.from_json(make_record(run).to_json()).run
    assert run_hash(stored, "d1") == run_hash(run, "d1")
    assert run_hash(replace(run, settings={"lr": 1e-3, "stages": (1, 2)}), "d1") == run_hash(run, "d1")


def test_a_failed_run_of_a_released_checkpoint_is_not_repeated_by_a_fit(make_run) -> None:
    released = make_run(file_hashes={"checkpoint": "ab12"})
    assert retry_key(released, "bolt") == retry_key(make_run(file_hashes={"checkpoint": "cd34"}), "bolt")
    assert retry_key(released, "bolt") != retry_key(make_run(file_hashes={"backbone": "ab12"}), "bolt")


def test_the_runs_of_a_sweep_have_one_sweep_key(make_run) -> None:
    swept = {"sweep_keys": ["depth"]}
    two, four = (make_run(settings={"depth": depth, "width": 8}, **swept) for depth in (2, 4))
    wider = make_run(settings={"depth": 2, "width": 16}, **swept)
    assert sweep_key(two) == sweep_key(four) != sweep_key(wider)


def test_groups_are_sorted_by_the_number_of_a_swept_setting(make_run, make_record) -> None:
    runs = [make_run(settings={"depth": depth}, sweep_keys=["depth"]) for depth in (10, 2, 0.5)]
    keys = sorted((group_key(make_record(run), 0), run.settings["depth"]) for run in runs)
    assert [depth for _, depth in keys] == [0.5, 2, 10]


# ---- datasets of the same name


@pytest.fixture
def numbers(make_run, make_record) -> Callable[..., list[int]]:
    """Return a function of (dataset, fingerprints) pairs, in order of their start, that returns their numbers."""

    def compute(*pairs: tuple[str, dict[str, str]]) -> list[int]:
        return dataset_numbers(
            make_record(make_run(dataset=dataset, data_fingerprints=fingerprints), started=f"2026-01-02T00:00:{i:02}")
            for i, (dataset, fingerprints) in enumerate(pairs)
        )

    return compute


def test_records_with_an_equal_category_are_of_one_dataset(numbers) -> None:
    both, bolt, other = {"bolt": "a", "nut": "b"}, {"bolt": "a"}, {"bolt": "c"}
    assert numbers(("parts", both), ("parts", bolt)) == [0, 0]
    assert numbers(("parts", both), ("parts", {"bolt": "changed", "nut": "b"})) == [0, 0]
    assert numbers(("parts", both), ("parts", other)) == [0, 1]
    assert numbers(("parts", bolt), ("parts", {"nut": "a"})) == [0, 1]  # the same hash, but of another category
    assert numbers() == []


def test_records_are_joined_through_other_records(numbers) -> None:
    bolt, nut, both = {"bolt": "a"}, {"nut": "b"}, {"bolt": "a", "nut": "b"}
    assert numbers(("parts", bolt), ("parts", nut)) == [0, 1]
    assert numbers(("parts", bolt), ("parts", nut), ("parts", both)) == [0, 0, 0]
    chain = [{"a": "1", "b": "2"}, {"c": "4", "d": "5"}, {"b": "2", "c": "3"}, {"c": "3", "d": "5"}, {"e": "6"}]
    assert numbers(*(("parts", fingerprints) for fingerprints in chain)) == [0, 0, 0, 0, 1]


def test_datasets_of_other_names_are_counted_separately(numbers) -> None:
    bolt, other = {"bolt": "a"}, {"bolt": "c"}
    assert numbers(("parts", bolt), ("cables", bolt), ("parts", other), ("cables", bolt)) == [0, 0, 1, 0]


def test_the_first_started_dataset_has_number_0(make_run, make_record) -> None:
    late = make_record(make_run(data_fingerprints={"bolt": "a"}), started="2026-02-01")
    early = make_record(make_run(data_fingerprints={"bolt": "c"}), started="2026-01-01")
    assert dataset_numbers([late, early]) == [1, 0]
    assert group_key(late, 1) > group_key(early, 0)


def test_records_without_fingerprints_are_of_one_dataset(numbers) -> None:
    assert numbers(("parts", {}), ("parts", {}), ("parts", {"bolt": "a"})) == [0, 0, 1]


def draw_category(folder: Path, *, side: int) -> None:
    """Draw 4 training, 2 good and 2 defective test images of 32 x 32 pixels, with a bright square of `side` pixels."""
    generator = np.random.default_rng(0)

    def save(name: str, square: int = 0) -> None:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(90, 110, (32, 32, 3)).astype(np.uint8)
        pixels[4 : 4 + square, 4 : 4 + square] = 250
        Image.fromarray(pixels).save(path)

    for i in range(4):
        save(f"train/good/{i:03}")
    for i in range(2):
        save(f"test/good/{i:03}")
        save(f"test/spot/{i:03}", side)


def test_two_sites_with_a_folder_of_one_name_give_two_groups(tmp_path: Path, plan_parts, run_plan) -> None:
    # Site A has bolts and nuts, site B other bolts; the training images of the bolts are equal.
    site_a, site_b = tmp_path / "siteA" / "parts", tmp_path / "siteB" / "parts"
    draw_category(site_a / "bolt", side=6)
    draw_category(site_a / "nut", side=6)
    draw_category(site_b / "bolt", side=3)
    for site in (site_a, site_b):
        run_plan(replace(plan_parts(), data=site))
    records = list(Store(plan_parts().runs).records())
    members: dict[tuple[str, ...], list[str]] = {}
    for record, number in zip(records, dataset_numbers(records), strict=True):
        members.setdefault(group_key(record, number), []).append(record.category)
    assert sorted(map(sorted, members.values())) == [["bolt"], ["bolt", "nut"]]
    assert {record.run.dataset for record in records} == {"folder-parts"}
    table = groups(records)
    assert sorted(sorted(group.categories) for group in table) == [["bolt"], ["bolt", "nut"]]
    assert len(groups_by_unique_name(table)) == len({group.dataset for group in table}) == 2


def test_times_machine_and_command_are_not_differences(make_record: Callable[..., Record]) -> None:
    record = make_record()
    other = replace(
        record, seconds={"fit": 99.0}, environment={"device": "gpu"}, command="bench run table1", started="2030",
        latency={"median_ms": 1.0}, memory={"host": 1}, commit="abc", sequence=7, warnings=["slow"],
    )  # fmt: skip
    assert number_differences(record, other) == []
    assert [each.name for each in number_differences(record, replace(record, threshold=0.5))] == ["threshold"]


def test_a_field_that_is_added_to_a_record_is_compared(make_record: Callable[..., Record]) -> None:
    values = {entry.name: getattr(make_record(), entry.name) for entry in fields(Record)}
    (difference,) = number_differences(LaterRecord(**values), LaterRecord(**values, spread=0.5))
    assert (difference.name, difference.recorded, difference.other) == ("spread", 0.0, 0.5)


def test_the_names_of_differing_values_contain_their_table_and_a_missing_value_is_none() -> None:
    first, second = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"x": 1, "y": 4}, "c": 5}
    differences = [(each.name, each.recorded, each.other) for each in differing_values(first, second)]
    assert differences == [("a.y", 2, 4), ("b", 3, None), ("c", None, 5)]
