"""Clocks: what is added and taken off, and what a latency measurement asks of a method. Nothing here waits for time."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from bench import timing
from bench.method import Method, Prediction, Setup
from bench.timing import Clock, latency

CPU = torch.device("cpu")


class Time:
    """Stands for the module `time`; only what is told passes."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(timing, "time", fake)
    return fake


class Counting(Method):
    """Remembers which image it was asked for; each call takes so many seconds."""

    def __init__(self, now: Time, seconds: Iterator[float]) -> None:
        super().__init__(None, Setup((2, 2), CPU, 0))
        self.asked: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.now, self.costs = now, seconds

    def fit(self, train: object, progress: object) -> None: ...

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None: ...

    def predict(self, images: Tensor) -> Prediction:
        self.shapes.add(tuple(images.shape))
        self.asked.append(float(images[0, 0, 0, 0]))
        self.now.now += next(self.costs)
        return Prediction(images[:, 0, 0, 0], images[:, 0])


def steady(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def images(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 3, 2, 2)


# ---- the clock


def test_a_phase_adds_up_over_its_blocks_and_others_do_not_touch_it(now: Time) -> None:
    clock = Clock(CPU)
    for seconds in (1.0, 2.5):
        with clock("fit"):
            now.now += seconds
    now.now += 1000
    with clock("predict"):
        now.now += 0.25
    assert clock.seconds == {"fit": 3.5, "predict": 0.25}


def test_a_stop_is_taken_off_the_phase_around_it(now: Time) -> None:
    clock = Clock(CPU)
    with clock("fit"):
        now.now += 3
        for _ in range(2):
            with clock.stopped("fit"):
                now.now += 50
            now.now += 1
    assert clock.seconds == {"fit": 5.0}


def test_a_block_that_raises_is_counted_until_then(now: Time) -> None:
    clock = Clock(CPU)
    with suppress(RuntimeError), clock("fit"):
        now.now += 2
        with clock.stopped("fit"):
            now.now += 7
            raise RuntimeError
    assert clock.seconds == {"fit": 2.0}


def test_the_device_is_waited_for_at_both_ends(now: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    def waiting(device: torch.device) -> None:
        waits.append(device)
        now.now += 10  # what the device still had to do

    monkeypatch.setattr(timing, "wait", waiting)
    clock = Clock(torch.device("cuda"))
    with clock("predict"):
        now.now += 1
    assert waits == [torch.device("cuda")] * 2
    assert clock.seconds == {"predict": 11.0}  # work from before the block does not count, work begun in it does


def test_waiting_for_the_cpu_is_nothing() -> None:
    timing.wait(CPU)


# ---- latency


def test_latency_asks_warmup_untimed_then_passes_timed_one_image_at_a_time_in_turn(now: Time) -> None:
    costs = iter([9.0, 9.0, *[0.010, 0.020, 0.030, 0.040, 0.050]])
    method = Counting(now, costs)
    found = latency(method, images(3), warmup=2, passes=5, budget=1000)
    assert method.asked == [0, 1, *[0, 1, 2, 0, 1]]
    assert method.shapes == {(1, 3, 2, 2)}
    assert found["samples_ms"] == pytest.approx([10, 20, 30, 40, 50])
    assert found["median_ms"] == pytest.approx(30)
    assert found["p5_ms"] == pytest.approx(12)  # 10 + 0.05 * 4 * 10
    assert found["p95_ms"] == pytest.approx(48)


def test_a_slow_method_is_asked_once_to_warm_up_and_three_times_timed(now: Time) -> None:
    method = Counting(now, steady(60.0))
    found = latency(method, images(8), warmup=10, passes=30, budget=10)
    assert len(method.asked) == 4
    assert found["samples_ms"] == pytest.approx([60_000.0] * 3)


def test_the_budget_ends_each_part_early(now: Time) -> None:
    method = Counting(now, steady(1.0))
    found = latency(method, images(8), warmup=10, passes=30, budget=4.5)
    assert len(method.asked) == 5 + 5  # the fifth begins after 4 seconds, the sixth would begin after 5
    assert len(found["samples_ms"]) == 5
