"""Jobs in a child process: the same records as here, and what a time-out or a kill leaves of the others."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import Plan, make_plan
from bench.execution import schedule, subprocess_executor
from bench.execution.job import Job, failure_outcomes, run_locally
from bench.record import Record
from bench.store import Store

ODD = Path(__file__).resolve().parents[1] / "plugins"
TIMED = {"seconds", "latency", "memory", "started"}


@pytest.fixture(autouse=True)
def _odd() -> Iterator[None]:
    """The odd method is found, and forgotten again."""
    registry.add_folder("methods", ODD)
    yield
    registry.import_module("bench.methods").__path__ = [str(registry.plugin_folders("methods")[0])]


def planned(parts: Path, *, settings: dict[str, str] | None = None, **said: object) -> Plan:
    given = {"dataset": "folder", "protocol": "one-for-one", "method": "odd", "threads": 1, "time": False} | said
    paths = {"data": parts, "runs": parts.parent / "runs", "cache": parts.parent / "cache"}
    return make_plan(
        load_config(), registry.names("methods"), options=given, settings=settings, profile="check", paths=paths
    )


def jobs(parts: Path, *hows: str, **settings: str) -> list[Job]:
    """The job on the bolt, done so by the odd method, once for each how."""
    (job,) = schedule.make_schedule(planned(parts, category="bolt", settings=settings)).jobs
    return [replace(job, run=replace(job.run, settings=job.run.settings | {"how": how})) for how in hows]


def alike(record: Record) -> Record:
    """Without what tells of time."""
    return replace(record, seconds={}, latency={}, memory={}, started="")


def test_a_child_does_what_this_process_does_to_the_bit_and_tells_how_far_it_is(parts: Path) -> None:
    told: list[tuple] = []
    asked = jobs(parts, "well", "raises")
    here = [outcomes for _, outcomes in run_locally(asked, lambda *_: None)]
    there = [
        outcomes for _, outcomes in subprocess_executor.run_in_subprocess(asked, lambda *words: told.append(words))
    ]
    for (one,), (other,) in zip(here, there, strict=True):
        assert alike(one.record) == alike(other.record)
    assert here[0][0].record.metrics["image_auroc"] == 1.0
    assert np.array_equal(here[0][0].predictions.scores, there[0][0].predictions.scores)
    assert np.array_equal(here[0][0].predictions.maps, there[0][0].predictions.maps)
    assert ("odd bolt, seed 0", "fit", 1, 2, None) in told


@pytest.mark.slow  # three processes that load torch
def test_a_fit_that_hangs_or_is_killed_is_its_own_failure_and_the_others_go_on(parts: Path) -> None:
    done = subprocess_executor.run_in_subprocess(jobs(parts, "hangs", "is killed", "well"), lambda *_: None, timeout=3)
    hung, killed, well = (outcomes[0].record for _, outcomes in done)
    assert hung.failure.startswith("Stopped after --timeout 3 seconds, in its fit. Raise it")
    assert "odd.py" in hung.failure  # where it hung
    assert killed.failure.startswith(f"The process of this task was killed by {signal.SIGKILL.name} in its fit")
    assert not well.failure
    assert well.metrics["image_auroc"] == 1.0


def test_retry_repeats_what_failed_and_only_that(parts: Path) -> None:
    # The bolt fails for want of an image, the plate does not.
    image = parts / "bolt" / "train" / "good" / "000.png"
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    plan = planned(parts)
    list(schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None))
    assert [job.task.name for job in schedule.make_schedule(plan, retry=True).jobs] == ["bolt"]
    wider = planned(parts, seed="0,1")
    assert [(job.task.name, job.run.seed) for job in schedule.make_schedule(wider, retry=True).jobs] == [("bolt", 0)]
    assert (
        schedule.make_schedule(planned(parts, calibrate="0.5"), retry=True).jobs == ()
    )  # another run, which has not failed
    assert len(schedule.make_schedule(wider).jobs) == 3
    image.write_bytes(whole)  # other images are another run, but the one that failed is meant
    assert [job.task.name for job in schedule.make_schedule(plan, retry=True).jobs] == ["bolt"]
    list(schedule.run_schedule(plan, schedule.make_schedule(plan, retry=True), lambda *_: None))
    assert schedule.make_schedule(plan, retry=True).jobs == ()


def test_a_second_failure_tells_its_own_reason(parts: Path) -> None:
    plan = planned(parts, category="bolt")
    (job,) = schedule.make_schedule(plan).jobs
    for reason in ("out of time", "out of memory"):
        (outcome,) = failure_outcomes(job, reason)
        schedule._saved(Store(plan.runs), outcome, plan)
    assert [record.failure for record in Store(plan.runs).records()] == ["out of memory"]


def test_a_plan_with_a_time_out_runs_in_a_child(parts: Path) -> None:
    plan = planned(parts, timeout=3, settings={"how": "hangs"}, category="plate")
    (record,) = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    assert "--timeout 3" in record.failure
    assert list(Store(plan.runs).records()) == [record]


def test_a_device_that_runs_out_of_memory_in_predict_gets_half_once(parts: Path) -> None:
    full, half, tight = (
        next(run_locally(jobs(parts, "is hungry", limit=limit), lambda *_: None))[1][0].record
        for limit in ("8", "4", "3")
    )
    assert not full.failure
    assert not full.warnings
    assert half.metrics == full.metrics
    assert half.warnings == ["The device ran out of memory in predict; from here on it gets 4 at once."]
    assert "OutOfMemoryError" in tight.failure
    assert tight.warnings == half.warnings
