"""Timers: which phases are added and subtracted, and which calls a latency measurement makes. No test waits."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench import environment
from bench.evaluation import timing
from bench.evaluation.timing import Clock, latency, parameters, percentiles, profile, throughput, time_call
from bench.method import Method, Prediction, Setup

CPU = torch.device("cpu")


class FakeTime:
    """Replacement of the module `time`, whose clock is set by the tests."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(timing, "time", fake)
    return fake


class RecordingMethod(Method):
    """Record the images of all calls; each call takes the next of the given times in seconds."""

    def __init__(self, now: FakeTime, seconds: Iterator[float]) -> None:
        super().__init__(None, Setup((2, 2), CPU, 0))
        self.images: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.now, self.costs = now, seconds

    def fit(self, train: object, progress: object) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def predict(self, images: Tensor) -> Prediction:
        self.shapes.add(tuple(images.shape))
        self.images.append(float(images[0, 0, 0, 0]))
        self.now.now += next(self.costs)
        return Prediction(images[:, 0, 0, 0], images[:, 0])


def constant(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def images(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 3, 2, 2)


# ---- the clock


def test_a_phase_adds_up_over_its_blocks_and_others_do_not_change_it(now: FakeTime) -> None:
    clock = Clock(CPU)
    for seconds in (1.0, 2.5):
        with clock("fit"):
            now.now += seconds
    now.now += 1000
    with clock("predict"):
        now.now += 0.25
    assert clock.seconds == {"fit": 3.5, "predict": 0.25}


def test_an_excluded_block_is_subtracted_from_the_phase_around_it(now: FakeTime) -> None:
    clock = Clock(CPU)
    with clock("fit"):
        now.now += 3
        for _ in range(2):
            with clock.excluded("fit"):
                now.now += 50
            now.now += 1
    assert clock.seconds == {"fit": 5.0}


def test_a_block_that_raises_is_counted_until_then(now: FakeTime) -> None:
    clock = Clock(CPU)
    with suppress(RuntimeError), clock("fit"):
        now.now += 2
        with clock.excluded("fit"):
            now.now += 7
            raise RuntimeError
    assert clock.seconds == {"fit": 2.0}


def test_the_device_is_synchronized_at_both_ends(now: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    def waiting(device: torch.device) -> None:
        waits.append(device)
        now.now += 10  # queued work of the device

    monkeypatch.setattr(timing, "wait", waiting)
    clock = Clock(torch.device("cuda"))
    with clock("predict"):
        now.now += 1
    assert waits == [torch.device("cuda")] * 2
    assert clock.seconds == {"predict": 11.0}  # earlier work does not count, work of the block does


def test_waiting_for_the_cpu_does_nothing() -> None:
    timing.wait(CPU)


# ---- latency


def test_latency_warms_up_and_then_times_single_images_in_turn(now: FakeTime) -> None:
    costs = iter([9.0, 9.0, *[0.010, 0.020, 0.030, 0.040, 0.050]])
    method = RecordingMethod(now, costs)
    result = latency(method, images(3), warmup=2, passes=5, budget=1000)
    assert method.images == [0, 1, *[0, 1, 2, 0, 1]]
    assert method.shapes == {(1, 3, 2, 2)}
    assert result["samples_ms"] == pytest.approx([10, 20, 30, 40, 50])
    assert result["median_ms"] == pytest.approx(30)
    assert result["p5_ms"] == pytest.approx(12)  # 10 + 0.05 * 4 * 10
    assert result["p95_ms"] == pytest.approx(48)


def test_a_slow_method_has_one_warm_up_and_three_timed_passes(now: FakeTime) -> None:
    method = RecordingMethod(now, constant(60.0))
    result = latency(method, images(8), warmup=10, passes=30, budget=10)
    assert len(method.images) == 4
    assert result["samples_ms"] == pytest.approx([60_000.0] * 3)


def test_the_budget_ends_each_part_early(now: FakeTime) -> None:
    method = RecordingMethod(now, constant(1.0))
    result = latency(method, images(8), warmup=10, passes=30, budget=4.5)
    assert len(method.images) == 5 + 5  # the fifth call starts after 4 seconds, the sixth would start after 5
    assert len(result["samples_ms"]) == 5


# ---- one call


def test_the_time_of_a_call_is_in_milliseconds(now: FakeTime) -> None:
    def function() -> None:
        now.now += 0.25

    assert time_call(function, CPU) == pytest.approx(250)


def test_a_gpu_is_timed_by_events_around_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

        def elapsed_time(self, last: "Event") -> float:
            assert last is not self
            return 7.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append("idle"))
    assert time_call(lambda: calls.append("call"), torch.device("cuda")) == 7.5
    assert calls == ["idle", "record", "call", "record", "synchronize"]


def test_percentiles_contain_the_median_and_all_samples() -> None:
    result = percentiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (result["median_ms"], result["samples_ms"]) == (3.0, [5.0, 1.0, 2.0, 4.0, 3.0])
    assert result["p5_ms"] == pytest.approx(1.2)
    assert result["p95_ms"] == pytest.approx(4.8)


# ---- profile


class BatchMethod(RecordingMethod):
    """A pass takes one second plus one per image; more than `max_batch` images raise an out-of-memory error."""

    def __init__(self, now: FakeTime, max_batch: int = 1000) -> None:
        super().__init__(now, constant(0.0))
        self.max_batch = max_batch

    def predict(self, images: Tensor) -> Prediction:
        if len(images) > self.max_batch:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        self.now.now += 1 + len(images)
        return super().predict(images)


def test_throughput_doubles_the_batch_size_up_to_the_largest(now: FakeTime) -> None:
    method = BatchMethod(now)
    result = throughput(method, images(3), budget=1000, max_batch_size=8)
    assert [row["batch"] for row in result["batches"]] == [1, 2, 4, 8]
    assert [row["images_per_second"] for row in result["batches"]] == pytest.approx([1 / 2, 2 / 3, 4 / 5, 8 / 9])
    assert result["stopped_by"] == "largest"


def test_throughput_ends_if_memory_or_time_runs_out(now: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    result = throughput(BatchMethod(now, max_batch=4), images(3), budget=1000)
    assert ([row["batch"] for row in result["batches"]], result["stopped_by"]) == ([1, 2, 4], "memory")
    result = throughput(BatchMethod(now), images(3), budget=15)  # 3 passes of 4 images take 15 s
    assert ([row["batch"] for row in result["batches"]], result["stopped_by"]) == ([1, 2, 4, 8], "time")
    monkeypatch.setattr(environment, "free_memory", lambda: -1)  # less than the next batch would need
    result = throughput(BatchMethod(now), images(3), budget=1000)
    assert ([row["batch"] for row in result["batches"]], result["stopped_by"]) == ([1], "memory")


def test_an_error_other_than_out_of_memory_is_raised(now: FakeTime) -> None:
    class BrokenMethod(BatchMethod):
        def predict(self, images: Tensor) -> Prediction:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        throughput(BrokenMethod(now), images(3))


def test_the_warm_up_lasts_until_two_windows_agree(now: FakeTime) -> None:
    # 5 slow passes, 5 twice as fast, 5 at full speed, 5 that agree with them, then 4 timed passes
    costs = iter([*[4.0] * 5, *[2.0] * 5, *[1.0] * 5, *[1.02] * 5, *[1.0] * 4])
    method = RecordingMethod(now, costs)
    result = timing.warm_up_and_measure(lambda i: method.predict(images(3)[i % 3][None]), CPU, passes=4, budget=1000)
    assert (result["warmup"], result["is_stable"]) == (20, True)
    assert result["samples_ms"] == pytest.approx([1000.0] * 4)


def test_a_warm_up_that_does_not_become_stable_ends_with_its_budget_and_is_marked(now: FakeTime) -> None:
    def halving() -> Iterator[float]:
        cost = 512.0  # windows of 2560, 1280 and 640 seconds
        while True:
            yield from [cost] * timing.WINDOW
            cost /= 2

    method = RecordingMethod(now, halving())
    result = timing.warm_up_and_measure(lambda _: method.predict(images(1)), CPU, passes=10, budget=4000)
    assert (result["warmup"], result["is_stable"]) == (15, False)


def test_all_three_latencies_are_separate_and_the_network_latency_is_at_the_top_level(now: FakeTime) -> None:
    method = RecordingMethod(now, constant(0.010))

    def read() -> Tensor:
        now.now += 0.003
        return images(1)

    result = profile(method, [read, read], CPU, passes=6, budget=1000, max_batch_size=2)
    assert result["network"]["median_ms"] == pytest.approx(10)
    assert result["loader"]["median_ms"] == pytest.approx(3)
    assert result["end_to_end"]["median_ms"] == pytest.approx(13)
    assert result["median_ms"] == result["network"]["median_ms"]
    assert len(result["samples_ms"]) == 6
    assert result["memory"]["host"] > 0
    assert (result["flops"], result["parameters"], result["state"]) == (0, 0, 0)


def test_flops_are_those_of_one_image_and_a_multiply_add_is_two(now: FakeTime) -> None:
    class MatrixMethod(RecordingMethod):
        def predict(self, images: Tensor) -> Prediction:
            images[:, 0] @ torch.ones(2, 5)  # (b, 2, 2) by (2, 5): 2 * 2 * 5 multiply-adds per image
            tokens = torch.ones(len(images), 1, 3, 4)  # 3 queries, 3 keys, 4 channels
            scaled_dot_product_attention(tokens, tokens, tokens)
            return super().predict(images)

    result = profile(MatrixMethod(now, constant(0.01)), [lambda: images(1)], CPU, passes=3, max_batch_size=1)
    assert result["flops"] == 2 * (2 * 2 * 5 + 3 * 3 * 4 + 3 * 3 * 4)


def test_shared_parameters_count_once_and_parameters_on_meta_do_not_count(now: FakeTime) -> None:
    method = RecordingMethod(now, constant(0.01))
    method.one = torch.nn.Linear(3, 2)  # 6 weights and 2 biases
    method.same = method.one
    with torch.device("meta"):
        method.shapes_only = torch.nn.Linear(100, 100)
    assert parameters(method) == 8
