"""A plug-in that changes the state of its process changes no other method, and its record names the change."""

import gc
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import registry
from bench.execution.job import Job, run_job, run_locally
from bench.execution.schedule import make_schedule
from bench.execution.subprocess_executor import run_in_subprocess
from bench.process_state import restored_state

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))
from leaking import LEAKS, UNNAMED_LEAKS

sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("plugin_methods")


@pytest.fixture
def make_job(plan_parts) -> Callable[..., Job]:
    """Return a function that makes the job of a method on the bolts."""
    return lambda method, **settings: make_schedule(
        plan_parts(method=method, category="bolt", settings=settings), force=True
    ).jobs[0]


@pytest.fixture
def _usable_matplotlib() -> Iterator[None]:
    """Import matplotlib, whose settings exist only then."""
    import matplotlib as mpl

    with mpl.rc_context():
        yield


@pytest.mark.usefixtures("_usable_matplotlib")
@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_restored_and_named_in_the_record(make_job, leak: str) -> None:
    if leak == "CPU affinity" and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("needs a machine with two processors")
    expected = run_job(make_job("meanmap"), lambda *_: None)[0].predictions
    with restored_state("the test") as changed:
        phase = "fit" if leak == "grad mode" else "explain"  # bench itself restores it after explain
        job = make_job("leaking", leak=leak, phase=phase)
        (outcome,) = run_job(job, lambda *_: None)
        (following,) = run_job(make_job("meanmap"), lambda *_: None)
    assert changed == []
    named = [warning for warning in outcome.record.warnings if "changed the state of the process" in warning]
    assert len(named) == 1
    assert leak in named[0]
    assert named[0].startswith("Leaking changed the state of the process: ")
    assert not outcome.record.failure
    assert not any("state of the process" in warning for warning in following.record.warnings)
    assert np.array_equal(following.predictions.maps, expected.maps)


@pytest.mark.parametrize("leak", UNNAMED_LEAKS)
def test_generators_and_filters_of_warnings_are_restored(make_job, leak: str) -> None:
    def state() -> list[object]:
        numpy_state = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
        return [random.getstate(), numpy_state, torch.get_rng_state().tolist(), list(warnings.filters)]

    before = state()
    (outcome,) = run_job(make_job("leaking", leak=leak), lambda *_: None)
    assert state() == before
    assert not any("state of the process" in warning for warning in outcome.record.warnings)


def test_a_state_is_restored_after_a_failure_too(make_job) -> None:
    leak = "an unknown leak raises a KeyError"
    gc.disable()
    with restored_state("the test") as changed:
        (outcome,) = run_job(make_job("leaking", leak=leak), lambda *_: None)
    gc.enable()
    assert changed == []
    assert "KeyError" in str(outcome.record.warnings)  # explain may fail; the metrics are kept
    assert outcome.record.metrics


def test_the_threads_of_a_job_are_not_a_leak(make_job) -> None:
    job = make_job("leaking", leak="Python's generator")
    before = torch.get_num_threads()
    (outcome,) = run_job(replace(job, compute=replace(job.compute, threads=2)), lambda *_: None)
    assert outcome.record.environment["threads"] == 2
    assert torch.get_num_threads() == before
    assert not any("state of the process" in warning for warning in outcome.record.warnings)


def test_a_leak_in_a_child_process_does_not_reach_the_next_job_of_the_child(make_job) -> None:
    jobs = [make_job("leaking", leak=leak) for leak in ("default dtype", "working folder")] + [make_job("meanmap")]
    local = [outcomes[0] for _, outcomes in run_locally(jobs, lambda *_: None)]
    remote = [outcomes[0] for _, outcomes in run_in_subprocess(jobs, lambda *_: None)]
    for one, other in zip(local, remote, strict=True):
        assert one.record.warnings == other.record.warnings
        assert np.array_equal(one.predictions.scores, other.predictions.scores)


IMPORT_LEAKS = """
import os
import signal
import torch
from methods_meanmap import METHOD, Settings
torch.set_default_dtype(torch.float64)
os.environ["LEAKED"] = "yes"
"""


def test_a_leak_of_an_import_is_restored_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = import_module("bench.methods")
    folders = list(package.__path__)
    (tmp_path / "importing.py").write_text(IMPORT_LEAKS.replace("methods_meanmap", "bench.methods.meanmap"), "utf-8")
    registry.add_folder("methods", tmp_path)
    try:
        with restored_state("the test") as changed:
            registry.load("methods", "importing")
    finally:
        package.__path__ = folders
    assert changed == []
    (message,) = [text for text in caplog.messages if "importing" in text]
    assert message.startswith(
        "methods/importing changed the state of the process: environment variables, default dtype"
    )


def test_the_state_is_read_and_restored_without_torch_and_matplotlib() -> None:
    code = "import sys, os\nfrom bench.process_state import restored_state\n"
    code += "with restored_state('the test') as changed:\n    os.umask(0o077)\n"
    code += "print(changed, sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "['umask'] []"


def test_a_thread_that_is_not_the_main_one_leaves_signals_alone(make_job) -> None:
    from concurrent.futures import ThreadPoolExecutor

    handler = signal.getsignal(signal.SIGUSR2)
    with ThreadPoolExecutor(1) as pool:
        (outcome,) = pool.submit(run_job, make_job("meanmap"), lambda *_: None).result()
    assert not outcome.record.failure
    assert signal.getsignal(signal.SIGUSR2) == handler
