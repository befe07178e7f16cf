"""Jobs on a Ray cluster of two nodes on this machine: the same records as locally, also if a worker is killed."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.config.options import ExecutionOptions
from bench.errors import BenchError
from bench.execution.image_shipping import check_local_files, job_files, write_images
from bench.execution.job import Job, run_locally
from bench.execution.ray_executor import resolve_resources, run_on_ray
from bench.execution.schedule import make_schedule
from bench.record import Record
from bench.store import Store

pytestmark = pytest.mark.usefixtures("plugin_methods")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'maskbench[ray]'")
    from ray.cluster_utils import Cluster

    def start(attempts: int = 3) -> Cluster:
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            cluster.add_node(num_cpus=1)
        except Exception:  # Ray waits 30 seconds for a node, which may be too short on a busy machine
            cluster.shutdown()
            if attempts == 1:
                raise
            return start(attempts - 1)
        return cluster

    cluster = start()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def make_job(plan_parts) -> Callable[..., Job]:
    """Return a function that makes the job of a faulty method on the bolts."""

    def make(fault: str = "none", **options: Any) -> Job:
        plan = plan_parts(method="faulty", category="bolt", settings={"fault": fault}, **options)
        return make_schedule(plan, force=True).jobs[0]

    return make


def comparable(record: Record) -> Record:
    """Return the record without times, its path in the store, and the options of the executor."""
    origin = {key: value for key, value in record.origin.items() if key not in {"executor", "address", "ship_data"}}
    return replace(record, seconds={}, latency={}, memory={}, started="", sequence=0, origin=origin)


def sort_records(records: list[Record]) -> list[Record]:
    return sorted(map(comparable, records), key=lambda record: (record.run.name, record.category))


# ---- on two nodes


@pytest.mark.slow  # starts a cluster and a worker per node
@pytest.mark.filterwarnings("ignore")  # Ray's
def test_two_nodes_give_the_records_of_this_process_even_if_a_worker_is_killed(
    two_nodes: str, tmp_path: Path, plan_parts, run_plan, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "killed"
    settings = {"faulty.fault": "is killed once", "faulty.file": str(file)}
    options = {"method": "meanmap,patchcore,faulty", "settings": settings, "protocol": "kshot", "k": "2"}
    remote_plan = plan_parts(runs="remote", executor="ray", address=two_nodes, **options)
    remote = run_plan(remote_plan)
    assert file.exists()  # a worker was killed during its fit
    assert "its worker died; it is started again" in caplog.text
    local_plan = plan_parts(runs="local", **options)
    local = run_plan(local_plan)
    assert [record.failure for record in remote] == [""] * 6
    stored = list(Store(local_plan.runs).records()), list(Store(remote_plan.runs).records())
    assert len(stored[0]) == len(local) == len(remote) == 6
    assert sort_records(stored[0]) == sort_records(stored[1])  # with the hash of the predictions' file


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_continues_from_its_checkpoint_after_its_worker_was_killed(
    two_nodes: str, tmp_path: Path, plan_parts, run_plan
) -> None:
    file = tmp_path / "killed"
    options = {"method": "faulty", "category": "bolt", "checkpoint_minutes": 1e-9, "keep_model": True}
    options["settings"] = {"fault": "is killed in epoch 4 once", "file": str(file)}
    plan = plan_parts(runs="remote", executor="ray", address=two_nodes, **options)
    (remote,) = run_plan(plan)
    assert file.exists()
    assert len(remote.resumed_after) == 1
    (local,) = run_plan(plan_parts(runs="local", **options))
    assert local.resumed_after == []
    assert remote.artifacts["model_sha256"] == local.artifacts["model_sha256"]
    assert not list(plan.runs.rglob("*.checkpoint"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_that_hangs_or_kills_every_worker_fails_alone(two_nodes: str, make_job) -> None:
    updates: list[tuple] = []
    jobs = [make_job(fault) for fault in ("hangs", "is killed", "none")]
    execution = ExecutionOptions(address=two_nodes, timeout=10)
    results = run_on_ray(jobs, lambda *update: updates.append(update), execution)
    records = {job.run.settings["fault"]: outcomes[0].record for job, outcomes in results}
    assert records["hangs"].failure == "Stopped after --timeout 10 seconds in phase 'fit'. Raise it."
    assert records["is killed"].failure.startswith("Its worker failed after 3 attempt(s) in phase 'fit': ")
    assert not records["none"].failure
    assert any(update[1] == "fit" for update in updates)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_images_can_be_shipped_and_a_task_that_fits_no_node_is_an_error(
    two_nodes: str, plan_parts, run_plan, make_job
) -> None:
    plan = plan_parts(executor="ray", address=two_nodes, ship_data=True)
    shipped = run_plan(plan)
    assert list((plan.cache / "shipped").rglob("*.png"))
    assert sort_records(shipped) == sort_records(run_plan(plan_parts(runs="local")))
    with pytest.raises(BenchError, match="A task needs 64 CPU on one node; no node of the cluster has that"):
        list(run_on_ray([make_job(threads=64)], print, ExecutionOptions(address=two_nodes)))


LOSE_HEAD = """
import pickle, sys, threading
from pathlib import Path
from ray.cluster_utils import Cluster
from bench import registry
from bench.config.options import ExecutionOptions
from bench.errors import BenchError
from bench.execution.ray_executor import run_on_ray

