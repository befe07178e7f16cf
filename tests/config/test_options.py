"""The definitions of the options, and a trial option that is defined in one place."""

from dataclasses import field, fields, make_dataclass, replace
from types import MappingProxyType

import pytest

from bench.config import options, plan
from bench.config.options import OPTION_GROUPS, OPTIONS, EvaluationOptions
from bench.data.protocol import PROTOCOLS
from bench.execution import planned_method
from bench.execution.schedule import make_schedule
from bench.identity import run_hash


def test_every_option_has_a_unique_name_a_help_text_and_a_valid_default() -> None:
    assert len(list(options.options())) == len(OPTIONS)
    for option in OPTIONS.values():
        assert option.help
        assert not option.choices or option.default in option.choices
        option.check(option.default, "default")


def test_the_choices_of_protocol_are_the_protocols() -> None:
    assert OPTIONS["protocol"].choices == tuple(PROTOCOLS)


def test_the_flag_of_an_option_has_hyphens() -> None:
    assert OPTIONS["eval_every"].flag == "--eval-every"


def test_a_run_has_all_options_that_decide_numbers_and_no_other(plan_parts) -> None:
    call = {"limit": 3, "calibrate": 0.6, "resolution": "original", "precision": "bfloat16"}
    (job,) = make_schedule(plan_parts(category="bolt", **call)).jobs
    values = {name: value for group in job.run.options.values() for name, value in group.items()}
    assert values.keys() == {name for name, option in OPTIONS.items() if option.affects_metrics}
    assert values == call | {"compile": False}
    for group, members in job.run.options.items():
        assert {OPTIONS[name].group for name in members} == {group}


@pytest.fixture
def trial_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the option `trial`, an integer >= 1, to the group of the evaluation."""
    (calibrate,) = (entry for entry in fields(EvaluationOptions) if entry.name == "calibrate")
    metadata = {**calibrate.metadata, "help": "An option of this test.", "minimum": 1, "below": None}
    trial = ("trial", int, field(default=1, metadata=metadata))
    group = make_dataclass("TrialOptions", [trial], bases=(EvaluationOptions,), frozen=True, slots=True, kw_only=True)
    groups = MappingProxyType({**OPTION_GROUPS, "evaluation": group})
    for module in (options, plan, planned_method):
        monkeypatch.setattr(module, "OPTION_GROUPS", groups)
    names = MappingProxyType({option.name: option for option in options.options()})
    for module in (options, plan):
        monkeypatch.setattr(module, "OPTIONS", names)


@pytest.mark.usefixtures("trial_option")
def test_an_option_that_is_added_to_a_group_reaches_the_plan_the_job_and_the_run_hash(plan_parts) -> None:
    assert plan_parts().evaluation.trial == 1
    trial_plan = plan_parts(category="bolt", trial="3")
    assert (trial_plan.option("trial"), trial_plan.origin["trial"]) == (3, "--trial")
    with pytest.raises(options.BenchError, match="trial must be >= 1; --trial gives 0"):
        plan_parts(trial=0)
    (job,) = make_schedule(trial_plan).jobs
    assert job.evaluation.trial == 3
    assert job.run.options["evaluation"] == {"calibrate": 0.0, "resolution": "input", "trial": 3}
    (default_job,) = make_schedule(plan_parts(category="bolt")).jobs
    assert run_hash(job.run, "d") != run_hash(default_job.run, "d")
    assert run_hash(job.run, "d") == run_hash(replace(default_job.run, options=job.run.options), "d")
    assert job.run.group_hash != default_job.run.group_hash
