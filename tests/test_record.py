"""Records: JSON round trips are exact, and a text that is not a record is a clear error."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.data.value_range import stored_value_range
from bench.errors import BenchError
from bench.preprocessing import Preprocessing
from bench.record import SCHEMA, Predictions, Record, to_float16, to_float32

TEXT = st.text(max_size=5)
INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
TABLE = st.dictionaries(TEXT, JSON, max_size=3)
NUMBERS = st.dictionaries(TEXT, FINITE, max_size=3)
FRACTIONS = st.dictionaries(TEXT, st.floats(0, 1), max_size=3)
RUN_FIELDS = st.fixed_dictionaries({"settings": TABLE, "title": TEXT, "seed": INTEGERS, "synthetic": st.booleans()})
RECORD_FIELDS = st.fixed_dictionaries(
    {
        "category": TEXT,
        "data_hash": TEXT,
        "selection": st.sampled_from(["last", "oracle"]),
        "epoch": INTEGERS,
        "metrics": FRACTIONS,
        "undefined_metrics": st.dictionaries(TEXT, TEXT, max_size=2),
        "threshold": st.none() | FINITE,
        "losses": st.lists(FINITE, max_size=3),
        "metrics_by_epoch": st.lists(NUMBERS, max_size=2),
        "method_info": TABLE,
        "memory": st.dictionaries(TEXT, INTEGERS, max_size=2),
        "train_files": st.lists(TEXT, max_size=3),
    }
)
any_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def record(make_run: Callable, make_record: Callable) -> Record:
    run = make_run(settings={"lr": 1e-3, "stages": [1, 2], "limit": None}, file_hashes={"resnet18": "ab12"})
    return make_record(run, metrics={"image_auroc": 0.5}, losses=[1.0, 0.5])


def with_checksum(document: dict[str, Any]) -> str:
    """Return the text of a document as `to_json` writes it, with the checksum of its changed content."""
    text = json.dumps({name: value for name, value in document.items() if name != "checksum"}, indent=1)
    return f'{text[:-2]},\n "checksum": "{sha256(text.encode()).hexdigest()}"\n}}'


@pytest.fixture
def read(record: Record) -> Callable[..., Record]:
    """Return a function that reads the JSON of `record` with some fields changed."""
    return lambda **changes: Record.from_json(with_checksum(json.loads(record.to_json()) | changes))


@pytest.fixture
def read_run(record: Record, read: Callable[..., Record]) -> Callable[..., Record]:
    """Return a function that reads the JSON of `record` with some fields of its run changed."""
    return lambda **changes: read(run=asdict(record.run) | changes)


# ---- JSON


@given(run_fields=RUN_FIELDS, record_fields=RECORD_FIELDS)
@any_fixture
def test_a_record_is_unchanged_by_a_round_trip_through_json(
    make_run, make_record, run_fields: dict[str, Any], record_fields: dict[str, Any]
) -> None:
    record = make_record(make_run(**run_fields), **record_fields)
    assert Record.from_json(record.to_json()) == record


def test_a_file_name_that_is_not_utf_8_is_unchanged_by_a_round_trip(record: Record) -> None:
    record = replace(record, train_files=["sch\udcf6n.png"])
    assert Record.from_json(record.to_json().encode().decode()) == record


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32(1), object(), {1, 2}])
def test_the_error_for_a_value_that_json_cannot_express_names_its_field(record: Record, value: Any) -> None:
    for changes in ({"losses": [1.0, value]}, {"method_info": {"nested": [{"x": value}]}}):
        (name,) = changes
        with pytest.raises(BenchError, match=f"A record must contain plain, finite values; its {name} does not: "):
            replace(record, **changes).to_json()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_an_error(record: Record, number: str) -> None:
    with pytest.raises(BenchError, match=f"{number} is not finite"):
        Record.from_json(record.to_json().replace("0.5", number))


@pytest.mark.parametrize("text", ["", "{", "words", "[1", '{"a": 1', "[" * 100_000], ids=lambda text: text[:8])
def test_a_text_that_is_not_json_is_an_error(text: str) -> None:
    with pytest.raises(BenchError, match="A record must be JSON"):
        Record.from_json(text)


@given(fraction=st.floats(0, 1, exclude_max=True))
@any_fixture
def test_a_record_that_is_cut_off_anywhere_is_an_error(record: Record, fraction: float) -> None:
    text = record.to_json()
    with pytest.raises(BenchError):
        Record.from_json(text[: int(fraction * len(text))])


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '"x"'])
def test_json_without_a_schema_is_an_error(text: str) -> None:
    with pytest.raises(BenchError, match=f"A record must have schema {SCHEMA}, got None"):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("schema", "fix"),
    [(0, "--force"), (SCHEMA + 1, "Update maskbench"), (99, "Update maskbench"), ("1", "--force"), (True, "--force")],
)
def test_the_error_for_another_schema_has_its_number_and_the_fix(read, schema: Any, fix: str) -> None:
    with pytest.raises(BenchError, match=rf"schema {SCHEMA}, got {schema!r}\. .*{fix}"):
        read(schema=schema)


def test_the_error_for_missing_and_unknown_fields_names_them(record: Record, read_run) -> None:
    document = json.loads(record.to_json())
    del document["metrics"]
    with pytest.raises(BenchError, match=r"A record must have exactly the fields .* differ: color, metrics"):
        Record.from_json(json.dumps(document | {"color": "red"}))
    with pytest.raises(BenchError, match=r"A run must have exactly the fields .* differ: color"):
        read_run(color="red")


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": None},
        {"metrics": {"image_auroc": "x"}},
        {"metrics": {"image_auroc": None}},
        {"metrics": {"image_auroc": True}},
        {"metrics": [0.5]},
        {"losses": {"0": 1.0}},
        {"losses": [None]},
        {"metrics_by_epoch": [{"epoch": "1"}]},
        {"epoch": 1.5},
        {"epoch": True},
        {"category": 3},
        {"selection": "best"},
        {"selection": ["last"]},
        {"failure": None},
        {"memory": {"host": 1.5}},
        {"train_files": "a.png"},
        {"warnings": [1]},
    ],
    ids=str,
)
def test_the_error_for_a_value_of_another_type_names_its_field(read, changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(BenchError, match=f"{name} of a record must be "):
        read(**changes)


@pytest.mark.parametrize("run", [3, None, [], "x"])
def test_a_run_that_is_not_a_table_is_an_error(read, run: Any) -> None:
    with pytest.raises(BenchError, match="The run must be a table"):
        read(run=run)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": None},
        {"synthetic": 1},
        {"settings": []},
        {"file_hashes": {"a": 1}},
        {"data_fingerprints": {"bolt": 3}},
        {"options": {"tasks": 3}},
    ],
    ids=str,
)
def test_the_error_for_a_value_of_another_type_in_a_run_names_its_field(read_run, changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(BenchError, match=f"{name} of a run must be "):
        read_run(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 2**63},
        {"metrics": {"image_auroc": -(10**400)}},
        {"method_info": {"rows": [1, {"count": 10**5000}]}},
    ],
    ids=["epoch", "metrics", "method_info"],
)
def test_an_integer_that_is_too_large_is_an_error(record: Record, changes: dict[str, Any]) -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    text = with_checksum(json.loads(record.to_json()) | changes)
    sys.set_int_max_str_digits(limit)
    with pytest.raises(BenchError, match="A record must be JSON with finite numbers"):
        Record.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"latency": {"median_ms": "1"}},
        {"latency": {"samples_ms": 1.0}},
        {"artifacts": {"sha256": {}}},
        {"artifacts": {"model": "yes"}},
        {"artifacts": {"pictures": []}},
        {"artifacts": {"pictures_sha256": {"best": None}}},
    ],
    ids=str,
)
def test_the_error_for_a_value_of_another_type_inside_a_table_names_it(read, changes: dict[str, Any]) -> None:
    ((table, values),) = changes.items()
    (name,) = values
    with pytest.raises(BenchError, match=rf"{table}\.{name} of a record must be "):
        read(**changes)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [("tasks", "limit", "2"), ("evaluation", "calibrate", None), ("evaluation", "resolution", "half"),
     ("compute", "precision", 16), ("compute", "compile", 1)],
)  # fmt: skip
def test_the_error_for_a_wrong_or_missing_option_names_it(
    record: Record, read_run, group: str, name: str, value: Any
) -> None:
    options = record.run.options
    for values in (options[group] | {name: value}, {key: options[group][key] for key in options[group] if key != name}):
        with pytest.raises(BenchError, match=rf"options\.{group}\.{name} of a record must be "):
            read_run(options=options | {group: values})
    with pytest.raises(BenchError, match=rf"options\.{group}\."):
        read_run(options={key: options[key] for key in options if key != group})


@pytest.mark.parametrize("value", [-0.1, 1.1, 1e308])
def test_a_metric_outside_of_0_to_1_is_an_error(read, value: float) -> None:
    with pytest.raises(BenchError, match=r"metrics\.image_auroc of a record must be from 0 to 1"):
        read(metrics={"image_auroc": value})


def test_the_keys_of_a_sweep_must_be_settings(read_run) -> None:
    with pytest.raises(BenchError, match="sweep_keys of a run must be settings of it, got 'depth'"):
        read_run(sweep_keys=["depth"])


def test_a_change_of_a_value_is_an_error(record: Record) -> None:
    text = record.to_json()
    assert Record.from_json(text) == record
    for changed in (text.replace('"image_auroc": 0.5', '"image_auroc": 0.6'), text + "\n", text.replace("\n", "")):
        assert changed != text
        with pytest.raises(BenchError, match="its checksum differs"):
            Record.from_json(changed)


def test_an_integer_is_valid_for_a_field_of_floats(read) -> None:
    assert read(metrics={"image_auroc": 1}).metrics == {"image_auroc": 1}


@given(name=st.sampled_from(sorted(Record.__dataclass_fields__)), value=JSON)
@any_fixture
def test_any_value_in_any_field_is_read_or_an_error(read, name: str, value: Any) -> None:
    try:
        record = read(**{name: value})
    except BenchError:
        return
    assert Record.from_json(record.to_json()) == record


def test_a_run_has_its_options_as_properties(make_run) -> None:
    run = make_run(limit=5, calibrate=0.25, resolution="original", precision="float16", compile=True)
    assert (run.limit, run.calibrate, run.resolution) == (5, 0.25, "original")
    assert (run.precision, run.compile) == ("float16", True)


# ---- float16 with an exponent

MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
    elements=st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=True),
)


def test_float16_values_and_exponent_by_hand() -> None:
    halves, exponent = to_float16(np.array([[[0.75, -0.5, 0.0]]], dtype=np.float32))
    assert exponent == -15  # 0.75 = 0.75 * 2^0, so that 0.75 * 2^15 = 24576 lies in [2^14, 2^15)
    assert halves.tolist() == [[[24576.0, -16384.0, 0.0]]]
    assert to_float16(np.zeros((1, 2, 2), dtype=np.float32))[1] == 0


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-8, 1.0, 1e8, 1e37])
def test_small_and_large_maps_keep_eleven_bits(scale: float) -> None:
    maps = (np.linspace(0.001, 1, 1000) * scale).astype(np.float32).reshape(1, 10, 100)
    restored = to_float32(*to_float16(maps))
    assert np.all(np.abs(restored.astype(float) - maps) <= 2.0**-11 * maps.astype(float))


@given(maps=MAPS)
def test_the_error_is_at_most_eleven_bits_or_a_small_part_of_the_largest_value(maps: np.ndarray) -> None:
    restored, expected = to_float32(*to_float16(maps)).astype(float), maps.astype(float)
    tolerance = np.maximum(2.0**-11 * np.abs(expected), 2.0**-39 * np.abs(expected).max())
    assert np.all(np.abs(restored - expected) <= tolerance)


@given(maps=MAPS)
def test_the_conversion_to_float16_is_idempotent(maps: np.ndarray) -> None:
    once = to_float32(*to_float16(maps))
    assert np.array_equal(to_float32(*to_float16(once)), once)


def test_the_conversion_is_idempotent_if_the_largest_value_rounds_up_to_a_power_of_two() -> None:
    maps = np.array([[[1 - 2.0**-14, 3 * 2.0**-39]]], dtype=np.float32)  # the first becomes 1.0
    once = to_float32(*to_float16(maps))
    assert once[0, 0, 0] == 1.0
    assert np.array_equal(to_float32(*to_float16(once)), once)


@given(maps=MAPS)
def test_the_conversion_keeps_order_and_sign(maps: np.ndarray) -> None:
    restored, flat = to_float32(*to_float16(maps)).ravel(), maps.ravel()
    assert np.all(np.diff(restored[np.argsort(flat, kind="stable")]) >= 0)
    assert np.all(restored * np.sign(flat) >= 0)


# ---- predictions


@pytest.fixture
def two_images(make_predictions) -> Callable[[np.ndarray | None], Predictions]:
    """Return a function of the maps: predictions of a good and a defective image."""
    masks = np.zeros((2, 1, 2), dtype=np.bool_)
    return lambda maps: make_predictions(count=2, defects=("good", "crack"), maps=maps, masks=masks)


def test_rounded_changes_maps_only_if_they_are_stored_in_float16(two_images) -> None:
    predictions = two_images(np.array([[[1.0, 1 / 3]], [[0.0, 2.0]]], dtype=np.float32))
    rounded = predictions.rounded("float16")
    assert rounded.maps is not None
    assert rounded.maps.dtype == np.float32
    assert rounded.maps[0, 0].tolist() == [1.0, 0.333251953125]  # 1/3 in 11 bits: 1365 / 4096
    assert rounded.scores is predictions.scores
    assert predictions.rounded("float32") is predictions
    assert predictions.rounded("none") is predictions
    assert two_images(None).rounded("float16").maps is None


def test_the_label_of_an_image_is_its_defect_type(two_images, make_predictions) -> None:
    assert two_images(None).is_anomalous.tolist() == [False, True]
    assert make_predictions(count=0, defects=()).is_anomalous.dtype == np.bool_


@pytest.mark.parametrize("values", [{"height": "x"}, {"height": 0}, {"hook": 1}, {"crop": [4]}, {"resample": "box"}])
def test_the_preprocessing_of_a_record_is_validated(values: dict[str, object]) -> None:
    with pytest.raises(BenchError, match="reprocessing"):
        Preprocessing.from_record(values)


@pytest.mark.parametrize("values", [{"black": 1}, {"black": "x", "white": 1.0}, [1], "text"])
def test_the_value_range_of_a_record_is_validated(values: object) -> None:
    with pytest.raises(BenchError, match="value_range of a record must have numbers"):
        stored_value_range(Preprocessing(), {"value_range": values})
    assert stored_value_range(Preprocessing(), {"value_range": {"black": 1, "white": 9.0}}).white == 9.0