registry.add_folder("methods", Path(sys.argv[2]))
cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False)
kill = getattr(cluster.head_node, sys.argv[3])
progress = lambda label, phase, *_: phase == "fit" and threading.Thread(target=kill).start()
try:
    list(run_on_ray([pickle.load(open(sys.argv[1], "rb"))], progress, ExecutionOptions(address=cluster.address)))
except BenchError as error:
    print(error)
"""


@pytest.mark.slow  # starts a cluster
@pytest.mark.parametrize(
    ("killed", "message"), [("kill_gcs_server", "The head of the Ray cluster"), ("kill_raylet", "has no node left")]
)
def test_the_loss_of_a_cluster_is_one_line_that_states_how_to_continue(
    make_job, plugin_methods: Path, tmp_path: Path, killed: str, message: str
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'maskbench[ray]'")
    (tmp_path / "job").write_bytes(pickle.dumps(make_job("hangs")))
    command = [sys.executable, "-c", LOSE_HEAD, str(tmp_path / "job"), str(plugin_methods), killed]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert message in result.stdout, result.stderr[-3000:]
    assert "repeat the command for the others" in result.stdout


# ---- without Ray


def test_the_error_without_ray_states_what_to_install(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchError, match=r"--executor ray needs Ray.*pip install 'maskbench\[ray\]'"):
        list(run_on_ray([make_job()], lambda *_: None, ExecutionOptions()))


def test_a_task_needs_one_thread_unless_the_call_gives_another_number(make_job) -> None:
    assert resolve_resources(make_job(threads=0)).compute.threads == 1
    assert resolve_resources(make_job(threads=3, device="cpu")).compute.threads == 3
    job = make_job(device="cpu")
    on_gpu = replace(job, compute=replace(job.compute, device="cuda:1"))
    assert resolve_resources(on_gpu).compute.device == "cuda"  # Ray chooses the GPU


def test_shipped_images_give_the_same_predictions(parts: Path, make_job) -> None:
    job = make_job()
    (local,) = next(run_locally([job], lambda *_: None))[1]
    shipped = write_images(job, {str(path): path.read_bytes() for path in job_files(job)})
    parts.rename(parts.parent / "moved")
    with pytest.raises(BenchError, match=r"this node has no .*\.png\. Copy the data there, or pass --ship-data"):
        check_local_files(job)
    (remote,) = next(run_locally([check_local_files(shipped)], lambda *_: None))[1]
    assert comparable(local.record) == comparable(remote.record)
    assert np.array_equal(local.predictions.maps, remote.predictions.maps)
    assert write_images(job, {}) == shipped  # existing files are not written again


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({}, True),
        ({"executor": "process"}, True),
        ({"executor": "ray"}, False),
        ({"executor": "ray", "device": "cuda", "gpus_per_task": 0.5}, False),
        ({"executor": "ray", "device": "cuda", "gpus_per_task": 1.0}, True),
    ],
    ids=str,
)
def test_latency_is_measured_only_if_a_fit_has_its_device_exclusively(
    plan_parts, options: dict[str, Any], measured: bool
) -> None:
    jobs = make_schedule(plan_parts(**({"time": True, "device": "cpu"} | options))).jobs
    assert {job.evaluation.time for job in jobs} == {measured}


def test_records_without_latency_are_complete_on_a_cluster_that_measures_none(plan_parts, run_plan) -> None:
    run_plan(plan_parts())
    options = {"time": True, "device": "cpu"}
    assert not make_schedule(plan_parts(executor="ray", **options)).jobs
    assert len(make_schedule(plan_parts(**options)).jobs) == 2
