"""Jobs in a child process: the same records as in this process; a time-out or a kill fails one job only."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.execution.job import Job, run_locally
from bench.execution.schedule import make_schedule, run_schedule
from bench.execution.subprocess_executor import run_in_subprocess
from bench.record import Record
from bench.store import Store

pytestmark = pytest.mark.usefixtures("plugin_methods")


@pytest.fixture
def make_jobs(plan_parts) -> Callable[..., list[Job]]:
    """Return a function that makes a job on the bolts for each fault of the faulty method."""

    def make(*faults: str, **settings: str) -> list[Job]:
        return [
            make_schedule(
                plan_parts(method="faulty", category="bolt", settings={"fault": fault, **settings}), force=True
            ).jobs[0]
            for fault in faults
        ]

    return make


def without_times(record: Record) -> Record:
    return replace(record, seconds={}, latency={}, memory={}, started="")


def test_a_child_process_gives_bit_identical_results_and_reports_progress(make_jobs) -> None:
    updates: list[tuple] = []
    jobs = make_jobs("none", "raises")
    expected = [outcomes for _, outcomes in run_locally(jobs, lambda *_: None)]
    results = [outcomes for _, outcomes in run_in_subprocess(jobs, lambda *update: updates.append(update))]
    for (local,), (remote,) in zip(expected, results, strict=True):
        assert without_times(local.record) == without_times(remote.record)
    local, remote = expected[0][0], results[0][0]
    assert local.record.metrics["image_auroc"] == 1.0
    assert np.array_equal(local.predictions.scores, remote.predictions.scores)
    assert np.array_equal(local.predictions.maps, remote.predictions.maps)
    assert ("Faulty bolt, seed 0", "fit", 1, 2, None) in updates


@pytest.mark.slow  # starts three processes that import torch
def test_a_fit_that_hangs_or_is_killed_fails_alone(make_jobs) -> None:
    results = run_in_subprocess(make_jobs("hangs", "is killed", "none"), lambda *_: None, timeout=8)
    stopped, killed, good = (outcomes[0].record for _, outcomes in results)
    assert stopped.failure.startswith("Stopped after --timeout 8 seconds in phase 'fit'. Raise --timeout")
    assert "faulty.py" in stopped.failure  # the traceback shows the line that was executed
    assert killed.failure.startswith(f"The process of this job was killed by {signal.SIGKILL.name} in phase 'fit'")
    assert not good.failure
    assert good.metrics["image_auroc"] == 1.0


def test_retry_repeats_only_what_failed(parts: Path, plan_parts, run_plan) -> None:
    image = parts / "bolt" / "train" / "good" / "000.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    plan = plan_parts()
    assert [bool(record.failure) for record in run_plan(plan)] == [True, False]  # bolt, plate
    assert [job.task.name for job in make_schedule(plan, retry=True).jobs] == ["bolt"]
    two_seeds = plan_parts(seed="0,1")
    assert [(job.task.name, job.run.seed) for job in make_schedule(two_seeds, retry=True).jobs] == [("bolt", 0)]
    assert len(make_schedule(two_seeds).jobs) == 3
    assert make_schedule(plan_parts(calibrate="0.5"), retry=True).jobs == ()  # another run, which has not failed
    image.write_bytes(content)  # the data digest changes, but it is still the run that failed
    assert [job.task.name for job in make_schedule(plan, retry=True).jobs] == ["bolt"]
    run_plan(plan, retry=True)
    assert make_schedule(plan, retry=True).jobs == ()


def test_a_second_failure_replaces_the_reason_of_the_first(tmp_path: Path, plan_parts, run_plan) -> None:
    reason = tmp_path / "reason.txt"
    settings = {"fault": "raises the text of the file", "file": str(reason)}
    plan = plan_parts(method="faulty", category="bolt", settings=settings)
    for text in ("the first reason", "the second reason"):
        reason.write_text(text, "utf-8")
        run_plan(plan)
    (record,) = Store(plan.runs).records()
    assert record.failure.endswith("RuntimeError: the second reason")


def test_a_failure_does_not_replace_a_record_with_metrics(tmp_path: Path, plan_parts, run_plan) -> None:
    file = tmp_path / "exists"
    file.write_text("", "utf-8")
    plan = plan_parts(method="faulty", category="bolt", settings={"fault": "is killed once", "file": str(file)})
    (record,) = run_plan(plan)
    file.unlink()
    (failed,) = run_plan(replace(plan, execution=replace(plan.execution, executor="process")), force=True)
    assert "SIGKILL" in failed.failure
    assert list(Store(plan.runs).records()) == [record]


def test_a_plan_with_a_timeout_runs_in_a_child_process(plan_parts) -> None:
    plan = plan_parts(method="faulty", timeout=3, settings={"fault": "hangs"}, category="plate")
    (record,) = run_schedule(plan, make_schedule(plan), lambda *_: None)
    assert "--timeout 3" in record.failure
    assert list(Store(plan.runs).records()) == [record]


def test_if_the_device_runs_out_of_memory_predict_is_tried_once_with_half_the_batch(make_jobs) -> None:
    fits, half_fits, nothing_fits = (
        next(run_locally(make_jobs("device memory", max_batch=size), lambda *_: None))[1][0].record
        for size in ("8", "4", "3")
    )
    assert not fits.failure
    assert half_fits.metrics == fits.metrics
    warning = "The device ran out of memory in predict; the batch size is now 4."
    assert warning not in fits.warnings
    assert half_fits.warnings.count(warning) == 1
    assert "OutOfMemoryError" in nothing_fits.failure
    assert nothing_fits.warnings.count(warning) == 1


def test_a_fit_of_a_method_without_a_backbone_does_not_import_timm(plan_parts, tmp_path: Path) -> None:
    job = make_schedule(plan_parts(category="bolt")).jobs[0]
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    code = "import pickle, sys\nfrom bench.execution.job import run_job\n"
    code += "(outcome,) = run_job(pickle.load(open(sys.argv[1], 'rb')), lambda *_: None)\n"
    code += "assert not outcome.record.failure\nprint('timm' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "job")]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


SCRIPT = """
from pathlib import Path
import bench
print("started")
results = bench.run("meanmap", dataset="folder", data="parts", protocol="one-for-one", profile="check", time=False,
                    category="bolt", runs="runs", timeout=100)
print("failed", len(results.failed), "of", len(results))
"""


@pytest.mark.slow  # starts two processes that import torch
@pytest.mark.parametrize("location", ["script", "stdin"])
def test_a_script_without_main_guard_may_use_child_processes(parts: Path, location: str) -> None:
    script = parts.parent / "script.py"
    script.write_text(SCRIPT, "utf-8")
    call = [sys.executable, str(script)] if location == "script" else [sys.executable, "-"]
    result = subprocess.run(call, input=SCRIPT, cwd=parts.parent, capture_output=True, text=True, check=True)
    assert result.stdout.count("started") == 1, result.stdout
    assert "failed 0 of 1" in result.stdout
