"""Config: bench.toml and the options of a call become one plan, with the origin of each value."""

import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config.bench_toml import Config, cache_folder, load_config
from bench.config.method_specs import check_setting_names
from bench.config.options import Options
from bench.config.plan import Plan, make_plan
from bench.errors import BenchError
from bench.registry import names

METHODS = ("floor", "inpaint", "memory")

TABLES: dict[str, Any] = {
    "paths": {"runs": "results", "data": {"real": "~/real"}, "methods": ["mine", "~/ours"]},
    "profile": {
        "demo": {"profile_note": "small", "dataset": "drawn", "k": [4], "set": {"inpaint": {"lr": 1}}},
        "paper": {"dataset": "real", "set": {"inpaint": {"lr": 2, "width": 768, "depth": 8}}},
    },
    "campaign": {
        "table": {
            "about": "a table",
            "profile": "paper",
            "k": [2, 4],
            "method": ["inpaint", "jittered"],
            "set": {"inpaint": {"width": 96}},
        },
    },
    "alias": {"jittered": {"method": "inpaint", "title": "Inpaint‡", "set": {"jitter": True, "depth": 2}}},
    "category": {"real": {"bolt": {"inpaint": {"depth": 3}}}},
}


@dataclass(frozen=True)
class Inpaint:
    lr: float = 0.5
    width: int = 32
    depth: int = 1
    jitter: bool = False


@dataclass(frozen=True)
class Memory:
    width: int = 16


def planned(tables: dict[str, Any] = TABLES, *, set_: Mapping[str, str] | None = None, **given: Any) -> Plan:
    where = {key: given.pop(key) for key in ("profile", "campaign", "paths") if key in given}
    return make_plan(Config(tables), METHODS, options={"method": "inpaint"} | given, settings=set_, **where)


# ---- precedence and origin


def test_an_option_beats_the_campaign_which_beats_the_profile_which_beats_the_default() -> None:
    assert planned().options.k == (4,)
    assert planned(campaign="table").options.k == (2, 4)
    assert planned(campaign="table", k="8").options.k == (8,)
    assert planned(profile="paper").options.k == Options().k


def test_every_option_and_path_tells_its_origin() -> None:
    origin = planned(campaign="table", seed="1,2", paths={"runs": Path("here")}).origin
    assert origin["k"] == "campaign table"
    assert origin["dataset"] == "profile paper"
    assert origin["seed"] == "--seed"
    assert origin["limit"] == "default"
    assert origin["profile"] == "campaign table"
    assert origin["runs"] == "--runs"
    assert origin["data"] == "[paths.data]"
    assert origin["weights"] == "default"
    assert origin.keys() == {entry.name for entry in fields(Options)} | {"profile", "runs", "cache", "weights", "data"}


def test_a_campaign_names_its_profile_and_the_call_may_name_another() -> None:
    assert planned().profile == "demo"
    assert planned(campaign="table").profile == "paper"
    again = planned(campaign="table", profile="demo")
    assert (again.profile, again.origin["profile"], again.options.dataset) == ("demo", "--profile", "drawn")


def test_settings_are_laid_from_profile_to_campaign_to_alias_to_category_to_the_call() -> None:
    (choice,) = planned(campaign="table", method="jittered", set_={"jittered.lr": "7"}).method_specs
    found, origin = choice.resolve(Inpaint, "bolt")
    assert found == Inpaint(lr=7.0, width=96, depth=3, jitter=True)
    assert origin == {
        "lr": "--set",
        "width": "campaign table",
        "depth": "[category.real.bolt]",
        "jitter": "alias jittered",
    }
    assert choice.resolve(Inpaint, "all")[0].depth == 2
    assert planned(profile="paper").method_specs[0].resolve(Inpaint, "tile")[0] == Inpaint(lr=2.0, width=768, depth=8)


def test_settings_of_categories_are_those_of_the_plans_data_set_only() -> None:
    (choice,) = planned(method="jittered").method_specs
    assert choice.by_category == {}


def test_an_alias_has_its_title_and_a_file_its_own_name() -> None:
    one, other = planned(method="jittered,floor").method_specs
    assert (one.name, one.method, one.title) == ("jittered", "inpaint", "Inpaint‡")
    assert (other.name, other.method, other.title) == ("floor", "floor", "floor")


def test_all_is_every_file_and_every_alias_once() -> None:
    assert [choice.name for choice in planned(method="all").method_specs] == ["floor", "inpaint", "jittered", "memory"]


