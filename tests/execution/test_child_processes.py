"""A child process, and what a fit starts in it, ends with its parent; finished metrics are kept if a child ends."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.execution.job import Job
from bench.execution.schedule import make_schedule, run_schedule
from bench.execution.subprocess_executor import run_in_subprocess
from bench.record import Record

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("plugin_methods")

RUN_JOB = """
import pickle, signal, sys
from pathlib import Path
from bench import registry
registry.add_folder("methods", Path(sys.argv[2]))
from bench.execution.job import run_locally
from bench.execution.process_tree import descendants_end_with_this_process
from bench.execution.subprocess_executor import run_in_subprocess

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    jobs = [pickle.load(open(sys.argv[1], "rb"))]
    with descendants_end_with_this_process():
        if sys.argv[3] == "local":
            list(run_locally(jobs, lambda *_: None))
        list(run_in_subprocess(jobs, lambda *_: None, timeout=float(sys.argv[3])))
"""


@pytest.fixture
def make_job(plan_parts) -> Callable[..., Job]:
    """Return a function that makes the job of the faulty method on the bolts."""

    def make(fault: str, *, file: Path | None = None, **options: object) -> Job:
        settings = {"fault": fault, "file": str(file or "")}
        return make_schedule(plan_parts(method="faulty", category="bolt", settings=settings, **options)).jobs[0]

    return make


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(is_true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_true()


@pytest.mark.slow  # starts two processes that import torch
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGHUP", "timeout", "SIGKILL local", "SIGTERM local"])
def test_no_process_runs_after_its_parent(make_job, plugin_methods: Path, tmp_path: Path, how: str) -> None:
    how, _, executor = how.partition(" ")
    pids, temporary = tmp_path / "pids", tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "job").write_bytes(pickle.dumps(make_job("starts processes", file=pids)))
    executor = executor or ("3" if how == "timeout" else "0")
    command = [sys.executable, "-c", RUN_JOB, str(tmp_path / "job"), str(plugin_methods), executor]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        assert wait_until(lambda: pids.exists() and len(pids.read_text("utf-8").split()) == 4)
        numbers = [int(pid) for pid in pids.read_text("utf-8").split()]
        assert all(map(is_running, numbers)) or how == "timeout"
        if how != "timeout":
            time.sleep(1)  # the watcher must find the processes once
            process.send_signal(signal.Signals[how])
        process.wait(60)
    running = [pid for pid in numbers if not wait_until(lambda pid=pid: not is_running(pid), 10)]
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert running == []
    has_child = executor != "local"
    assert bool(list(temporary.iterdir())) == (
        how != "timeout" and has_child
    )  # a parent that is killed leaves its folder
    os.environ["TMPDIR"], before = str(temporary), os.environ.get("TMPDIR")
    tempfile.tempdir = None
    try:
        list(run_in_subprocess([make_job("none")], lambda *_: None))  # the next call removes it
        assert list(temporary.iterdir()) == []
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        os.environ.update({} if before is None else {"TMPDIR": before})


START_PROCESSES = """
import subprocess, sys, time
from pathlib import Path
from bench.execution.process_tree import descendants_end_with_this_process

START = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
before = subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True)
pids = [before.pid, int(before.stdout.readline())]
with descendants_end_with_this_process():
    pids.append(subprocess.Popen(["sleep", "60"]).pid)
    print(*pids, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the children of a process")
def test_processes_that_the_caller_started_before_the_fits_are_not_killed() -> None:
    command = [sys.executable, "-c", START_PROCESSES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True) as process:
        assert process.stdout is not None
        before, child_of_before, during = map(int, process.stdout.readline().split())
        time.sleep(1)  # the watcher must find the processes once
        process.kill()
    try:
        assert wait_until(lambda: not is_running(during), 10)
        assert is_running(before)
        assert is_running(child_of_before)
    finally:
        os.kill(before, signal.SIGKILL)
        os.kill(child_of_before, signal.SIGKILL)


@pytest.mark.slow  # starts a process that imports torch
def test_a_child_that_is_killed_is_noticed_while_a_process_that_it_forked_holds_the_pipe(
    make_job, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    ((_, (outcome,)),) = run_in_subprocess([make_job("forks and is killed", file=file)], lambda *_: None)
    assert "was killed by SIGKILL in phase 'fit'" in outcome.record.failure
    assert wait_until(lambda: not is_running(int(file.read_text("utf-8"))), 10)


@pytest.mark.slow  # starts processes that import torch
@pytest.mark.parametrize("fault", ["hangs in explain", "is killed in explain"])
def test_metrics_that_are_finished_are_kept_after_a_child_that_ends_in_explain(plan_parts, fault: str) -> None:
    plan = plan_parts(
        method="faulty", category="bolt", settings={"fault": fault}, time=True, timeout=8, keep_model=True
    )
    (record,) = run_schedule(plan, make_schedule(plan), lambda *_: None)
    assert not record.failure
    assert record.metrics["image_auroc"] == 1.0
    assert "median_ms" not in record.latency
    (warning,) = (warning for warning in record.warnings if "There are no pictures and no latency." in warning)
    assert "in phase 'explain'" in warning
    assert make_schedule(plan).jobs == ()  # the next call does not repeat it


@pytest.mark.slow  # starts a process that imports torch
def test_a_time_out_in_predict_names_this_phase_and_the_record_has_the_time_of_its_start(make_job) -> None:
    before = datetime.now(UTC)
    ((_, (outcome,)),) = run_in_subprocess([make_job("hangs in predict")], lambda *_: None, timeout=4)
    after = datetime.now(UTC)
    record: Record = outcome.record
    assert record.failure.startswith("Stopped after --timeout 4 seconds in phase 'predict'")
    started = datetime.fromisoformat(record.started)
    assert before < started
    assert (after - started).total_seconds() >= 4
