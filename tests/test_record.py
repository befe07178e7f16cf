"""Records: what is written is read back the same, and what is no record is refused in words."""

import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.errors import BenchError
from bench.record import SCHEMA, Predictions, Record, Run, to_float16, to_float32

RUN = Run(
    dataset="real",
    synthetic=False,
    protocol="kshot",
    k=4,
    seed=0,
    limit=0,
    name="jittered",
    method="inpaint",
    title="Inpaint‡",
    settings={"lr": 1e-3, "stages": [1, 2], "limit": None},
    preprocessing={"height": 64, "width": 64},
    precision="float32",
    file_hashes={"resnet18": "ab12"},
    profile="demo",
    profile_note="",
)
RECORD = Record(run=RUN, category="bolt", data_digest="d1", metrics={"image_auroc": 0.5}, losses=[1.0, 0.5])

TEXT = st.text(max_size=5)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
TABLE = st.dictionaries(TEXT, PLAIN, max_size=3)
NUMBERS = st.dictionaries(TEXT, FINITE, max_size=3)
RECORDS = st.builds(
    Record,
    run=st.builds(replace, st.just(RUN), settings=TABLE, title=TEXT, seed=st.integers(), synthetic=st.booleans()),
    category=TEXT,
    data=TEXT,
    selection=st.sampled_from(["last", "oracle"]),
    epoch=st.integers(),
    metrics=NUMBERS,
    missing=st.dictionaries(TEXT, TEXT, max_size=2),
    threshold=st.none() | FINITE,
    losses=st.lists(FINITE, max_size=3),
    curve=st.lists(NUMBERS, max_size=2),
    facts=TABLE,
    memory=st.dictionaries(TEXT, st.integers(), max_size=2),
    train=st.lists(TEXT, max_size=3),
)


def read(**changed: Any) -> Record:
    return Record.from_json(json.dumps(json.loads(RECORD.to_json()) | changed))


def read_run(**changed: Any) -> Record:
    return read(run=asdict(RUN) | changed)


# ---- JSON


@given(record=RECORDS)
def test_a_record_survives_the_way_through_json(record: Record) -> None:
    assert Record.from_json(record.to_json()) == record


def test_a_file_name_that_is_no_utf_8_survives_as_well() -> None:
    record = replace(RECORD, train_files=["sch\udcf6n.png"])
    assert Record.from_json(record.to_json().encode().decode()) == record


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32(1), object(), {1, 2}])
def test_a_value_that_json_can_not_hold_is_refused_with_its_field(value: Any) -> None:
    for changed in ({"losses": [1.0, value]}, {"facts": {"deep": [{"x": value}]}}):
        (name,) = changed
        with pytest.raises(BenchError, match=f"A record holds plain, finite values; its {name} .* not: "):
            replace(RECORD, **changed).to_json()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_text_with_numbers_that_are_not_finite_is_refused(number: str) -> None:
    text = RECORD.to_json().replace("0.5", number)
    with pytest.raises(BenchError, match=f"{number} is not finite"):
        Record.from_json(text)


@pytest.mark.parametrize("text", ["", "{", "words", "[1", '{"a": 1', "[" * 100_000], ids=lambda text: text[:8])
def test_a_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="A record is JSON"):
        Record.from_json(text)


@given(cut=st.integers(0, len(RECORD.to_json()) - 1))
def test_a_record_cut_off_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(BenchError):
        Record.from_json(RECORD.to_json()[:cut])


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '"x"'])
def test_json_without_a_schema_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match=f"A record has schema 1 to {SCHEMA}; this has None"):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("schema", "mend"),
    [(0, "--force"), (SCHEMA + 1, "Update maskbench"), (99, "Update maskbench"), ("1", "--force"), (True, "--force")],
)
def test_a_schema_that_is_not_known_is_refused_with_its_number_and_the_mend(schema: Any, mend: str) -> None:
    with pytest.raises(BenchError, match=rf"schema 1 to {SCHEMA}; this has {schema!r}\. .*{mend}"):
        read(schema=schema)