def test_what_is_named_twice_is_done_once() -> None:
    found = planned(method="floor,floor,memory", seed="1,0,1", k="4,4").options
    assert (found.method, found.seed, found.k) == (("floor", "memory"), (1, 0), (4,))


# ---- --set


def test_a_plain_key_goes_to_every_method_that_has_it_and_the_others_ignore_it() -> None:
    choices = planned(method="inpaint,memory", set_={"width": "7", "depth": "5"}).method_specs
    check_setting_names(choices, {"inpaint": Inpaint, "memory": Memory})
    inpaint, memory = choices
    assert inpaint.resolve(Inpaint, "all")[0] == Inpaint(lr=1.0, width=7, depth=5)
    assert memory.resolve(Memory, "all") == (Memory(width=7), {"width": "--set"})


def test_a_plain_key_that_no_method_has_is_refused_with_the_nearest() -> None:
    choices = planned(method="inpaint,memory", set_={"widht": "7"}).method_specs
    with pytest.raises(BenchError, match=r"'widht' is not a setting of inpaint or memory\. Did you mean 'width'"):
        check_setting_names(choices, {"inpaint": Inpaint, "memory": Memory})
    with pytest.raises(BenchError, match=r"'depth' is not a setting of memory\."):
        check_setting_names(planned(method="memory", set_={"depth": "1"}).method_specs, {"memory": Memory})


def test_a_key_for_one_method_beats_a_plain_one_and_leaves_the_others_alone() -> None:
    inpaint, memory = planned(method="inpaint,memory", set_={"memory.width": "9", "width": "7"}).method_specs
    assert inpaint.resolve(Inpaint, "all")[0].width == 7
    assert memory.resolve(Memory, "all")[0].width == 9


def test_a_key_for_one_method_that_it_does_not_have_is_refused() -> None:
    (choice,) = planned(method="memory", set_={"memory.depth": "9"}).method_specs
    with pytest.raises(BenchError, match="'depth' is not a setting of memory"):
        choice.resolve(Memory, "all")


def test_a_key_for_a_method_that_is_not_run_is_refused() -> None:
    with pytest.raises(BenchError, match=r"--set memory\.width names a method that is not run; these are: inpaint"):
        planned(set_={"memory.width": "9"})


def test_a_wrong_value_of_a_setting_tells_where_it_stands() -> None:
    (choice,) = planned(set_={"width": "2.5"}).method_specs
    with pytest.raises(BenchError, match=r"width \(--set\) is an integer; '2\.5' is not"):
        choice.resolve(Inpaint, "all")


