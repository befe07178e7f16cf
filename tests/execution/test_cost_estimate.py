"""The estimated cost of a plan, computed by hand from two similar records."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.cli.progress_display import time_left
from bench.data.protocol import Task
from bench.execution import cost_estimate
from bench.execution.cost_estimate import CostEstimate, RemainingTime, estimate_cost
from bench.execution.schedule import make_schedule
from bench.store import Store


def test_times_are_proportional_to_the_numbers_of_images_and_the_median_is_used(plan_parts, make_record) -> None:
    (job,) = make_schedule(plan_parts(category="bolt")).jobs
    train, tests = job.task.train, job.task.tests["bolt"]
    similar = make_record(job.run, train_files=["a"] * 10, test_files=["b"] * 2, epoch=4, memory={"host": 7})
    ninety = {"fit": 90.0, "predict": 9.0, "evaluate": 9.0}  # 9 s per image
    records = [
        replace(
            similar, seconds={"fit": 20.0, "predict": 1.0, "evaluate": 1.0}
        ),  # 2 s per training image, 1 s per test
        replace(similar, seconds={"fit": 40.0, "predict": 4.0, "evaluate": 2.0}),  # 4 s and 3 s
        replace(similar, seconds=ninety, environment={"cuda": "13"}),  # on a GPU
        replace(similar, seconds=ninety, selection="oracle"),
        replace(similar, seconds=ninety, run=replace(job.run, settings={})),
        replace(similar, seconds={}, failure="out of memory"),
    ]
    assert (len(train), len(tests)) == (5, 6)
    assert estimate_cost([job], records, gpu=False) == CostEstimate(3.0 * 5 + 2.0 * 6, 0, {"meanmap": 7})
    assert estimate_cost([job], records, gpu=True) == CostEstimate(9.0 * 5 + 9.0 * 6, 0, {"meanmap": 7})
    # The oracle predicts all test images after epochs 2 and 4, and the last epoch is predicted too.
    oracle = replace(job, evaluation=replace(job.evaluation, selection="both", eval_every=2))
    assert estimate_cost([oracle], records, gpu=False).seconds == 3.0 * 5 + 2.0 * 6 * 3
    one_shot = replace(job, task=Task("bolt", train[:1], {"bolt": tests}))  # 3 + 12 s
    unknown = replace(job, run=replace(job.run, settings={"smoothing": 9.0}))
    assert estimate_cost([job, one_shot, unknown], records, gpu=False) == CostEstimate(27.0 + 15.0, 1, {"meanmap": 7})
    assert estimate_cost([job], [], gpu=False) == CostEstimate(0.0, 1, {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time in seconds, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(cost_estimate.time, "monotonic", lambda: now[0])
    return now


def fit(remaining: RemainingTime, clock: list[float], label: str, *, first: float, epoch: float, rest: float) -> None:
    """Run a job of 10 epochs: the first one takes `first` seconds, the others `epoch`, the evaluation `rest`."""
    for done in range(1, 11):
        clock[0] += first if done == 1 else epoch
        remaining.update(label, "fit", done, 10)
    remaining.update(label, "predict", 0, 1)
    clock[0] += rest
    remaining.update(label, "done", 1, 1)


def test_the_time_left_is_that_of_the_epochs_and_jobs_of_each_method(plan_parts, clock: list[float]) -> None:
    jobs = make_schedule(plan_parts(method="meanmap,patchcore", seed=(0, 1), category="bolt")).jobs
    slow, slow_1, quick, quick_1 = (job.label for job in jobs)
    remaining = RemainingTime(jobs, [], gpu=False)
    assert remaining.seconds() == (0, 4)
    clock[0] += 30  # the features of the first epoch take longer
    remaining.update(slow, "fit", 1, 10)
    assert remaining.seconds() == (30 * 9 + 300, 2)  # of seed 1 too, and nothing is known of the other method
    clock[0] += 3
    remaining.update(slow, "fit", 2, 10)
    assert remaining.seconds() == (3 * 8 + 57, 2)
    for done in range(3, 11):
        clock[0] += 3
        remaining.update(slow, "fit", done, 10)
    remaining.update(slow, "predict", 0, 1)
    clock[0] += 6
    remaining.update(slow, "done", 1, 1)
    assert remaining.seconds() == (57 + 6, 2)
    clock[0] += 57
    remaining.update(slow_1, "predict", 0, 1)
    assert remaining.seconds() == (6, 2)
    clock[0] += 10  # later than estimated
    assert remaining.seconds() == (0, 2)
    remaining.update(slow_1, "done", 1, 1)
    fit(remaining, clock, quick, first=1, epoch=1, rest=2)
    assert remaining.seconds() == (12, 0)
    fit(remaining, clock, quick_1, first=1, epoch=1, rest=2)
    assert remaining.seconds() == (0, 0)


def test_the_time_left_uses_similar_records_until_there_are_epochs(plan_parts, make_record, clock: list[float]) -> None:
    (job,) = make_schedule(plan_parts(category="bolt")).jobs
    seconds = {"fit": 20.0, "predict": 1.0, "evaluate": 1.0}
    similar = make_record(job.run, train_files=["a"] * 10, test_files=["b"] * 2, seconds=seconds)
    remaining = RemainingTime([job], [similar], gpu=False)
    assert remaining.seconds() == (2 * 5 + 1 * 6, 0)
    clock[0] += 4
    remaining.update(job.label, "fit", 1, 4)
    assert remaining.seconds() == (4 * 3 + 1 * 6, 0)


def test_parallel_jobs_share_the_time_and_a_failed_one_gives_no_estimate(plan_parts, clock: list[float]) -> None:
    jobs = make_schedule(plan_parts(category="bolt", seed=(0, 1, 2))).jobs
    first, second, _ = (job.label for job in jobs)
    remaining = RemainingTime(jobs, [], gpu=False)
    clock[0] += 10
    remaining.update(first, "fit", 1, 2)
    clock[0] += 10
    remaining.update(second, "fit", 1, 2)  # it reports for the first time, so its start is unknown
    assert remaining.seconds() == (20 / 2, 1)
    clock[0] += 5
    remaining.update(second, "fit", 2, 2)
    remaining.update(first, "done", 1, 1)  # without a prediction
    assert remaining.seconds() == (5, 0)


def test_the_epochs_of_a_checkpoint_take_no_time_but_count_for_the_other_jobs(plan_parts, clock: list[float]) -> None:
    jobs = make_schedule(plan_parts(category="bolt", seed=(0, 1))).jobs
    resumed, other = (job.label for job in jobs)
    checkpoint = Store(jobs[0].runs).checkpoint_path(jobs[0].run, jobs[0].data_hash, "bolt", 0)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    remaining = RemainingTime(jobs, [], gpu=False)
    clock[0] += 2
    remaining.update(resumed, "fit", 7, 10)  # after epoch 6, which the checkpoint has
    assert remaining.seconds() == (3 * 2 + 10 * 2, 0)
    for done in (8, 9, 10):
        clock[0] += 2
        remaining.update(resumed, "fit", done, 10)
    remaining.update(resumed, "predict", 0, 1)
    clock[0] += 5
    assert remaining.seconds() == (20, 0)
    remaining.update(resumed, "done", 1, 1)
    assert remaining.seconds() == (20 + 5, 0)
    clock[0] += 3
    remaining.update(other, "fit", 2, 10)  # without a checkpoint, the first call may be after several epochs
    assert remaining.seconds() == (1.5 * 8 + 5, 0)


def test_the_time_left_includes_the_evaluations_of_the_oracle(plan_parts, make_record, clock: list[float]) -> None:
    plan = plan_parts(method="riad", category="bolt", selection="both", eval_every=2)
    (job,) = make_schedule(plan).jobs
    seconds = {"fit": 20.0, "predict": 1.0, "evaluate": 1.0}
    similar = make_record(job.run, train_files=["a"] * 10, test_files=["b"] * 2, seconds=seconds, epoch=4)
    assert RemainingTime([job], [similar], gpu=False).seconds() == (2 * 5 + 1 * 6 * 3, 0)
    assert estimate_cost([job], [similar], gpu=False).seconds == 2 * 5 + 1 * 6 * 3


def test_the_time_left_of_many_jobs_needs_no_hash_per_call(plan_parts, clock: list[float], monkeypatch) -> None:
    jobs = make_schedule(plan_parts(category="bolt", seed=tuple(range(20)))).jobs
    remaining = RemainingTime(jobs, [], gpu=False)
    monkeypatch.setattr(cost_estimate, "cost_key", None)
    clock[0] += 1
    remaining.update(jobs[0].label, "fit", 1, 1)
    assert remaining.seconds() == (19, 0)


@pytest.mark.parametrize(
    ("seconds", "n_unknown", "text"),
    [
        (0, 0, ", almost done"),
        (0, 2, ""),
        (59.6, 0, ", about 60 s left"),
        (240, 0, ", about 4 min left"),
        (240, 1, ", over 4 min left"),
        (9000, 0, ", about 2.5 h left"),
    ],
)
def test_the_time_left_as_text(seconds: float, n_unknown: int, text: str) -> None:
    assert time_left(seconds, n_unknown) == text