def test_a_record_of_the_first_schema_is_read_with_the_defaults_of_what_came_later(data: Path) -> None:
    text = (data / "record_schema1.json").read_text("utf-8")
    old = json.loads(text)
    assert old["schema"] == 1
    found = Record.from_json(text)
    assert found.metrics == old["metrics"]
    again = json.loads(found.to_json())
    assert again["schema"] == SCHEMA
    assert {name: again[name] for name in old if name not in {"schema", "run"}} == {
        name: value for name, value in old.items() if name not in {"schema", "run"}
    }
    assert {name: again["run"][name] for name in old["run"]} == old["run"]
    later = {entry.name: entry for entry in fields(Record) if entry.name not in old}
    assert all(entry.default is not MISSING or entry.default_factory is not MISSING for entry in later.values())


def test_a_record_of_the_first_schema_keeps_its_place(data: Path) -> None:
    found = Record.from_json((data / "record_schema1.json").read_text("utf-8"))
    assert found.run.key(found.data_digest) == "8f009c6194d7"


def test_missing_and_unknown_fields_are_named() -> None:
    lacking = json.loads(RECORD.to_json())
    del lacking["metrics"]
    with pytest.raises(BenchError, match=r"A record has exactly the fields .* differ: colour, metrics"):
        Record.from_json(json.dumps(lacking | {"colour": "red"}))
    with pytest.raises(BenchError, match=r"A run has exactly the fields .* differ: colour"):
        read_run(colour="red")


@pytest.mark.parametrize(
    "changed",
    [
        {"metrics": None},
        {"metrics": {"image_auroc": "x"}},
        {"metrics": {"image_auroc": None}},
        {"metrics": {"image_auroc": True}},
        {"metrics": [0.5]},
        {"losses": {"0": 1.0}},
        {"losses": [None]},
        {"curve": [{"epoch": "1"}]},
        {"epoch": 1.5},
        {"epoch": True},
        {"category": 3},
        {"selection": "best"},
        {"selection": ["last"]},
        {"failure": None},
        {"memory": {"host": 1.5}},
        {"train": "a.png"},
        {"warnings": [1]},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_with_its_field(changed: dict[str, Any]) -> None:
    (name,) = changed
    with pytest.raises(BenchError, match=f"In a record, {name} is "):
        read(**changed)


@pytest.mark.parametrize("run", [3, None, [], "x"])
def test_a_run_that_is_no_table_is_refused(run: Any) -> None:
    with pytest.raises(BenchError, match="A record's run is a table"):
        read(run=run)


@pytest.mark.parametrize("changed", [{"seed": None}, {"synthetic": 1}, {"settings": []}, {"file_hashes": {"a": 1}}])
def test_a_run_with_a_value_of_another_type_is_refused(changed: dict[str, Any]) -> None:
    (name,) = changed
    with pytest.raises(BenchError, match=f"In a run, {name} is "):
        read_run(**changed)


def test_a_whole_number_may_stand_where_a_fraction_does() -> None:
    assert read(metrics={"image_auroc": 1}).metrics == {"image_auroc": 1}


@given(field=st.sampled_from(sorted(asdict(RECORD))), value=PLAIN)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    try:
        found = read(**{field: value})
    except BenchError:
        return
    assert Record.from_json(found.to_json()) == found


# ---- the hash


def test_the_key_covers_what_decides_the_answers_and_nothing_else() -> None:
    changed = [
        {"settings": RUN.settings | {"lr": 2e-3}},
        {"method": "memory"},
        {"preprocessing": {"height": 32, "width": 64}},
        {"precision": "bfloat16"},
        {"file_hashes": {"resnet18": "cd34"}},
        {"limit": 5},
    ]
    keys = {replace(RUN, **each).key("d1") for each in changed} | {RUN.key("d1"), RUN.key("d2")}
    assert len(keys) == len(changed) + 2
    told = {"title": "x", "profile_note": "x", "profile": "x", "group_hash": "x", "seed": 7, "name": "x"}
    assert replace(RUN, **told).key("d1") == RUN.key("d1")


def test_what_a_later_version_can_ask_for_moves_no_hash_where_it_is_not_asked() -> None:
    assert RUN.key("d1") == "423257ef4a08"  # as the first version had it
    assert len({RUN.key("d1"), *(replace(RUN, **LATER[name]).key("d1") for name in LATER)}) == 1 + len(LATER)


LATER = {
    "calibrate": {"calibrate": 0.1},
    "resolution": {"resolution": "original"},
    "compile": {"compile": True},
}


def test_the_key_is_the_same_after_json_and_for_tuples() -> None:
    assert Record.from_json(RECORD.to_json()).run.key("d1") == RUN.key("d1")
    assert replace(RUN, settings=RUN.settings | {"stages": (1, 2)}).key("d1") == RUN.key("d1")


# ---- half precision with an exponent

MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
    elements=st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=True),
)


