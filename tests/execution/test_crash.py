"""A run that is killed or interrupted at any moment keeps its finished records, and the next call continues it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench.record import Record
from bench.store import Store

KILLS = 50
SEEDS = 60

KILL_REPEATEDLY = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.execution.schedule import make_schedule, run_schedule
from bench.store import Store

parts, runs, kills, seeds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)

def plan_seeds(seeds, runs):
    options = {"dataset": "folder", "protocol": "kshot", "k": "2", "method": "meanmap", "threads": 1, "time": False,
               "seed": ",".join(map(str, range(seeds)))}
    paths = {"data": parts, "runs": runs, "cache": parts.parent / "cache"}
    return make_plan(load_config(), registry.names("methods"), options=options, profile="check", paths=paths)

def run(plan):
    schedule = make_schedule(plan)
    start = time.perf_counter()
    return len(list(run_schedule(plan, schedule, lambda *_: None))), time.perf_counter() - start

plan = plan_seeds(seeds, runs)
run(plan_seeds(4, parts.parent / "warm_up"))
count, seconds = run(plan_seeds(8, parts.parent / "warm_up"))
seconds_per_record = seconds / max(count, 1)  # on this machine at present

def count_complete():
    store = Store(runs)
    records = list(store.records())
    assert len(records) == len(list(runs.rglob("*.json")))
    assert all(len(store.predictions(record).scores) == 6 for record in records)
    return len(records)

generator = random.Random(0)
for _ in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        schedule = make_schedule(plan)
        os.write(writer, b"x")
        list(run_schedule(plan, schedule, lambda *_: None))
        os._exit(1)  # it must have been killed before
    os.read(reader, 1)
    time.sleep(generator.uniform(0, 3 * seconds_per_record))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    count_complete()
before = count_complete()
run(plan)
print(before, count_complete())
"""


def run_with_kills(parts: Path, runs: Path, n_kills: int) -> list[int]:
    """Return the number of complete records after the kills, and after a last run that is not killed."""
    command = [sys.executable, "-c", KILL_REPEATEDLY, str(parts), str(runs), str(n_kills), str(SEEDS)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [int(count) for count in process.stdout.split()]


def records_by_path(runs: Path) -> dict[Path, Record]:
    store = Store(runs)
    return {store.path_of(record).relative_to(runs): record for record in store.records()}


@pytest.mark.slow
def test_a_run_that_is_killed_fifty_times_gives_the_records_of_one_that_is_not_killed(
    parts: Path, tmp_path: Path
) -> None:
    before, after = run_with_kills(parts, tmp_path / "killed", KILLS)
    assert 0 < before < after == 2 * SEEDS  # the kills happened while records were made
    assert run_with_kills(parts, tmp_path / "not_killed", 0) == [0, 2 * SEEDS]
    with_kills, without_kills = records_by_path(tmp_path / "killed"), records_by_path(tmp_path / "not_killed")
    assert with_kills.keys() == without_kills.keys()
    for path, record in with_kills.items():
        assert record.metrics == without_kills[path].metrics
        assert record.artifacts == without_kills[path].artifacts  # with the hash of the predictions' file


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "process", "ray"])
def test_ctrl_c_keeps_finished_records_with_every_executor(parts: Path, executor: str) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="needs Ray: pip install 'maskbench[ray]'")
    plugins = Path(__file__).resolve().parents[1] / "plugins"
    (parts.parent / "bench.toml").write_text(f'[paths]\nmethods = ["{plugins}"]\ncache = "cache"\n', "utf-8")
    command = [sys.executable, "-m", "bench", "--trust", "run", "--dataset", "folder", "--data", "parts", "--profile",
               "check", "--protocol", "one-for-one", "--category", "bolt", "--no-time", "--threads", "1", "--method",
               "meanmap,faulty", "--set", "faulty.fault=hangs", "--executor", executor]  # fmt: skip
    pipe = subprocess.PIPE
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores the signal
    with subprocess.Popen(
        command, cwd=parts.parent, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        signal.signal(signal.SIGINT, previous)
        try:
            while process.poll() is None and not records_by_path(parts.parent / "runs"):
                time.sleep(0.2)
            time.sleep(2)  # the faulty method hangs by now, or its worker is about to start
            os.killpg(process.pid, signal.SIGINT)  # to the command and its children, as a terminal sends it
            _, errors = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert [record.run.name for record in records_by_path(parts.parent / "runs").values()] == ["meanmap"]
