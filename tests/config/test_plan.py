"""bench.toml and the options of a call become one plan, which records the origin of each value."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config.bench_toml import Config, cache_folder, load_config
from bench.config.method_specs import check_setting_names
from bench.config.options import OPTIONS
from bench.config.plan import Plan, make_plan
from bench.errors import BenchError
from bench.registry import names

METHODS = ("baseline", "inpaint", "memory")

TABLES: dict[str, Any] = {
    "paths": {"runs": "results", "data": {"real": "~/real"}, "methods": ["mine", "~/ours"], "reports": "layouts"},
    "profile": {
        "demo": {"note": "small", "dataset": "drawn", "k": [4], "set": {"inpaint": {"lr": 1}}},
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


def plan_call(tables: dict[str, Any] = TABLES, *, settings: Mapping[str, str] | None = None, **call: Any) -> Plan:
    """Return the plan of a call; a keyword is an option, a profile, a campaign, a sweep, or `paths`."""
    arguments = {key: call.pop(key) for key in ("profile", "campaign", "paths", "sweep") if key in call}
    return make_plan(Config(tables), METHODS, options={"method": "inpaint"} | call, settings=settings, **arguments)


# ---- precedence and origin


def test_an_option_of_the_call_overrides_the_campaign_the_profile_and_the_default() -> None:
    assert plan_call().tasks.k == (4,)
    assert plan_call(campaign="table").tasks.k == (2, 4)
    assert plan_call(campaign="table", k="8", protocol="kshot").tasks.k == (8,)
    assert plan_call(profile="paper").tasks.k == OPTIONS["k"].default


def test_a_plan_gives_the_value_of_an_option_by_name_or_by_group() -> None:
    plan = plan_call(seed="1,2", selection="both", eval_every="3", precision="float16", timeout="7")
    assert (plan.tasks.seed, plan.evaluation.eval_every) == ((1, 2), 3)
    assert (plan.compute.precision, plan.execution.timeout) == ("float16", 7.0)
    assert [plan.option(name) for name in ("seed", "eval_every", "precision", "timeout")] == [(1, 2), 3, "float16", 7.0]


def test_every_option_and_path_has_its_origin() -> None:
    origin = plan_call(campaign="table", seed="1,2", paths={"runs": Path("here")}).origin
    assert origin["k"] == "campaign table"
    assert origin["dataset"] == "profile paper"
    assert origin["seed"] == "--seed"
    assert origin["limit"] == "default"
    assert origin["profile"] == "campaign table"
    assert origin["runs"] == "--runs"
    assert origin["data"] == "[paths.data]"
    assert origin["weights"] == "default"
    assert origin.keys() == OPTIONS.keys() | {"profile", "runs", "cache", "weights", "data"}


def test_a_campaign_names_its_profile_and_the_call_may_name_another() -> None:
    assert plan_call().profile == "demo"
    assert plan_call(campaign="table").profile == "paper"
    plan = plan_call(campaign="table", profile="demo")
    assert (plan.profile, plan.origin["profile"], plan.tasks.dataset) == ("demo", "--profile", "drawn")


def test_settings_are_merged_from_profile_campaign_alias_category_and_call() -> None:
    (spec,) = plan_call(campaign="table", method="jittered", settings={"jittered.lr": "7"}).method_specs
    values, origin = spec.resolve(Inpaint, "bolt")
    assert values == Inpaint(lr=7.0, width=96, depth=3, jitter=True)
    assert origin == {
        "lr": "--set",
        "width": "campaign table",
        "depth": "[category.real.bolt]",
        "jitter": "alias jittered",
    }
    assert spec.resolve(Inpaint, "all")[0].depth == 2
    assert plan_call(profile="paper").method_specs[0].resolve(Inpaint, "tile")[0] == Inpaint(2.0, width=768, depth=8)


def test_settings_of_the_categories_of_another_dataset_are_not_used() -> None:
    (spec,) = plan_call(method="jittered").method_specs
    assert spec.by_category == {}


def test_an_alias_has_the_title_of_its_table_and_a_file_without_title_its_name() -> None:
    alias, file = plan_call(method="jittered,baseline").method_specs
    assert (alias.name, alias.method, alias.title) == ("jittered", "inpaint", "Inpaint‡")
    assert (file.name, file.method, file.title) == ("baseline", "baseline", "baseline")


def test_all_is_every_file_and_every_alias_once() -> None:
    assert [spec.name for spec in plan_call(method="all").method_specs] == ["baseline", "inpaint", "jittered", "memory"]


def test_a_repeated_value_counts_once() -> None:
    tasks = plan_call(method="baseline,baseline,memory", seed="1,0,1", k="4,4", protocol="kshot").tasks
    assert (tasks.method, tasks.seed, tasks.k) == (("baseline", "memory"), (1, 0), (4,))


# ---- --set


def test_a_plain_key_sets_every_method_with_such_a_setting_and_no_other() -> None:
    specs = plan_call(method="inpaint,memory", settings={"width": "7", "depth": "5"}).method_specs
    check_setting_names(specs, {"inpaint": Inpaint, "memory": Memory})
    inpaint, memory = specs
    assert inpaint.resolve(Inpaint, "all")[0] == Inpaint(lr=1.0, width=7, depth=5)
    assert memory.resolve(Memory, "all") == (Memory(width=7), {"width": "--set"})


def test_a_plain_key_that_no_method_has_is_an_error_with_a_suggestion() -> None:
    specs = plan_call(method="inpaint,memory", settings={"widht": "7"}).method_specs
    with pytest.raises(BenchError, match=r"'widht' is not a setting of inpaint or memory\. Did you mean 'width'"):
        check_setting_names(specs, {"inpaint": Inpaint, "memory": Memory})
    with pytest.raises(BenchError, match=r"'depth' is not a setting of memory\."):
        check_setting_names(plan_call(method="memory", settings={"depth": "1"}).method_specs, {"memory": Memory})


def test_a_key_for_one_method_overrides_a_plain_key_for_that_method_only() -> None:
    inpaint, memory = plan_call(method="inpaint,memory", settings={"memory.width": "9", "width": "7"}).method_specs
    assert inpaint.resolve(Inpaint, "all")[0].width == 7
    assert memory.resolve(Memory, "all")[0].width == 9


def test_an_unknown_key_for_one_method_is_an_error() -> None:
    (spec,) = plan_call(method="memory", settings={"memory.depth": "9"}).method_specs
    with pytest.raises(BenchError, match="'depth' is not a setting of memory"):
        spec.resolve(Memory, "all")


def test_a_key_for_a_method_that_is_not_run_is_an_error() -> None:
    with pytest.raises(BenchError, match=r"--set memory\.width names a method that is not run; these are: inpaint"):
        plan_call(settings={"memory.width": "9"})


def test_the_error_for_a_wrong_value_states_its_origin() -> None:
    (spec,) = plan_call(settings={"width": "2.5"}).method_specs
    with pytest.raises(BenchError, match=r"width \(--set\) must be an integer, got '2\.5'"):
        spec.resolve(Inpaint, "all")


# ---- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profil": {}}, r"'profil' is not a table of bench\.toml\. Did you mean 'profile'"),
        ({"paths": {"run": "x"}}, r"'run' is not a key of \[paths\]\. Did you mean 'runs'"),
        ({"paths": {"runs": 3}}, r"paths\.runs must be a string, got 3"),
        ({"paths": {"methods": [3]}}, r"paths\.methods must be a string, got 3"),
        ({"paths": {"data": "x"}}, r"\[paths\.data\] must be a table of bench\.toml, got 'x'"),
        ({"profile": {"mine": {"seeds": [0]}}}, r"'seeds' is not a key of \[profile\.mine\]\. Did you mean 'seed'"),
        ({"profile": {"mine": {"about": "x"}}}, r"'about' is not a key of \[profile\.mine\]"),
        ({"profile": {"mine": 3}}, r"\[profile\.mine\] must be a table"),
        ({"profile": {"mine": {"note": 3}}}, r"profile\.mine\.note must be a string"),
        ({"profile": {"mine": {"set": {"inpaint": 3}}}}, r"\[profile\.mine\.set\.inpaint\] must be a table"),
        ({"campaign": {"mine": {"note": "x"}}}, r"'note' is not a key of \[campaign\.mine\]"),
        ({"campaign": {"mine": {"over": {}}}}, r"'over' is not a key of \[campaign\.mine\]"),
        ({"campaign": {"mine": {"profile": ["demo"]}}}, r"campaign\.mine\.profile must be a string"),
        ({"alias": {"mine": {"name": "x"}}}, r"'name' is not a key of \[alias\.mine\]"),
        ({"alias": {"mine": {"set": []}}}, r"\[alias\.mine\.set\] must be a table"),
        ({"alias": {"../mine": {"method": "inpaint"}}}, r"The name of an alias must .* got '\.\./mine'"),
        ({"alias": {"a.b": {"method": "inpaint"}}}, "The name of an alias must"),
        ({"category": {"real": {"bolt": {"inpaint": 3}}}}, r"\[category\.real\.bolt\.inpaint\] must be a table"),
        ({"paths": []}, r"\[paths\] must be a table"),
    ],
)
def test_an_unknown_table_key_or_type_is_an_error_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        Config(TABLES | changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"profile": "dmo"}, r"'dmo' is not a profile\. Did you mean 'demo'\? Known: demo, paper"),
        ({"campaign": "tabel"}, r"'tabel' is not a campaign\. Did you mean 'table'"),
        ({"method": "memroy"}, r"'memroy' is not a method\. Did you mean 'memory'"),
        ({"seeds": "0"}, r"'seeds' is not an option\. Did you mean 'seed'"),
        ({"seed": "one"}, "--seed must be an integer, got 'one'"),
        ({"selection": "best"}, "--selection must be one of last, oracle, both; got 'best'"),
        ({"keep_model": "perhaps"}, "--keep-model must be true or false"),
        ({"batch_size": "0"}, "batch_size must be >= 1; --batch-size gives 0"),
        ({"eval_every": 0}, "eval_every must be >= 1; --eval-every gives 0"),
        ({"limit": -1}, "limit must be >= 0; --limit gives -1"),
        ({"threads": -1}, "threads must be >= 0"),
        ({"calibrate": 1}, "calibrate must be < 1; --calibrate gives 1"),
        ({"seed": ""}, "seed must not be empty; --seed gives no value"),
        ({"method": ""}, "method must not be empty"),
        ({"timeout": "-1"}, "timeout must be >= 0; --timeout gives -1"),
        ({"gpus_per_task": "1.5"}, r"a fraction of one GPU or a whole number; --gpus-per-task gives 1\.5"),
        ({"gpus_per_task": 0.0}, "--gpus-per-task gives 0"),
        ({"executor": "slurm"}, "--executor must be one of local, process, ray; got 'slurm'"),
    ],
)
def test_an_unknown_name_or_a_value_out_of_range_is_an_error(call: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        plan_call(**call)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"batch_size": 2.5}, r"batch_size \(profile mine\) must be an integer, got 2\.5"),
        ({"batch_size": 0}, "batch_size must be >= 1; profile mine gives 0"),
        ({"k": []}, "k must not be empty; profile mine gives no value"),
        ({"set": {"inpant": {}}}, r"'inpant' is not a method, .*profile mine sets\. Did you mean 'inpaint'"),
    ],
)
def test_the_error_for_a_wrong_value_in_a_profile_names_the_profile(profile: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        plan_call(TABLES | {"profile": {"mine": profile}}, profile="mine")


def test_a_category_table_with_an_unknown_method_is_an_error() -> None:
    tables = TABLES | {"category": {"drawn": {"bolt": {"inpant": {"depth": 3}}}}}
    with pytest.raises(BenchError, match=r"'inpant' is not a method.*\[category\.drawn\.bolt\] sets"):
        plan_call(tables)


ANY_TOML = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LIKELY = st.sampled_from(["1", 2, "0,1", [0], "inpaint", "all", "none", "last", "both", "float16", "yes", {}, None])
PLACES = [(), ("paths",), ("profile", "demo"), ("campaign", "table"), ("alias", "jittered"), ("category", "real")]
KEYS = [*OPTIONS, "paths", "data", "profile", "demo", "set", "sweep", "inpaint", "lr"]
SETTINGS = st.dictionaries(st.sampled_from(["lr", "width", "memory.lr", ".", ""]), st.text(max_size=3), max_size=2)


@given(
    changes=st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(KEYS), LIKELY | ANY_TOML), max_size=2),
    options=st.dictionaries(st.sampled_from(list(OPTIONS)), LIKELY | ANY_TOML, max_size=2),
    call_settings=SETTINGS,
    sweep=SETTINGS,
    campaign=st.sampled_from([None, "table"]),
)
@settings(deadline=None, max_examples=300)
def test_any_tables_and_options_give_a_plan_or_a_bench_error(
    changes: list[tuple[tuple[str, ...], str, Any]],
    options: dict[str, Any],
    call_settings: dict[str, str],
    sweep: dict[str, str],
    campaign: str | None,
) -> None:
    tables: dict[str, Any] = deepcopy(TABLES)
    for path, key, value in changes:
        table = tables
        for step in path:
            table = table.get(step) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table[key] = value
    try:
        plan = make_plan(
            Config(tables),
            METHODS,
            options={"method": "memory"} | options,
            settings=call_settings,
            sweep=sweep,
            campaign=campaign,
        )
    except BenchError:
        return
    assert plan.method_specs
    assert plan.compute.batch_size >= 1
    assert all(isinstance(spec.merged("all"), dict) for spec in plan.method_specs)
    assert plan.origin.keys() >= OPTIONS.keys()


# ---- paths


def test_folders_come_from_the_call_then_from_paths_then_from_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    plan = plan_call()
    assert (plan.runs, plan.cache, plan.weights) == (Path("results"), tmp_path / ".cache" / "maskbench", None)
    assert plan.data == tmp_path / ".cache" / "maskbench" / "drawn"
    assert plan_call(profile="paper").data == tmp_path / "real"
    plan = plan_call(profile="paper", paths={"data": Path("~/mine"), "weights": Path("w"), "runs": None})
    assert (plan.data, plan.weights, plan.runs) == (tmp_path / "mine", Path("w"), Path("results"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder(Config(TABLES)) == Path("/elsewhere/maskbench")


def test_a_path_of_an_unknown_user_is_an_error() -> None:
    with pytest.raises(BenchError, match="there is none for ~nobody-of-this-name/x"):
        plan_call(paths={"data": Path("~nobody-of-this-name/x")})


def test_a_path_with_a_nul_character_is_an_error() -> None:
    with pytest.raises(BenchError, match="no NUL character"):
        plan_call(paths={"runs": Path("a\0b")})


def test_plug_in_folders_of_each_kind_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = Config(TABLES)
    assert config.plugin_folders("methods") == (Path("mine"), Path("/home/me/ours"))
    assert config.plugin_folders("reports") == (Path("layouts"),)
    assert config.plugin_folders("datasets") == ()


# ---- files


def test_the_shipped_file_is_read_if_the_folder_has_none(tmp_path: Path) -> None:
    shipped = load_config(tmp_path)
    assert [path.name for path in shipped.files] == ["bench.toml"]
    assert {"demo", "code", "paper"} <= set(shipped.names("profile"))
    assert {"table1", "table2", "table3", "table4", "figure8"} <= set(shipped.names("campaign"))
    assert shipped.aliases()["aminet_jitter"].title == "AMI-Net‡"
    assert load_config(shipped.files[0].parent).files == shipped.files


def test_every_shipped_profile_and_campaign_gives_a_plan(tmp_path: Path) -> None:
    shipped = load_config(tmp_path)
    methods = names("methods")
    for profile in shipped.names("profile"):
        note = shipped.tables["profile"][profile]["note"]
        assert make_plan(shipped, methods, profile=profile).profile_note == note
    for campaign in shipped.names("campaign"):
        assert make_plan(shipped, methods, campaign=campaign).campaign == campaign


def test_the_file_of_the_working_folder_is_merged_with_the_shipped_one_table_by_table(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text(
        '[profile.demo.set.aminet]\nwidth = 96\n[profile.mine]\nk = [1]\n[paths.data]\nmvtec = "/data"\n', "utf-8"
    )
    shipped, merged = load_config(tmp_path.parent), load_config(tmp_path)
    demo = shipped.tables["profile"]["demo"]
    expected = demo.get("set", {}).get("aminet", {}) | {"width": 96}
    assert merged.tables["profile"]["demo"]["set"]["aminet"] == expected
    assert merged.tables["profile"]["demo"]["shared_preprocessing"] == demo["shared_preprocessing"]
    assert merged.tables["campaign"] == shipped.tables["campaign"]
    assert set(merged.names("profile")) == {*shipped.names("profile"), "mine"}
    assert merged.data("mvtec") == Path("/data")
    assert merged.path("runs") == Path("runs")
    assert merged.files == (*shipped.files, tmp_path / "bench.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = = 2\n", "at line 2"),
        (b"[paths]\nruns = 'x'\nruns = 'y'\n", "at line 3"),
        (b"note = '\xff'", "utf-8"),
        (b"a = " + b"9" * 5000, "5000 digits"),
        (b"a = " + b"[" * 100_000, "recursion"),
    ],
    ids=["a syntax error", "a repeated key", "no UTF-8", "a number with too many digits", "too many brackets"],
)
def test_the_error_for_a_file_that_is_not_toml_has_its_name_and_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bench.toml").write_bytes(content)
    with pytest.raises(BenchError, match=rf"{tmp_path}/bench\.toml must be .*{message}") as error:
        load_config(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_with_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text("[profile.demo]\nepochs = 3\n", "utf-8")
    with pytest.raises(BenchError, match=r"'epochs' is not a key of \[profile\.demo\]"):
        load_config(tmp_path)


# ---- options without effect


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": "8"}, r"--k needs --protocol kshot; this command has one-for-one \(default\), and would ignore it"),
        ({"eval_every": "5"}, "--eval-every needs --selection oracle or both; this command has last"),
        ({"address": "auto"}, "--address needs --executor ray; this command has local"),
        ({"ship_data": "true", "executor": "process"}, "--ship-data needs --executor ray; this command has process"),
        ({"gpus_per_task": "0.5"}, "--gpus-per-task needs --executor ray"),
        ({"one_at_a_time": "true"}, "--one-at-a-time needs a sweep"),
    ],
    ids=str,
)
def test_an_option_that_would_be_ignored_is_an_error(options: dict[str, str], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        plan_call(**options)


def test_a_value_of_a_profile_that_has_no_effect_is_allowed() -> None:
    assert plan_call(protocol="one-for-one").tasks.k == (4,)  # the demo profile has k = 4


def test_all_does_not_hide_an_unknown_name() -> None:
    with pytest.raises(BenchError, match=r"'inpait' is not a method. Did you mean 'inpaint'?"):
        plan_call(method="all,inpait")


# ---- settings of a file and of its aliases


def test_a_setting_of_a_file_reaches_its_aliases_unless_the_alias_is_named() -> None:
    plan = plan_call(method="inpaint,jittered,memory", settings={"inpaint.epochs": "4", "memory.epochs": "5"})
    assert [spec.merged("")["epochs"][0] for spec in plan.method_specs] == ["4", "4", "5"]
    plan = plan_call(method="jittered,inpaint", settings={"jittered.epochs": "6", "inpaint.epochs": "4"})
    assert [spec.merged("")["epochs"][0] for spec in plan.method_specs] == ["6", "4"]
    assert plan_call(method="jittered", settings={"inpaint.epochs": "4"}).method_specs[0].merged("")["epochs"][0] == "4"


def test_a_sweep_of_a_file_reaches_its_aliases_unless_the_alias_is_named() -> None:
    sweep = {"inpaint.depth": "1,2", "jittered.depth": "3"}
    plan = plan_call(method="inpaint,jittered,memory", sweep=sweep)
    assert [list(spec.sweep) for spec in plan.method_specs] == [
        ["inpaint.depth"], ["inpaint.depth", "jittered.depth"], []
    ]  # fmt: skip


def test_a_table_of_a_file_reaches_its_aliases_unless_the_alias_is_named() -> None:
    sets = {"inpaint": {"width": 4, "depth": 5}, "jittered": {"width": 6}}
    category = {"real": {"bolt": {"inpaint": {"lr": 3}, "jittered": {"lr": 4}}}}
    tables = TABLES | {"profile": {"mine": {"dataset": "real", "set": sets}}, "category": category}
    plan = plan_call(tables, profile="mine", method="inpaint,jittered")
    values = [spec.resolve(Inpaint, "bolt")[0] for spec in plan.method_specs]
    assert values == [Inpaint(3.0, 4, 5), Inpaint(4.0, 6, 2, jitter=True)]


def test_weights_auto_uses_no_folder_even_if_bench_toml_names_one() -> None:
    tables = TABLES | {"paths": {"weights": "/weights"}}
    plans = [plan_call(tables, paths={"weights": weights}) for weights in (None, Path("other"), Path("auto"))]
    assert [plan.weights for plan in plans] == [Path("/weights"), Path("other"), None]
    assert plans[2].origin["weights"] == "--weights"
