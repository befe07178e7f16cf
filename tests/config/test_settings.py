"""Settings: values of TOML or text are converted to the types that a dataclass declares, or raise a clear error."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config.settings import parse, resolve, validate
from bench.errors import BenchError, check_known, suggestion


@dataclass(frozen=True)
class Settings:
    epochs: int = 10
    lr: float = 1e-4
    jitter: bool = False
    backbone: str = "resnet18"
    distance: Literal["euclidean", "squared"] = "euclidean"
    stages: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.9, 0.95)
    layers: tuple[str, ...] = ()
    mask: Literal["uniform"] | float = "uniform"
    limit: float | None = None
    device: int | str = 0


HINTS = dict(Settings.__annotations__)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", 5, 5),
        ("epochs", "5", 5),
        ("epochs", " 5 ", 5),
        ("epochs", "-1", -1),
        ("lr", 1e-3, 1e-3),
        ("lr", "1e-3", 1e-3),
        ("lr", 1, 1.0),
        ("lr", "1", 1.0),
        ("jitter", True, True),
        ("jitter", "yes", True),
        ("jitter", "True", True),
        ("jitter", "off", False),
        ("jitter", 0, False),
        ("backbone", "wide_resnet50_2.tv_in1k", "wide_resnet50_2.tv_in1k"),
        ("backbone", "50", "50"),
        ("distance", "squared", "squared"),
        ("distance", " squared", "squared"),
        ("stages", [1, 2, 3], (1, 2, 3)),
        ("stages", "1,2, 3", (1, 2, 3)),
        ("stages", 3, (3,)),
        ("stages", "", ()),
        ("stages", [], ()),
        ("betas", "0.5,0.6", (0.5, 0.6)),
        ("layers", "layer2, layer3", ("layer2", "layer3")),
        ("mask", "uniform", "uniform"),
        ("mask", "0.5", 0.5),
        ("mask", 1, 1.0),
        ("limit", "none", None),
        ("limit", "2.5", 2.5),
        ("device", "1", 1),
        ("device", 1, 1),
        ("device", "cuda:1", "cuda:1"),
    ],
)
def test_a_value_is_converted_to_the_declared_type(key: str, value: Any, expected: Any) -> None:
    parsed = parse(key, value, HINTS[key])
    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epochs", 2.5, r"epochs must be an integer, got 2\.5"),
        ("epochs", "2.5", r"epochs must be an integer, got '2\.5'"),
        ("epochs", 3.0, r"epochs must be an integer, got 3\.0"),
        ("epochs", True, "epochs must be an integer, got True"),
        ("epochs", "many", "epochs must be an integer"),
        ("epochs", [1], r"epochs must be an integer, got \[1\]"),
        ("epochs", "9" * 5000, "epochs must be an integer"),
        ("lr", "nan", "lr must be a finite number, got 'nan'"),
        ("lr", float("nan"), "lr must be a finite number"),
        ("lr", float("inf"), "lr must be a finite number"),
        ("lr", "-inf", "lr must be a finite number"),
        ("lr", "1e999", "lr must be a finite number"),
        ("lr", 10**400, "lr must be a finite number"),
        ("lr", False, "lr must be a finite number"),
        ("lr", {}, "lr must be a finite number"),
        ("jitter", "maybe", "jitter must be true or false, got 'maybe'"),
        ("jitter", 2, "jitter must be true or false"),
        ("backbone", 50, "backbone must be a string, got 50"),
        ("backbone", ["a"], "backbone must be a string"),
        ("distance", "sqared", r"one of euclidean, squared; got 'sqared'\. Did you mean 'squared'"),
        ("distance", 3, "distance must be one of euclidean, squared; got '3'"),
        ("stages", "1,x", "stages must be an integer, got 'x'"),
        ("stages", "1,", "stages must be an integer, got ''"),
        ("stages", {"a": 1}, "stages must be an integer"),
        ("betas", "0.9", "betas must have 2 values separated by commas; '0.9' has 1"),
        ("betas", [0.1, 0.2, 0.3], "has 3"),
        ("mask", "unform", r"one of uniform; .* Did you mean 'uniform'\? Or: mask must be a finite number"),
        ("mask", "nan", "mask must be a finite number"),
        ("limit", "nothing", "limit must be a finite number, got 'nothing'. Or: limit must be none"),
    ],
)
def test_the_error_for_a_wrong_value_states_the_value(key: str, value: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        parse(key, value, HINTS[key])


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [(bool | int, 1, 1), (int | bool, True, True), (int | float, 2.0, 2.0), (float | int, 2, 2)],
)
def test_a_union_keeps_a_value_that_has_one_of_its_types(hint: Any, value: Any, expected: Any) -> None:
    assert type(parse("key", value, hint)) is type(expected)


@pytest.mark.parametrize("hint", [list[int], dict[str, int], complex, Any, tuple])
def test_a_type_that_settings_cannot_have_is_an_error(hint: Any) -> None:
    with pytest.raises(BenchError, match=r"key must be declared as .* Change the declaration"):
        parse("key", "1", hint)


ANY_TOML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(HINTS)), value=ANY_TOML)
def test_any_value_is_parsed_or_an_error_and_parsing_is_idempotent(key: str, value: Any) -> None:
    try:
        parsed = parse(key, value, HINTS[key])
    except BenchError:
        return
    assert parse(key, parsed, HINTS[key]) == parsed


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_unchanged_by_a_round_trip_through_text(value: float) -> None:
    assert parse("lr", str(value), float) == value


def test_resolve_replaces_defaults_and_returns_the_origin_of_each_value() -> None:
    values, origin = resolve(Settings, {"epochs": ("5", "--set"), "lr": (1e-3, "profile demo")}, "aminet")
    assert values == Settings(epochs=5, lr=1e-3)
    assert origin == dict.fromkeys(HINTS, "default") | {"epochs": "--set", "lr": "profile demo"}


def test_the_error_for_an_unknown_setting_suggests_a_name() -> None:
    with pytest.raises(BenchError, match=r"'epoch' is not a setting of aminet\. Did you mean 'epochs'\?.*backbone"):
        resolve(Settings, {"epoch": (5, "--set")}, "aminet")


def test_the_error_for_a_wrong_value_states_its_origin() -> None:
    with pytest.raises(BenchError, match=r"epochs \(profile demo\) must be an integer, got 2\.5"):
        resolve(Settings, {"epochs": (2.5, "profile demo")}, "aminet")


def test_an_error_of_post_init_is_part_of_the_message() -> None:
    @dataclass(frozen=True)
    class EvenWidth:
        width: int = 4

        def __post_init__(self) -> None:
            if self.width % 2:
                raise ValueError("width must be even")

    assert resolve(EvenWidth, {"width": ("6", "")}, "even")[0].width == 6
    with pytest.raises(BenchError, match=r"The settings of even are invalid: width must be even\."):
        resolve(EvenWidth, {"width": ("5", "")}, "even")


def test_settings_without_default_or_that_are_not_a_dataclass_are_an_error() -> None:
    @dataclass(frozen=True)
    class WithoutDefault:
        width: int

    with pytest.raises(BenchError, match=r"missing 1 required .*'width'"):
        resolve(WithoutDefault, {}, "inpaint")
    with pytest.raises(BenchError, match="Settings of plain must be a dataclass"):
        resolve(type("Settings", (), {}), {}, "plain")


def test_validate_checks_keys_types_and_nested_tables() -> None:
    shape = {"name": str, "free": {"*": object}, "numbers": {"*": int}}
    validate({"name": "x", "free": {"a": [1, {}]}, "numbers": {"b": 1}}, shape, "a file")
    for value, message in [
        ({"nam": "x"}, r"'nam' is not a table of a file\. Did you mean 'name'"),
        ({"name": 3}, "name must be a string, got 3"),
        ({"numbers": {"b": "x"}}, r"numbers\.b must be an integer, got 'x'"),
        ({"numbers": 3}, r"\[numbers\] must be a table of a file, got 3"),
    ]:
        with pytest.raises(BenchError, match=message):
            validate(value, shape, "a file")


def test_the_error_for_an_unknown_name_lists_the_known_names() -> None:
    check_known(["a"], ["a", "b"], "a letter")
    with pytest.raises(BenchError, match=r"^'zzz' is not a letter\. Known: a, b\.$"):
        check_known(["a", "zzz"], ["a", "b"], "a letter")
    with pytest.raises(BenchError, match="Known: none"):
        check_known(["a"], [], "a letter")


def test_a_suggestion_is_empty_if_no_name_is_similar() -> None:
    assert suggestion("epcohs", ["epochs", "lr"]) == " Did you mean 'epochs'?"
    assert suggestion("xyz", ["epochs", "lr"]) == ""
