"""Killed or interrupted at any moment, a run keeps what is finished, holds nothing half, and goes on from there."""

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

KILLED_OFTEN = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from bench import campaign, config, registry
from bench.store import Store

parts, runs, kills, seeds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)

def planned(seeds, runs):
    said = {"dataset": "folder", "protocol": "kshot", "k": "2", "method": "meanmap", "threads": 1, "time": False,
            "seed": ",".join(map(str, range(seeds)))}
    paths = {"data": parts, "runs": runs, "cache": parts.parent / "cache"}
    return config.plan(config.read(), registry.names("methods"), options=said, profile="check", paths=paths)

def run(plan):
    survey = campaign.survey(plan)
    start = time.perf_counter()
    return len(list(campaign.run(plan, survey, lambda *_: None))), time.perf_counter() - start

plan = planned(seeds, runs)
warm = planned(4, parts.parent / "warm")
run(warm)
warm = planned(8, parts.parent / "warm")
count, seconds = run(warm)
unit = seconds / max(count, 1)  # what a record takes on this machine, now

def whole():
    store = Store(runs)
    records = list(store.walk())
    assert len(records) == len(list(runs.rglob("*.json")))
    assert all(len(store.answers(record).scores) == 6 for record in records)
    return len(records)

chance = random.Random(0)
for _ in range(kills):
    heard, ready = os.pipe()
    child = os.fork()
    if not child:
        survey = campaign.survey(plan)
        os.write(ready, b"x")
        list(campaign.run(plan, survey, lambda *_: None))
        os._exit(1)  # it was to be killed before
    os.read(heard, 1)
    time.sleep(chance.uniform(0, 3 * unit))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    whole()
before = whole()
run(plan)
print(before, whole())
"""


def done(parts: Path, runs: Path, kills: int) -> list[int]:
    words = [sys.executable, "-c", KILLED_OFTEN, str(parts), str(runs), str(kills), str(SEEDS)]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return [int(count) for count in told.stdout.split()]


def places(runs: Path) -> dict[Path, Record]:
    store = Store(runs)
    return {
        store.path(record.run, record.data_digest, record.category, record.selection).relative_to(runs): record
        for record in store.records()
    }


@pytest.mark.slow
def test_a_run_killed_fifty_times_ends_as_an_undisturbed_one(parts: Path, tmp_path: Path) -> None:
    before, after = done(parts, tmp_path / "killed", KILLS)
    assert 0 < before < after == 2 * SEEDS  # the kills met a run that was at work
    assert done(parts, tmp_path / "undisturbed", 0) == [0, 2 * SEEDS]
    killed, undisturbed = places(tmp_path / "killed"), places(tmp_path / "undisturbed")
    assert killed.keys() == undisturbed.keys()
    for place, record in killed.items():
        assert record.metrics == undisturbed[place].metrics
        assert record.artifacts == undisturbed[place].artifacts  # with the hash of the answers' file


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "process", "ray"])
def test_ctrl_c_keeps_what_is_finished_whoever_executes(parts: Path, executor: str) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="needs Ray: pip install 'maskbench[ray]'")
    odd = Path(__file__).resolve().parents[1] / "plugins"
    (parts.parent / "bench.toml").write_text(f'[paths]\nmethods = ["{odd}"]\ncache = "cache"\n', "utf-8")
    words = [sys.executable, "-m", "bench", "run", "--dataset", "folder", "--data", "parts", "--profile", "check",
             "--protocol", "one-for-one", "--category", "bolt", "--no-time", "--threads", "1", "--method",
             "meanmap,odd", "--set", "odd.how=hangs", "--executor", executor]  # fmt: skip
    piped = subprocess.PIPE
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    with subprocess.Popen(
        words, cwd=parts.parent, stdout=piped, stderr=piped, text=True, start_new_session=True
    ) as running:
        signal.signal(signal.SIGINT, usual)
        try:
            while running.poll() is None and not places(parts.parent / "runs"):
                time.sleep(0.2)
            time.sleep(2)  # the odd method hangs by now, or its worker is about to begin
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the call and all that it started
            _, told = running.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130, told
    assert "goes on from here" in told
    assert "Traceback" not in told
    assert [record.run.name for record in places(parts.parent / "runs").values()] == ["meanmap"]
