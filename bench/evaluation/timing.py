"""Timers that synchronize with the device, and the cost of a fitted method: latency, throughput, memory, FLOPs.

Three latencies of one image are measured separately:

    network      preprocessed image on the device -> final map and score on the device
    loader       file -> decoded and resized tensor in main memory; the file is in the cache of the operating system
    end_to_end   file -> decoded, resized, copied to the device, predicted -> map and score in main memory
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import environment
from bench.method import Method

WINDOW = 5
"""Number of passes per window; the warm-up compares the medians of two successive windows."""

WARMUP_TOLERANCE = 0.05
"""Largest relative difference of the medians of two successive windows at which the warm-up ends."""

STAGES = {
    "network": "preprocessed image on the device -> map and score on the device",
    "loader": "file -> preprocessed tensor",
    "end_to_end": "file -> map and score in main memory",
}
"""What each latency of `profile` includes."""


class Clock:
    """Measure seconds per phase; synchronize with the device at the start and the end of each measurement."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}  # start of the phases that are measured now

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        """Add the time of a `with` block to the phase."""
        return self._measured(phase, 1)

    def excluded(self, phase: str) -> AbstractContextManager[None]:
        """Subtract the time of a `with` block from the enclosing phase."""
        return self._measured(phase, -1)

    def so_far(self) -> dict[str, float]:
        """Return the seconds per phase, with those of a phase that is still measured."""
        wait(self.device)
        now = time.perf_counter()
        running = {phase: self.seconds.get(phase, 0.0) + now - start for phase, start in self._running.items()}
        return self.seconds | running

    @contextmanager
    def _measured(self, phase: str, sign: int) -> Iterator[None]:
        wait(self.device)
        start = time.perf_counter()
        if sign > 0:
            self._running[phase] = start
        try:
            yield
        finally:
            wait(self.device)
            if sign > 0:
                del self._running[phase]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + sign * (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(function: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call, with the device idle before and after.

    They are of CUDA events on a GPU, otherwise of `perf_counter`.
    """
    wait(device)
    if device.type == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        function()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))
    start = time.perf_counter()
    function()
    wait(device)
    return (time.perf_counter() - start) * 1000


def percentiles(samples: Sequence[float]) -> dict[str, float | list[float]]:
    """Return the median, the 5th and 95th percentile, and all samples, in milliseconds."""
    low, median, high = (float(value) for value in np.percentile(samples, [5, 50, 95]))
    return {"median_ms": median, "p5_ms": low, "p95_ms": high, "samples_ms": list(samples)}


def latency(
    method: Method, images: Tensor, *, warmup: int = 10, passes: int = 30, budget: float = 10.0
) -> dict[str, float | list[float]]:
    """Measure the network latency of one image in milliseconds; the short measurement of `bench run`.

    Args:
        method: a fitted method.
        images: (n, 3, h, w) real test images on the device, used cyclically.
        warmup: number of untimed passes.
        passes: number of timed passes, each with the device synchronized at both ends.
        budget: seconds after which the warm-up and the timing each stop early, after at least 1 and 3 passes.

    Returns: the `percentiles` of the timed passes.
    """

    def predict(i: int) -> object:
        return method.predict(images[i % len(images)][None])

    _time_calls(predict, range(warmup), images.device, minimum=1, budget=budget)
    return percentiles(_time_calls(predict, range(passes), images.device, minimum=3, budget=budget))


def profile(
    method: Method,
    load_functions: Sequence[Callable[[], Tensor]],
    device: torch.device,
    *,
    passes: int = 100,
    budget: float = 20.0,
    max_batch_size: int = 256,
) -> dict[str, Any]:
    """Measure the whole cost of a fitted method.

    Args:
        method: a fitted method.
        load_functions: functions that each load a different real test image from its file, (1, 3, h, w) in main memory.
        device: device of the method.
        passes: number of timed passes per latency, after a warm-up until the latency is stable.
        budget: seconds per latency and per batch size; each latency has at least 3 passes.
        max_batch_size: largest batch size of the throughput.

    Returns: the latencies of `STAGES`, "throughput", peak "memory", "flops" of the first image (as counted by torch, a
        multiply-add is 2; operations outside torch are not counted), "parameters" and "state". The network latency is
        also at the top level, as in `latency`.
    """
    images = torch.cat([load_image() for load_image in load_functions]).to(device)

    def predict(i: int) -> object:
        return method.predict(images[i % len(images)][None])

    def load(i: int) -> object:
        return load_functions[i % len(load_functions)]()

    def load_and_predict(i: int) -> object:
        prediction = method.predict(load_functions[i % len(load_functions)]().to(device))
        return prediction.scores.cpu(), prediction.maps.cpu()

    environment.reset_peak(device)
    predict(0)
    costs: dict[str, Any] = {"memory": environment.peak_memory(device)}
    for name, function in zip(STAGES, (predict, load, load_and_predict), strict=True):
        stage_device = device if name != "loader" else torch.device("cpu")
        costs[name] = warm_up_and_measure(function, stage_device, passes=passes, budget=budget)
    # FlopCounterMode does not count fused kernels: compiled ones and, on a CPU, the fused attention.
    eager, unfused = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, eager, unfused:
        predict(0)
    costs |= {"throughput": throughput(method, images, budget=budget, max_batch_size=max_batch_size)}
    costs |= {"flops": counter.get_total_flops(), "parameters": parameters(method), "state": _n_state_values(method)}
    return {name: costs["network"][name] for name in ("median_ms", "p5_ms", "p95_ms", "samples_ms")} | costs


def throughput(method: Method, images: Tensor, *, budget: float = 20.0, max_batch_size: int = 256) -> dict[str, Any]:
    """Measure images per second of the network at batch sizes 1, 2, 4, ...

    Args:
        method: a fitted method.
        images: (n, 3, h, w) test images on the device, used cyclically.
        budget: seconds per batch size.
        max_batch_size: largest batch size.

    Returns: "batches" with one entry per batch size, and "stopped_by": the "largest" batch size reached, "memory"
        exhausted, or "time": 3 passes took longer than the budget.
    """
    device, rows = images.device, list[dict[str, float | int]]()
    batch, stopped_by = 1, "largest"
    while batch <= max_batch_size:
        inputs = images[torch.arange(batch, device=device) % len(images)]
        environment.reset_peak(device)
        before = environment.peak_memory(device).get("host", 0)
        try:
            median = _median_of_batch(method, inputs, budget / 4)
        except RuntimeError as error:  # torch.OutOfMemoryError on a GPU; a plain RuntimeError on a CPU
            if "memory" not in str(error):
                raise
            stopped_by = "memory"
            break
        rows.append({"batch": batch, "median_ms": median, "images_per_second": 1000 * batch / median})
        if 3 * median > budget * 1000:
            stopped_by = "time"
            break
        if device.type == "cpu":
            required, free = environment.peak_memory(device).get("host", 0) - before, environment.free_memory()
            if free is not None and 3 * required > free:
                stopped_by = "memory"  # stop before the operating system kills this process
                break
        batch *= 2
    gc.collect()
    return {"batches": rows, "stopped_by": stopped_by}


def _median_of_batch(method: Method, images: Tensor, budget: float) -> float:
    """Return the median of up to 10 passes in milliseconds."""
    method.predict(images)
    samples = _time_calls(lambda _: method.predict(images), range(10), images.device, minimum=3, budget=budget)
    return float(np.median(samples))


def parameters(method: Method) -> int:
    """Return the number of parameters of the method's networks, frozen ones included."""
    modules = [module for module in vars(method).values() if isinstance(module, nn.Module)]
    unique = {id(value): value for module in modules for value in module.parameters() if value.device.type != "meta"}
    return sum(value.numel() for value in unique.values())


def _n_state_values(method: Method) -> int:
    """Return the number of values in the state of the method: trained weights, a memory bank."""
    return sum(value.numel() for value in method.state_dict().values())


def warm_up_and_measure(
    function: Callable[[int], object], device: torch.device, *, passes: int, budget: float
) -> dict[str, Any]:
    """Warm up until two successive windows agree, then measure.

    Returns: the `percentiles`, with the number of "warmup" passes and whether the latency "is_stable".
    """
    start, warmup, is_stable = time.perf_counter(), list[float](), False
    while not is_stable and time.perf_counter() - start < budget:
        window = range(len(warmup), len(warmup) + WINDOW)
        warmup += _time_calls(function, window, device, minimum=1, budget=budget)
        if len(warmup) >= 2 * WINDOW:
            previous, current = (
                float(np.median(window_samples)) for window_samples in (warmup[-2 * WINDOW : -WINDOW], warmup[-WINDOW:])
            )
            is_stable = abs(current - previous) <= WARMUP_TOLERANCE * previous
    samples = _time_calls(function, range(passes), device, minimum=3, budget=budget)
    return {**percentiles(samples), "warmup": len(warmup), "is_stable": is_stable}


def _time_calls(
    function: Callable[[int], object], calls: range, device: torch.device, *, minimum: int, budget: float
) -> list[float]:
    """Return the milliseconds of each call; after `budget` seconds no call starts, except the first `minimum` ones."""
    start, samples = time.perf_counter(), list[float]()
    for i in calls:
        if len(samples) >= minimum and time.perf_counter() - start > budget:
            break
        samples.append(time_call(lambda i=i: function(i), device))  # type: ignore[misc]
    return samples
