"""A fit that is interrupted continues from its last checkpoint and learns the same, bit by bit."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bench import environment, registry
from bench.config.method_metadata import method_metadata
from bench.config.settings import resolve
from bench.environment import seed_everything
from bench.execution.fit_checkpoint import FitCheckpoints, _code_hash, _imported_packages
from bench.execution.method_checks import SIZE, SyntheticImages
from bench.execution.schedule import make_schedule, run_schedule
from bench.method import Method, Setup
from bench.record import Record
from bench.store import Store

ALWAYS = 1e-9  # minutes: a checkpoint after each epoch
EPOCHS = {"epochs": 4}
METHODS: dict[str, dict[str, Any]] = {
    "aminet": EPOCHS | {"decoder_epochs": 3, "jitter": True},
    "anomalib": EPOCHS | {"model": "Stfpm", "options": '{"layers": ["blocks.1", "blocks.2"]}'},
    "autoencoder": EPOCHS,
    "cfa": EPOCHS,
    "dfr": EPOCHS,
    "differnet": EPOCHS,
    "draem": EPOCHS | {"lr_drop_epochs": (2, 3)},
    "fastflow": EPOCHS,
    "intra": EPOCHS | {"validation_fraction": 0.4, "patience": 1},
    "mbpfm": EPOCHS,
    "mfrnet": EPOCHS | {"validation_fraction": 0.4, "patience": 2},
    "mkd": EPOCHS,
    "mstunet": EPOCHS,
    "patchsvdd": EPOCHS,
    "rd4ad": EPOCHS,
    "regad": {"pretrain_epochs": 3},
    "riad": EPOCHS | {"validation_fraction": 0.4, "patience": 2},
    "scadn": EPOCHS,
    "simplenet": EPOCHS,
    "ssm": EPOCHS,
    "stmae": EPOCHS,
    "tdg": {"iterations": 3},
    "trustmae": EPOCHS | {"warmup_epochs": 2},
    "uniad": EPOCHS | {"lr_drop_epoch": 3},
    "us": EPOCHS | {"teacher_images": "categories"},
    "vtadl": EPOCHS,
}
"""Settings, in addition to those of the profile "check", that reach every branch of a loop."""

SEVERAL_LOOPS = {"aminet", "regad", "riad", "tdg", "trustmae", "us"}
"""Methods with several loops or with early stopping, which are interrupted at several calls of progress."""


class InterruptionError(Exception):
    """Ends a fit."""


def interrupt_at(call: int) -> Callable[..., None]:
    """Return a progress callback whose call of that number, from 1, raises an error."""
    remaining = call

    def progress(*_: object) -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            raise InterruptionError

    return progress


def fit_method(name: str, progress: Callable[..., None], folder: Path | None) -> Method:
    """Fit a method on tiny images, with checkpoints in a folder."""
    module = registry.load("methods", name)
    values: Mapping[str, Any] = dict(method_metadata(name).profiles.get("check", {})) | METHODS[name]
    settings, _ = resolve(module.Settings, {key: (value, "test") for key, value in values.items()}, name)
    seed_everything(3)
    method: Method = module.METHOD(settings, Setup(SIZE, torch.device("cpu"), 3))
    if folder:
        checkpoints = FitCheckpoints(lambda number: folder / str(number), {}, 0, name)
        checkpoints.load()
        method.epoch_loop = checkpoints.epochs
    if method.pretrains:
        method.pretrain({"first": SyntheticImages(count=4, seed=8), "second": SyntheticImages(seed=9)}, progress)
    method.fit(SyntheticImages(), progress)
    return method


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "anomalib" else ()) for name in METHODS]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # from imports of an external library
def test_a_fit_continues_bit_by_bit_after_any_epoch(name: str, tmp_path: Path) -> None:
    pytest.importorskip("anomalib") if name == "anomalib" else None
    calls: list[object] = []
    expected = fit_method(name, lambda *call: calls.append(call), None)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()
    middle = len(calls) // 2 + 1
    for call in {2, middle, len(calls)} if name in SEVERAL_LOOPS else {middle}:
        folder = tmp_path / str(call)
        with pytest.raises(InterruptionError):
            fit_method(name, interrupt_at(call), folder)
        assert any(folder.iterdir())
        later_calls: list[object] = []
        method = fit_method(name, lambda *call, calls=later_calls: calls.append(call), folder)
        state = method.state_dict()
        assert state.keys() == expected.state_dict().keys()
        assert [key for key, value in expected.state_dict().items() if not torch.equal(state[key], value)] == []
        assert method.info() == expected.info()
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert np.random.get_state()[1].tolist() == generators[1]
        assert len(later_calls) < len(calls)


def test_every_method_with_epochs_uses_checkpoints() -> None:
    texts = {name: registry.source_file("methods", name).read_text("utf-8") for name in registry.names("methods")}
    assert METHODS.keys() == {name for name, text in texts.items() if "self.epochs(" in text}
    assert not [name for name, text in texts.items() if "for epoch in range" in text]


@pytest.fixture
def run_riad(plan_parts, run_plan):
    """Return a function that runs RIAD for 5 epochs with a checkpoint after each."""

    def run(runs: str, **options: Any) -> list[Record]:
        return run_plan(plan_riad(plan_parts, runs, **options))

    return run


def plan_riad(plan_parts, runs: str, **options: Any):
    defaults = {"method": "riad", "category": "bolt", "selection": "both", "eval_every": 2, "keep_model": True}
    return plan_parts(settings={"epochs": "5"}, runs=runs, **(defaults | {"checkpoint_minutes": ALWAYS} | options))


def interrupt(plan, epoch: int) -> None:
    """Run a plan until the progress of an epoch raises KeyboardInterrupt."""

    def progress(_label: str, phase: str, done: int, _total: int, _loss: float | None) -> None:
        if phase == "fit" and done == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_schedule(plan, make_schedule(plan), progress))


def checkpoints_below(plan) -> list[Path]:
    return sorted(plan.runs.rglob("*.checkpoint"))


def assert_same_results(records: list[Record], expected: list[Record], runs: Path, expected_runs: Path) -> None:
    assert len(records) == len(expected) == 2
    for record, other in zip(records, expected, strict=True):
        assert not record.failure
        for name in ("losses", "metrics", "metrics_by_epoch", "epoch", "threshold"):
            assert getattr(record, name) == getattr(other, name)
        for name in ("sha256", "model_sha256"):
            assert record.artifacts.get(name) == other.artifacts.get(name)
        scores, others = (Store(each).predictions(one) for each, one in ((runs, record), (expected_runs, other)))
        assert np.array_equal(scores.scores, others.scores)
        assert np.array_equal(scores.maps, others.maps)


@pytest.mark.parametrize("calibrate", [0.0, 0.4])
def test_a_run_that_was_interrupted_twice_continues(plan_parts, run_riad, run_plan, calibrate: float) -> None:
    expected = run_riad("expected", calibrate=calibrate)
    plan = plan_riad(plan_parts, "interrupted", calibrate=calibrate)
    interrupt(plan, 4)
    (file,) = checkpoints_below(plan)
    assert file.name == "bolt.0.checkpoint"
    interrupt(plan, 5)
    records = run_plan(plan)
    assert_same_results(records, expected, plan.runs, plan.runs.parent / "expected")
    first, second = records[0].resumed_after
    assert 0 < first < second < records[0].seconds["fit"]
    assert expected[0].resumed_after == []
    assert Record.from_json(records[0].to_json()).resumed_after == [first, second]
    assert checkpoints_below(plan) == []


def test_a_fit_whose_process_is_killed_continues(parts: Path, plan_parts, run_plan) -> None:
    plan = plan_long(plan_parts, "killed", 40)
    command = [
        sys.executable, "-m", "bench", "run", "--method", "riad", "--dataset", "folder", "--data", str(parts),
        "--category", "bolt", "--profile", "check", "--protocol", "one-for-one", "--set", "epochs=40",
        "--threads", "1", "--no-time", "--keep-model", "--checkpoint-minutes", f"{ALWAYS}", "--runs", str(plan.runs),
        "-q",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=registry.__file__.rsplit("/bench/", 1)[0], env=os.environ)
    deadline = time.monotonic() + 120
    while not checkpoints_below(plan) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints_below(plan)
    (record,) = run_plan(plan)
    (expected,) = run_plan(plan_long(plan_parts, "expected", 40))
    assert len(record.resumed_after) == 1
    assert record.losses == expected.losses
    assert record.artifacts["model_sha256"] == expected.artifacts["model_sha256"]


def plan_long(plan_parts, runs: str, epochs: int):
    return plan_parts(
        method="riad", category="bolt", settings={"epochs": str(epochs)}, runs=runs, keep_model=True,
        checkpoint_minutes=ALWAYS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("threads", "differs in: threads"),
        ("torch", "differs in: torch"),
        ("code", "differs in: version of the code"),
        ("selection", "differs in: evaluation"),
        ("package", "differs in: packages of the method"),
        ("damage", "cannot be read"),
    ],
)
def test_a_checkpoint_of_another_fit_is_ignored_with_a_line(
    plan_parts, run_plan, monkeypatch, change: str, reason: str
) -> None:
    plan = plan_riad(plan_parts, "interrupted")
    interrupt(plan, 3)
    (file,) = checkpoints_below(plan)
    if change == "damage":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "selection":
        plan = plan_riad(plan_parts, "interrupted", eval_every=3)
    elif change == "code":
        monkeypatch.setattr("bench.execution.fit_checkpoint._code_hash", lambda _: "another")
    elif change == "package":
        monkeypatch.setattr("bench.execution.fit_checkpoint._imported_packages", lambda _: "torch 0")
    else:
        describe = environment.describe
        monkeypatch.setattr(environment, "describe", lambda device: describe(device) | {change: "another"})
    record = run_plan(plan)[0]
    assert record.resumed_after == []
    (warning,) = [text for text in record.warnings if "checkpoint" in text]
    assert warning.startswith("RIAD bolt, seed 0: a checkpoint is ignored, because it ")
    assert reason in warning
    assert len(record.losses) == 5


def test_a_fit_continues_with_options_that_do_not_change_its_state(plan_parts, run_plan) -> None:
    options = {"selection": "last", "eval_every": None, "keep_model": False}
    interrupt(plan_riad(plan_parts, "runs", **options, batch_size=2, time=False), 3)
    (record,) = run_plan(plan_riad(plan_parts, "runs", **options, batch_size=4, time=True))
    assert len(record.resumed_after) == 1


@pytest.mark.parametrize("edited", ["mine.py", "sibling.py", "parts/networks.py"])
def test_an_edited_file_in_the_folder_of_a_method_changes_the_version_of_the_code(tmp_path: Path, edited: str) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("mine.py", "sibling.py", "parts/networks.py"):
        (tmp_path / name).write_text("LR = 1\n", "utf-8")
    module = ModuleType("mine")
    module.__file__ = str(tmp_path / "mine.py")
    before = _code_hash(module)
    assert _code_hash(module) == before
    (tmp_path / edited).write_text("LR = 2\n", "utf-8")
    assert _code_hash(module) != before


def test_the_version_of_each_package_that_a_method_imports_is_part_of_its_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import math\nimport torch.nn as nn\n\ndef fit():\n    from numpy.linalg import svd\n", "utf-8")
    module = ModuleType("mine")
    module.__file__ = str(file)
    # The versions of the installed packages: torch.__version__ may add a local part, "+cu130", that the package lacks.
    assert _imported_packages(module) == f"numpy {version('numpy')}, torch {version('torch')}"


def flip_bit_of_largest_tensor(content: bytes) -> bytes:
    document = torch.load(io.BytesIO(content[32:]), weights_only=True)
    storages = [tensor.untyped_storage() for tensor in document["state"][0]["tensors"].values()]
    start = content.index(bytes(max(storages, key=len)))
    return content[: start + 3] + bytes([content[start + 3] ^ 1]) + content[start + 4 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: b"", "its checksum differs"),
        (lambda content: content[:5000], "its checksum differs"),
        (flip_bit_of_largest_tensor, "its checksum differs"),
        (None, "not a regular file"),
    ],
    ids=["empty", "truncated", "one bit", "pipe"],
)
def test_a_damaged_checkpoint_changes_no_number(
    plan_parts, run_plan, damage: Callable[[bytes], bytes] | None, reason: str
) -> None:
    plan = plan_riad(plan_parts, "interrupted")
    interrupt(plan, 3)
    (file,) = checkpoints_below(plan)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(damage(content)) if damage else os.mkfifo(file)
    record = run_plan(plan)[0]
    assert not record.failure
    assert record.resumed_after == []
    assert f"cannot be read ({reason})" in record.warnings[0]


@pytest.mark.parametrize(
    "change",
    [{"epoch": 10**9}, {"epoch": -5}, {"epoch": "x"}, {"epoch": 2.5}, {"key": []}],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_a_checkpoint_with_a_wrong_epoch_or_key_is_ignored(plan_parts, run_plan, change: dict[str, Any]) -> None:
    plan = plan_riad(plan_parts, "interrupted")
    interrupt(plan, 3)
    change_checkpoint(*checkpoints_below(plan), change)
    record = run_plan(plan)[0]
    assert not record.failure
    assert len(record.losses) == 5
    assert "a checkpoint is ignored" in record.warnings[0]


@pytest.mark.parametrize(
    "change",
    [
        {"fit": {}}, {"fit": []}, {"total": 4}, {"state": []}, {"learned": {"fit": {"number": None, "value": 3}}},
        {"generators": {}},
    ],
    ids="-".join,
)  # fmt: skip
def test_a_checkpoint_with_another_content_is_removed_so_the_next_call_runs(
    plan_parts, run_plan, change: dict[str, Any]
) -> None:
    plan = plan_riad(plan_parts, "interrupted")
    interrupt(plan, 3)
    change_checkpoint(*checkpoints_below(plan), change)
    record = run_plan(plan)[0]
    assert record.failure.startswith("A checkpoint must have the state of its fit, but it differs (")
    assert "\n" not in record.failure
    assert len(run_plan(plan)[0].losses) == 5


def change_checkpoint(file: Path, change: dict[str, Any]) -> None:
    document = torch.load(io.BytesIO(file.read_bytes()[32:]), weights_only=True)
    packed = io.BytesIO()
    torch.save(document | change, packed)
    file.write_bytes(sha256(packed.getvalue()).digest() + packed.getvalue())


def test_all_checkpoints_of_a_fit_are_removed_and_the_first_one_last(plan_parts, monkeypatch) -> None:
    plan = plan_riad(plan_parts, "runs")
    (job,) = make_schedule(plan).jobs
    store, removed = Store(plan.runs), []
    for task, number in (("bolt", 0), ("bolt", 1), ("bolt", 3), ("bolt.v2", 0), ("bolt2", 0)):  # a call removed bolt.2
        file = store.checkpoint_path(job.run, job.data_hash, task, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.setattr(Path, "unlink", lambda path, **_: removed.append(path.name))
    store.remove_checkpoints(job.run, job.data_hash, "bolt")
    assert removed == ["bolt.3.checkpoint", "bolt.1.checkpoint", "bolt.0.checkpoint"]


def test_a_forced_fit_starts_again_and_leaves_no_checkpoint(plan_parts, run_plan) -> None:
    plan = plan_riad(plan_parts, "forced")
    interrupt(plan, 4)
    assert len(checkpoints_below(plan)) == 1
    record = run_plan(plan, force=True)[0]
    assert record.resumed_after == []
    assert len(record.losses) == 5
    assert checkpoints_below(plan) == []


def test_the_next_call_removes_the_checkpoint_of_a_fit_whose_record_exists(plan_parts, run_plan) -> None:
    plan = plan_riad(plan_parts, "killed")
    interrupt(plan, 4)
    (file,) = checkpoints_below(plan)
    content = file.read_bytes()
    run_plan(plan)
    file.write_bytes(content)  # as if the process had been killed after it saved the record
    assert run_plan(plan) == []
    assert checkpoints_below(plan) == []


def test_a_state_that_cannot_be_saved_ends_no_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = FitCheckpoints(lambda number: tmp_path / str(number), {}, 0, "plug-in")
    method = registry.load("methods", "meanmap").METHOD(None, Setup(SIZE, torch.device("cpu"), 3))
    state = {"schedule": lambda step: step}
    assert list(checkpoints.epochs(method, 3, (state,), is_last=True)) == [1, 2, 3]
    assert "plug-in: no checkpoint could be written (" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_without_checkpoints_a_fit_starts_again(plan_parts, run_plan) -> None:
    plan = plan_riad(plan_parts, "off", checkpoint_minutes=0.0)
    interrupt(plan, 4)
    assert checkpoints_below(plan) == []
    rare = plan_riad(plan_parts, "rare", checkpoint_minutes=5.0)
    interrupt(rare, 4)
    assert checkpoints_below(rare) == []
    interrupt(plan_riad(plan_parts, "off"), 4)
    record = run_plan(plan)[0]  # does not use the checkpoint either
    assert record.resumed_after == []
    assert checkpoints_below(plan) == []


def test_the_checkpoints_of_a_failed_fit_remain(plan_parts) -> None:
    plan = plan_long(plan_parts, "failed", 5)

    def fail(_label: str, phase: str, done: int, _total: int, _loss: float | None) -> None:
        if phase == "fit" and done == 4:
            raise OSError("no memory")

    (record,) = run_schedule(plan, make_schedule(plan), fail)
    assert "no memory" in record.failure
    assert len(checkpoints_below(plan)) == 1
    (record,) = run_schedule(plan, make_schedule(plan), lambda *_: None)
    assert len(record.resumed_after) == 1
    assert checkpoints_below(plan) == []


def test_a_full_disk_ends_no_fit(plan_parts, run_plan, monkeypatch) -> None:
    def no_space(_files: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.execution.fit_checkpoint.write_files", no_space)
    record = run_plan(plan_riad(plan_parts, "full"))[0]
    assert not record.failure
    assert any("no checkpoint could be written (No space left on device)" in text for text in record.warnings)


def test_a_time_limit_shortens_the_time_between_checkpoints(plan_parts) -> None:
    from bench.execution.fit_checkpoint import job_checkpoints
    from bench.execution.job import build_method

    plan = plan_riad(plan_parts, "limit", checkpoint_minutes=5.0, timeout=8.0)
    plan.runs.mkdir()
    (job,) = make_schedule(plan).jobs
    module, method = build_method(job)
    checkpoints = job_checkpoints(job, module, method.setup.device)
    assert checkpoints is not None
    assert checkpoints._seconds == 2.0
    missing = replace(job, runs=plan.runs / "missing")
    assert job_checkpoints(missing, module, method.setup.device) is None
