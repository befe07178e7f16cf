"""Clocks: what is added and taken off, and what a latency measurement asks of a method. Nothing here waits for time."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench import environment
from bench.evaluation import timing
from bench.evaluation.timing import Clock, latency, milliseconds, parameters, percentiles, profile, throughput
from bench.method import Method, Prediction, Setup

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
            with clock.excluded("fit"):
                now.now += 50
            now.now += 1
    assert clock.seconds == {"fit": 5.0}


def test_a_block_that_raises_is_counted_until_then(now: Time) -> None:
    clock = Clock(CPU)
    with suppress(RuntimeError), clock("fit"):
        now.now += 2
        with clock.excluded("fit"):
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


# ---- one act


def test_the_time_of_an_act_is_told_in_milliseconds(now: Time) -> None:
    def act() -> None:
        now.now += 0.25

    assert milliseconds(act, CPU) == pytest.approx(250)


def test_a_gpu_is_timed_by_events_between_which_all_work_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("record")

        def synchronize(self) -> None:
            said.append("synchronize")

        def elapsed_time(self, last: "Event") -> float:
            assert last is not self
            return 7.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: said.append("idle"))
    assert milliseconds(lambda: said.append("act"), torch.device("cuda")) == 7.5
    assert said == ["idle", "record", "act", "record", "synchronize"]


def test_a_spread_is_median_and_percentiles_and_keeps_every_sample() -> None:
    found = percentiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found["median_ms"], found["samples_ms"]) == (3.0, [5.0, 1.0, 2.0, 4.0, 3.0])
    assert found["p5_ms"] == pytest.approx(1.2)
    assert found["p95_ms"] == pytest.approx(4.8)


# ---- everything


class Growing(Counting):
    """A pass takes a second and another second an image; beyond `room` images it has no memory."""

    def __init__(self, now: Time, room: int = 1000) -> None:
        super().__init__(now, steady(0.0))
        self.room = room

    def predict(self, images: Tensor) -> Prediction:
        if len(images) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        self.now.now += 1 + len(images)
        return super().predict(images)


def test_throughput_grows_the_batch_until_the_largest(now: Time) -> None:
    method = Growing(now)
    found = throughput(method, images(3), budget=1000, largest=8)
    assert [row["batch"] for row in found["batches"]] == [1, 2, 4, 8]
    assert [row["images_per_second"] for row in found["batches"]] == pytest.approx([1 / 2, 2 / 3, 4 / 5, 8 / 9])
    assert found["ended"] == "largest"


def test_throughput_ends_where_memory_or_time_does(now: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    found = throughput(Growing(now, room=4), images(3), budget=1000)
    assert ([row["batch"] for row in found["batches"]], found["ended"]) == ([1, 2, 4], "memory")
    found = throughput(Growing(now), images(3), budget=15)  # 3 passes of 4 images take 15 s
    assert ([row["batch"] for row in found["batches"]], found["ended"]) == ([1, 2, 4, 8], "time")
    monkeypatch.setattr(environment, "free_memory", lambda: -1)  # less than the next batch would need
    found = throughput(Growing(now), images(3), budget=1000)
    assert ([row["batch"] for row in found["batches"]], found["ended"]) == ([1], "memory")


def test_an_error_that_is_not_of_memory_is_not_hidden(now: Time) -> None:
    class Broken(Growing):
        def predict(self, images: Tensor) -> Prediction:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        throughput(Broken(now), images(3))


def test_a_warm_up_lasts_until_two_windows_agree(now: Time) -> None:
    # 5 slow passes, 5 half as slow, 5 at full speed, 5 more that agree with them, then 4 that are timed
    costs = iter([*[4.0] * 5, *[2.0] * 5, *[1.0] * 5, *[1.02] * 5, *[1.0] * 4])
    method = Counting(now, costs)
    found = timing._steady(lambda i: method.predict(images(3)[i % 3][None]), CPU, passes=4, budget=1000)
    assert (found["warmup"], found["settled"]) == (20, True)
    assert found["samples_ms"] == pytest.approx([1000.0] * 4)


def test_a_warm_up_that_never_settles_ends_with_its_budget_and_says_so(now: Time) -> None:
    def halving() -> Iterator[float]:
        cost = 512.0  # windows of 2560, 1280 and 640 seconds
        while True:
            yield from [cost] * timing.WINDOW
            cost /= 2

    method = Counting(now, halving())
    found = timing._steady(lambda _: method.predict(images(1)), CPU, passes=10, budget=4000)
    assert (found["warmup"], found["settled"]) == (15, False)


def test_all_three_latencies_are_told_apart_and_the_networks_stands_at_the_top(now: Time) -> None:
    method = Counting(now, steady(0.010))

    def read() -> Tensor:
        now.now += 0.003
        return images(1)

    found = profile(method, [read, read], CPU, passes=6, budget=1000, largest=2)
    assert found["network"]["median_ms"] == pytest.approx(10)
    assert found["loader"]["median_ms"] == pytest.approx(3)
    assert found["end_to_end"]["median_ms"] == pytest.approx(13)
    assert found["median_ms"] == found["network"]["median_ms"]
    assert len(found["samples_ms"]) == 6
    assert found["memory"]["host"] > 0
    assert (found["flops"], found["parameters"], found["state"]) == (0, 0, 0)


def test_flops_are_those_of_one_image_with_a_multiply_add_as_two(now: Time) -> None:
    class Multiplying(Counting):
        def predict(self, images: Tensor) -> Prediction:
            images[:, 0] @ torch.ones(2, 5)  # (b, 2, 2) by (2, 5): 2 * 2 * 5 multiply-adds an image
            tokens = torch.ones(len(images), 1, 3, 4)  # each of 3 asks 3 others by 4 numbers, and mixes 4 of each
            scaled_dot_product_attention(tokens, tokens, tokens)
            return super().predict(images)

    found = profile(Multiplying(now, steady(0.01)), [lambda: images(1)], CPU, passes=3, largest=1)
    assert found["flops"] == 2 * (2 * 2 * 5 + 3 * 3 * 4 + 3 * 3 * 4)


def test_parameters_are_counted_once_and_those_without_memory_not_at_all(now: Time) -> None:
    method = Counting(now, steady(0.01))
    method.one = torch.nn.Linear(3, 2)  # 6 weights and 2 biases
    method.again = method.one
    with torch.device("meta"):
        method.shapes_only = torch.nn.Linear(100, 100)
    assert parameters(method) == 8
