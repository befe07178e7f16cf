"""Settings: values from TOML or text become the types that a dataclass declares, or are refused in words."""

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
def test_a_value_becomes_the_type_that_is_declared(key: str, value: Any, expected: Any) -> None:
    found = parse(key, value, HINTS[key])
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", 2.5, r"epochs is an integer; 2\.5 is not"),
        ("epochs", "2.5", r"epochs is an integer; '2\.5' is not"),
        ("epochs", 3.0, r"epochs is an integer; 3\.0 is not"),
        ("epochs", True, "epochs is an integer; True is not"),
        ("epochs", "many", "epochs is an integer"),
        ("epochs", [1], r"epochs is an integer; \[1\] is not"),
        ("epochs", "9" * 5000, "epochs is an integer"),
        ("lr", "nan", "lr is a finite number; 'nan' is not"),
        ("lr", float("nan"), "lr is a finite number"),
        ("lr", float("inf"), "lr is a finite number"),
        ("lr", "-inf", "lr is a finite number"),
        ("lr", "1e999", "lr is a finite number"),
        ("lr", 10**400, "lr is a finite number"),
        ("lr", False, "lr is a finite number"),
        ("lr", {}, "lr is a finite number"),
        ("jitter", "maybe", "jitter is yes or no; 'maybe' is not"),
        ("jitter", 2, "jitter is yes or no"),
        ("backbone", 50, "backbone is text; 50 is not"),
        ("backbone", ["a"], "backbone is text"),
        ("distance", "sqared", r"one of euclidean, squared; 'sqared' is not\. Did you mean 'squared'"),
        ("distance", 3, "distance is one of euclidean, squared; '3' is not"),
        ("stages", "1,x", "stages is an integer; 'x' is not"),
        ("stages", "1,", "stages is an integer; '' is not"),
        ("stages", {"a": 1}, "stages is an integer"),
        ("betas", "0.9", "betas takes 2 values separated by commas; '0.9' has 1"),
        ("betas", [0.1, 0.2, 0.3], "has 3"),
        ("mask", "unform", r"one of uniform; .* Did you mean 'uniform'\? Or: mask is a finite number"),
        ("mask", "nan", "mask is a finite number"),
        ("limit", "nothing", "limit is a finite number; 'nothing' is not. Or: limit is none"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_came(key: str, value: Any, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        parse(key, value, HINTS[key])


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [(bool | int, 1, 1), (int | bool, True, True), (int | float, 2.0, 2.0), (float | int, 2, 2)],
)
def test_a_union_takes_a_value_as_its_own_type_first(kind: Any, value: Any, expected: Any) -> None:
    assert type(parse("key", value, kind)) is type(expected)


@pytest.mark.parametrize("kind", [list[int], dict[str, int], complex, Any, tuple])
def test_a_type_that_no_setting_can_have_is_told_to_who_declared_it(kind: Any) -> None:
    with pytest.raises(BenchError, match=r"key is declared as .* Declare it so"):
        parse("key", "1", kind)


ANY_TOML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(HINTS)), value=ANY_TOML)
def test_any_value_is_typed_or_refused_and_a_typed_one_stays_as_it_is(key: str, value: Any) -> None:
    try:
        found = parse(key, value, HINTS[key])
    except BenchError:
        return
    assert parse(key, found, HINTS[key]) == found


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_the_way_through_text(value: float) -> None:
    assert parse("lr", str(value), float) == value


def test_resolve_lays_values_over_the_defaults_and_tells_each_origin() -> None:
    found, origin = resolve(Settings, {"epochs": ("5", "--set"), "lr": (1e-3, "profile demo")}, "aminet")
    assert found == Settings(epochs=5, lr=1e-3)
    assert origin == dict.fromkeys(HINTS, "default") | {"epochs": "--set", "lr": "profile demo"}


def test_resolve_refuses_an_unknown_setting_with_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"'epoch' is not a setting of aminet\. Did you mean 'epochs'\?.*backbone"):
        resolve(Settings, {"epoch": (5, "--set")}, "aminet")


def test_resolve_tells_where_a_wrong_value_came_from() -> None:
    with pytest.raises(BenchError, match=r"epochs \(profile demo\) is an integer; 2\.5 is not"):
        resolve(Settings, {"epochs": (2.5, "profile demo")}, "aminet")


def test_a_refusal_by_the_settings_themselves_is_told_in_their_words() -> None:
    @dataclass(frozen=True)
    class Odd:
        width: int = 4

        def __post_init__(self) -> None:
            if self.width % 2:
                raise ValueError("width must be even")

    assert resolve(Odd, {"width": ("6", "")}, "odd")[0].width == 6
    with pytest.raises(BenchError, match=r"The settings of odd are refused .*: width must be even"):
        resolve(Odd, {"width": ("5", "")}, "odd")


def test_settings_that_are_no_dataclass_or_have_no_default_are_told_to_their_author() -> None:
    @dataclass(frozen=True)
    class Bare:
        width: int

    with pytest.raises(BenchError, match=r"missing 1 required .*'width'"):
        resolve(Bare, {}, "bare")
    with pytest.raises(BenchError, match="The Settings of plain are a dataclass"):
        resolve(type("Settings", (), {}), {}, "plain")


def test_tables_are_shaped_by_keys_by_any_key_by_type_or_not_at_all() -> None:
    shape = {"name": str, "free": {"*": object}, "numbers": {"*": int}}
    validate({"name": "x", "free": {"a": [1, {}]}, "numbers": {"b": 1}}, shape, "a file")
    for value, words in [
        ({"nam": "x"}, r"'nam' is not a table of a file\. Did you mean 'name'"),
        ({"name": 3}, "name is text; 3 is not"),
        ({"numbers": {"b": "x"}}, r"numbers\.b is an integer; 'x' is not"),
        ({"numbers": 3}, r"\[numbers\] is a table of a file; 3 is none"),
    ]:
        with pytest.raises(BenchError, match=words):
            validate(value, shape, "a file")


def test_known_names_what_there_is() -> None:
    check_known(["a"], ["a", "b"], "a letter")
    with pytest.raises(BenchError, match=r"^'zzz' is not a letter\. There are: a, b\.$"):
        check_known(["a", "zzz"], ["a", "b"], "a letter")
    with pytest.raises(BenchError, match="There are: none"):
        check_known(["a"], [], "a letter")


def test_nearest_is_silent_where_nothing_is_near() -> None:
    assert suggestion("epcohs", ["epochs", "lr"]) == " Did you mean 'epochs'?"
    assert suggestion("xyz", ["epochs", "lr"]) == ""
