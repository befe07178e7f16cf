"""Jobs on a Ray cluster of two nodes on this machine: the same records as here, whatever happens to a worker."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import Plan, make_plan
from bench.errors import BenchError
from bench.execution import ray_executor, schedule
from bench.execution.job import Job, run_locally
from bench.record import Record
from bench.store import Store

ODD = Path(__file__).resolve().parents[1] / "plugins"


@pytest.fixture(autouse=True)
def _odd() -> Iterator[None]:
    """The odd method is found, and forgotten again."""
    registry.add_folder("methods", ODD)
    yield
    registry.import_module("bench.methods").__path__ = [str(registry.plugin_folders("methods")[0])]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'maskbench[ray]'")
    from ray.cluster_utils import Cluster

    def started(tries: int = 3) -> Cluster:
        nodes = Cluster()
        try:
            nodes.add_node(num_cpus=1, include_dashboard=False)
            nodes.add_node(num_cpus=1)
        except Exception:  # Ray gives a node 30 seconds, which a busy machine may not have
            nodes.shutdown()
            if tries == 1:
                raise
            return started(tries - 1)
        return nodes

    nodes = started()
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def planned(parts: Path, runs: str, *, settings: dict[str, str] | None = None, **said: object) -> Plan:
    given = {"dataset": "folder", "protocol": "kshot", "k": "2", "threads": 1, "time": False} | said
    paths = {"data": parts, "runs": parts.parent / runs, "cache": parts.parent / "cache"}
    return make_plan(
        load_config(), registry.names("methods"), options=given, settings=settings, profile="check", paths=paths
    )


def ran(plan: Plan) -> list[Record]:
    return list(schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None))


def alike(record: Record) -> Record:
    """Without what tells of the time, and of the executor that was asked for."""
    origin = {name: where for name, where in record.origin.items() if name not in {"executor", "address", "ship_data"}}
    return replace(record, seconds={}, latency={}, memory={}, started="", origin=origin)


def bolt(parts: Path, *hows: str, **settings: str) -> list[Job]:
    """The job on the bolt, done so by the odd method, once for each how."""
    (job,) = schedule.make_schedule(planned(parts, "runs", method="odd", category="bolt", settings=settings)).jobs
    return [replace(job, run=replace(job.run, settings=job.run.settings | {"how": how})) for how in hows]


# ---- on two nodes


@pytest.mark.slow  # starts a cluster and a worker a node
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_nodes_make_the_records_that_this_process_makes_and_a_killed_worker_loses_none(
    two_nodes: str, parts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag = parts.parent / "killed"
    settings = {"odd.how": "is killed once", "odd.flag": str(flag)}
    methods = {"method": "meanmap,patchcore,odd", "settings": settings}
    there = ran(planned(parts, "there", executor="ray", address=two_nodes, **methods))
    assert flag.exists()  # a worker was killed in the middle of its fit
    assert sum("its worker died and it begins again" in message for message in caplog.messages) == 1
    here = ran(planned(parts, "here", **methods))
    assert [record.failure for record in there] == [""] * 6
    one, other = (list(Store(parts.parent / runs).records()) for runs in ("here", "there"))
    assert len(one) == len(here) == len(there) == 6
    assert list(map(alike, one)) == list(map(alike, other))  # the hash of the answers' file is in each of them


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_that_hangs_or_kills_every_worker_fails_alone(two_nodes: str, parts: Path) -> None:
    told: list[tuple] = []
    watch = lambda *words: told.append(words)
    done = ray_executor.run_on_ray(bolt(parts, "hangs", "is killed", "well"), watch, address=two_nodes, timeout=10)
    found = {job.run.settings["how"]: outcomes[0].record for job, outcomes in done}
    assert found["hangs"].failure == "Stopped after --timeout 10 seconds. Raise it."
    assert found["is killed"].failure.startswith("Its worker failed, 3 times in all: ")
    assert not found["well"].failure
    assert any(words[1] == "fit" for words in told)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_data_can_be_shipped_and_what_no_node_has_is_refused(two_nodes: str, parts: Path) -> None:
    plan = planned(parts, "runs", method="meanmap", executor="ray", address=two_nodes, ship_data=True)
    shipped = ran(plan)
    assert list((plan.cache / "shipped").rglob("*.png"))
    here = ran(planned(parts, "here", method="meanmap"))
    assert sorted(map(repr, map(alike, shipped))) == sorted(map(repr, map(alike, here)))
    with pytest.raises(BenchError, match="A task asks for 64 CPU of one node; no node of the cluster has that"):
        list(
            ray_executor.run_on_ray([replace(job, threads=64) for job in bolt(parts, "well")], print, address=two_nodes)
        )


# ---- without Ray


def test_without_ray_one_line_says_what_to_install(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BenchError, match=r"--executor ray needs Ray.*pip install 'maskbench\[ray\]'"):
        list(ray_executor.run_on_ray(bolt(parts, "well"), lambda *_: None))


def test_a_task_asks_for_the_threads_that_it_was_told_or_one(parts: Path) -> None:
    (job,) = bolt(parts, "well")
    assert ray_executor.resolve_resources(replace(job, threads=0)).threads == 1
    assert ray_executor.resolve_resources(replace(job, threads=3, device="cpu")).threads == 3
    assert ray_executor.resolve_resources(replace(job, device="cuda:1")).device == "cuda"  # Ray says which one


def test_shipped_images_are_judged_as_the_callers_are(parts: Path) -> None:
    (job,) = bolt(parts, "well")
    (here,) = next(run_locally([job], lambda *_: None))[1]
    files = {str(path): path.read_bytes() for path in ray_executor._files(job)}
    moved = ray_executor._unpacked(job, files)
    parts.rename(parts.parent / "away")
    with pytest.raises(BenchError, match=r"this one has no .*\.png\. Put the data there, or give --ship-data"):
        ray_executor._at_hand(job)
    (there,) = next(run_locally([ray_executor._at_hand(moved)], lambda *_: None))[1]
    assert alike(here.record) == alike(there.record)
    assert np.array_equal(here.predictions.maps, there.predictions.maps)
    assert ray_executor._unpacked(job, {}) == moved  # what is there is not written again


@pytest.mark.parametrize(
    ("said", "timed"),
    [
        ({}, True),
        ({"executor": "process"}, True),
        ({"executor": "ray"}, False),
        ({"executor": "ray", "device": "cuda", "gpus_per_task": 0.5}, False),
        ({"executor": "ray", "device": "cuda", "gpus_per_task": 1.0}, True),
    ],
    ids=str,
)
def test_latency_is_measured_only_where_a_fit_has_its_device_alone(parts: Path, said: dict, timed: bool) -> None:
    given = {"method": "meanmap", "time": True, "device": "cpu"} | said
    assert {job.time for job in schedule.make_schedule(planned(parts, "runs", **given)).jobs} == {timed}


def test_what_was_made_on_a_cluster_without_latency_is_not_made_again_there(parts: Path) -> None:
    ran(planned(parts, "runs", method="meanmap"))
    again = {"method": "meanmap", "time": True, "device": "cpu"}
    assert not schedule.make_schedule(planned(parts, "runs", executor="ray", **again)).jobs
    assert len(schedule.make_schedule(planned(parts, "runs", **again)).jobs) == 2