# ---- what is refused


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"profil": {}}, r"'profil' is not a table of bench\.toml\. Did you mean 'profile'"),
        ({"paths": {"run": "x"}}, r"'run' is not a key of \[paths\]\. Did you mean 'runs'"),
        ({"paths": {"runs": 3}}, r"paths\.runs is text; 3 is not"),
        ({"paths": {"methods": [3]}}, r"paths\.methods is text; 3 is not"),
        ({"paths": {"data": "x"}}, r"\[paths\.data\] is a table of bench\.toml; 'x' is none"),
        ({"profile": {"mine": {"seeds": [0]}}}, r"'seeds' is not a key of \[profile\.mine\]\. Did you mean 'seed'"),
        ({"profile": {"mine": {"about": "x"}}}, r"'about' is not a key of \[profile\.mine\]"),
        ({"profile": {"mine": 3}}, r"\[profile\.mine\] is a table"),
        ({"profile": {"mine": {"profile_note": 3}}}, r"profile\.mine\.note is text"),
        ({"profile": {"mine": {"set": {"inpaint": 3}}}}, r"\[profile\.mine\.set\.inpaint\] is a table"),
        ({"campaign": {"mine": {"shared": {}}}}, r"'shared' is not a key of \[campaign\.mine\]"),
        ({"campaign": {"mine": {"profile": ["demo"]}}}, r"campaign\.mine\.profile is text"),
        ({"alias": {"mine": {"name": "x"}}}, r"'name' is not a key of \[alias\.mine\]"),
        ({"alias": {"mine": {"set": []}}}, r"\[alias\.mine\.set\] is a table"),
        ({"alias": {"../mine": {"method": "inpaint"}}}, r"An alias is a folder .* '\.\./mine' is not"),
        ({"alias": {"a.b": {"method": "inpaint"}}}, "An alias is a folder"),
        ({"category": {"real": {"bolt": {"inpaint": 3}}}}, r"\[category\.real\.bolt\.inpaint\] is a table"),
        ({"paths": []}, r"\[paths\] is a table"),
    ],
)
def test_a_bench_toml_that_is_none_is_refused_with_the_place(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        Config(TABLES | changed)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"profile": "dmo"}, r"'dmo' is not a profile\. Did you mean 'demo'\? There are: demo, paper"),
        ({"campaign": "tabel"}, r"'tabel' is not a campaign\. Did you mean 'table'"),
        ({"method": "memroy"}, r"'memroy' is not a method\. Did you mean 'memory'"),
        ({"seeds": "0"}, r"'seeds' is not an option\. Did you mean 'seed'"),
        ({"seed": "one"}, "--seed is an integer; 'one' is not"),
        ({"selection": "best"}, "--selection is one of last, oracle, both; 'best' is not"),
        ({"keep_model": "perhaps"}, "--keep-model is yes or no"),
        ({"batch": "0"}, "batch is 1 or more; --batch gives 0"),
        ({"every": 0}, "every is 1 or more; --every gives 0"),
        ({"limit": -1}, "limit is 0 or more; --limit gives -1"),
        ({"threads": -1}, "threads is 0 or more"),
        ({"seed": ""}, "A run needs at least one seed; --seed gives none"),
        ({"method": ""}, "A run needs at least one method"),
        ({"timeout": "-1"}, "timeout is 0 or more; --timeout gives -1"),
        ({"gpus_per_task": "1.5"}, r"a part of one GPU or for whole ones; --gpus-per-task gives 1\.5"),
        ({"gpus_per_task": 0.0}, "--gpus-per-task gives 0"),
        ({"executor": "slurm"}, "--executor is one of local, process, ray; 'slurm' is not"),
    ],
)
def test_an_unknown_name_or_a_value_out_of_range_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        planned(**given)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"batch": 2.5}, r"batch \(profile mine\) is an integer; 2\.5 is not"),
        ({"batch": 0}, "batch is 1 or more; profile mine gives 0"),
        ({"k": []}, "at least one k; profile mine gives none"),
        ({"set": {"inpant": {}}}, r"'inpant' is not a file in methods/, .*profile mine sets\. Did you mean 'inpaint'"),
        ({"set": {"jittered": {}}}, "'jittered' is not a file in methods/"),
    ],
)
def test_a_profile_with_a_wrong_value_is_refused_by_name(profile: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchError, match=words):
        planned(TABLES | {"profile": {"mine": profile}}, profile="mine")


def test_a_category_table_that_names_no_method_is_refused() -> None:
    tables = TABLES | {"category": {"drawn": {"bolt": {"inpant": {"depth": 3}}}}}
    with pytest.raises(BenchError, match=r"'inpant' is not a file .*\[category\.drawn\.bolt\] sets"):
        planned(tables)


ANY_TOML = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LIKELY = st.sampled_from(["1", 2, "0,1", [0], "inpaint", "all", "none", "last", "both", "float16", "yes", {}, None])
PLACES = [(), ("paths",), ("profile", "demo"), ("campaign", "table"), ("alias", "jittered"), ("category", "real")]
KEYS = [*(entry.name for entry in fields(Options)), "paths", "data", "profile", "demo", "set", "over", "inpaint", "lr"]


@given(
    changes=st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(KEYS), LIKELY | ANY_TOML), max_size=2),
    options=st.dictionaries(st.sampled_from([entry.name for entry in fields(Options)]), LIKELY | ANY_TOML, max_size=2),
    keys=st.dictionaries(st.sampled_from(["lr", "width", "memory.lr", ".", ""]), st.text(max_size=3), max_size=2),
    over=st.dictionaries(st.sampled_from(["lr", "width", "memory.lr", ".", ""]), st.text(max_size=3), max_size=2),
    campaign=st.sampled_from([None, "table"]),
)
@settings(deadline=None, max_examples=300)
def test_any_tables_and_options_give_a_plan_or_a_bench_error(
    changes: list[tuple[tuple[str, ...], str, Any]],
    said: dict[str, Any],
    keys: dict[str, str],
    over: dict[str, str],
    campaign: str | None,
) -> None:
    tables: dict[str, Any] = deepcopy(TABLES)
    for place, key, value in changes:
        table = tables
        for step in place:
            table = table.get(step) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table[key] = value
    try:
        given = {"settings": keys, "over": over, "campaign": campaign}
        found = make_plan(Config(tables), METHODS, options={"method": "memory"} | said, **given)
    except BenchError:
        return
    assert found.method_specs
    assert found.options.batch >= 1
    assert all(isinstance(choice.merged("all"), dict) for choice in found.method_specs)
    assert found.origin.keys() >= {entry.name for entry in fields(Options)}