def test_halved_by_hand() -> None:
    halves, power = to_float16(np.array([[[0.75, -0.5, 0.0]]], dtype=np.float32))
    assert power == -15  # 0.75 = 0.75 * 2^0, so that 0.75 * 2^15 = 24576 lies in [2^14, 2^15)
    assert halves.tolist() == [[[24576.0, -16384.0, 0.0]]]
    assert to_float16(np.zeros((1, 2, 2), dtype=np.float32))[1] == 0


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-8, 1.0, 1e8, 1e37])
def test_small_and_large_maps_keep_eleven_bits(size: float) -> None:
    maps = (np.linspace(0.001, 1, 1000) * size).astype(np.float32).reshape(1, 10, 100)
    found = to_float32(*to_float16(maps))
    assert np.all(np.abs(found.astype(float) - maps) <= 2.0**-11 * maps.astype(float))


@given(maps=MAPS)
def test_halving_keeps_eleven_bits_down_to_the_smallest_step_of_the_largest_value(maps: np.ndarray) -> None:
    found, given_ = to_float32(*to_float16(maps)).astype(float), maps.astype(float)
    allowed = np.maximum(2.0**-11 * np.abs(given_), 2.0**-39 * np.abs(given_).max())
    assert np.all(np.abs(found - given_) <= allowed)


@given(maps=MAPS)
def test_halving_twice_is_halving_once(maps: np.ndarray) -> None:
    once = to_float32(*to_float16(maps))
    assert np.array_equal(to_float32(*to_float16(once)), once)


def test_a_largest_value_that_rounds_up_to_a_power_of_two_moves_no_small_one() -> None:
    maps = np.array([[[1 - 2.0**-14, 3 * 2.0**-39]]], dtype=np.float32)  # the first becomes 1.0
    once = to_float32(*to_float16(maps))
    assert once[0, 0, 0] == 1.0
    assert np.array_equal(to_float32(*to_float16(once)), once)


@given(maps=MAPS)
def test_halving_keeps_the_order_and_the_sign(maps: np.ndarray) -> None:
    found, flat = to_float32(*to_float16(maps)).ravel(), maps.ravel()
    assert np.all(np.diff(found[np.argsort(flat, kind="stable")]) >= 0)
    assert np.all(found * np.sign(flat) >= 0)


# ---- answers


def answers(maps: np.ndarray | None) -> Predictions:
    blank = np.zeros((2, 1, 2), dtype=np.bool_)
    return Predictions(("a", "b"), ("good", "crack"), np.array([0.25, 0.5]), maps, blank, np.array([True, True]))


def test_rounded_changes_maps_kept_in_half_precision_only() -> None:
    given_ = answers(np.array([[[1.0, 1 / 3]], [[0.0, 2.0]]], dtype=np.float32))
    halves = given_.rounded("float16")
    assert halves.maps is not None
    assert halves.maps.dtype == np.float32
    assert halves.maps[0, 0].tolist() == [1.0, 0.333251953125]  # 1/3 in 11 bits: 1365 / 4096
    assert halves.scores is given_.scores
    assert given_.rounded("float32") is given_
    assert given_.rounded("none") is given_
    assert answers(None).rounded("float16").maps is None


def test_a_label_comes_from_the_kind_of_defect() -> None:
    assert answers(None).is_anomalous.tolist() == [False, True]
    none = Predictions((), (), np.zeros(0), None, np.zeros((0, 1, 1), dtype=np.bool_), np.zeros(0, dtype=np.bool_))
    assert none.is_anomalous.dtype == np.bool_