# ---- paths


def test_folders_come_from_options_then_paths_then_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    found = planned()
    assert (found.runs, found.cache, found.weights) == (Path("results"), tmp_path / ".cache" / "maskbench", None)
    assert found.data == tmp_path / ".cache" / "maskbench" / "drawn"
    assert planned(profile="paper").data == tmp_path / "real"
    given = planned(profile="paper", paths={"data": Path("~/mine"), "weights": Path("w"), "runs": None})
    assert (given.data, given.weights, given.runs) == (tmp_path / "mine", Path("w"), Path("results"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder(Config(TABLES)) == Path("/elsewhere/maskbench")


def test_a_home_that_is_not_there_is_told() -> None:
    with pytest.raises(BenchError, match="~nobody-of-this-name/x has none"):
        planned(paths={"data": Path("~nobody-of-this-name/x")})


def test_the_users_folders_of_methods_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert Config(TABLES).methods() == (Path("mine"), Path("/home/me/ours"))
    assert Config({"paths": {"methods": "mine"}}).methods() == (Path("mine"),)
    assert Config({}).methods() == ()


# ---- reading


def test_the_shipped_file_alone_is_read_where_the_folder_has_none(tmp_path: Path) -> None:
    shipped = load_config(tmp_path)
    assert [path.name for path in shipped.files] == ["bench.toml"]
    assert {"demo", "code", "paper"} <= set(shipped.names("profile"))
    assert {"table1", "table2", "table3", "table4", "figure8"} <= set(shipped.names("campaign"))
    assert shipped.title("aminet_jitter") == "AMI-Net‡"
    assert load_config(shipped.files[0].parent).files == shipped.files


def test_the_shipped_file_tells_every_option_and_the_value_that_holds_without_it() -> None:
    (shipped,) = load_config(Path(__file__)).files
    told = re.findall(r"^# (\w+ = \S.*?) +# .+$", shipped.read_text(encoding="utf-8"), re.MULTILINE)
    options = {entry.name for entry in fields(Options)}
    told = tomllib.loads("\n".join(line for line in told if line.partition(" ")[0] in options))
    assert list(told) == [entry.name for entry in fields(Options)]
    assert told == {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(Options()).items()}


def test_every_shipped_profile_and_campaign_makes_a_plan(tmp_path: Path) -> None:
    shipped = load_config(tmp_path)
    methods = names("methods")
    for profile in shipped.names("profile"):
        assert (
            make_plan(shipped, methods, options={}, profile=profile).profile_note
            == shipped.tables["profile"][profile]["profile_note"]
        )
    for campaign in shipped.names("campaign"):
        assert make_plan(shipped, methods, options={}, campaign=campaign).campaign == campaign


def test_a_users_file_is_laid_over_the_shipped_one_table_by_table(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text(
        '[profile.demo.set.aminet]\nwidth = 96\n[profile.mine]\nk = [1]\n[paths.data]\nmvtec = "/data"\n', "utf-8"
    )
    shipped, found = load_config(tmp_path.parent), load_config(tmp_path)
    expected = shipped.tables["profile"]["demo"]["set"]["aminet"] | {"width": 96}
    assert found.tables["profile"]["demo"]["set"]["aminet"] == expected
    assert found.tables["profile"]["demo"]["shared"] == shipped.tables["profile"]["demo"]["shared"]
    assert found.tables["campaign"] == shipped.tables["campaign"]
    assert set(found.names("profile")) == {*shipped.names("profile"), "mine"}
    assert found.data("mvtec") == Path("/data")
    assert found.path("runs") == Path("runs")
    assert found.files == (*shipped.files, tmp_path / "bench.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a = 1\nb = = 2\n", "at line 2"),
        (b"[paths]\nruns = 'x'\nruns = 'y'\n", "at line 3"),
        (b"note = '\xff'", "utf-8"),
        (b"a = " + b"9" * 5000, "5000 digits"),
        (b"a = " + b"[" * 100_000, "recursion"),
    ],
    ids=["a syntax error", "a key twice", "no UTF-8", "a number without end", "brackets without end"],
)
def test_a_broken_file_is_told_with_its_name_and_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "bench.toml").write_bytes(content)
    with pytest.raises(BenchError, match=rf"{tmp_path}/bench\.toml must be .*{words}") as refusal:
        load_config(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_users_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text("[profile.demo]\nepochs = 3\n", "utf-8")
    with pytest.raises(BenchError, match=r"'epochs' is not a key of \[profile\.demo\]"):
        load_config(tmp_path)
