"""Clocks that wait for the device, and what a fitted method costs: three latencies, throughput, memory, FLOPs.

Three times of one image, which must not be mixed up:

    network      prepared image on the device -> final map and score on the device
    loader       file -> decoded, resized, a tensor in main memory; the file lies in the system's cache
    end_to_end   file -> decoded, resized, moved, judged -> map and score in main memory
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
"""Passes whose medians tell whether a warm-up has settled."""

WARMUP_TOLERANCE = 0.05
"""How far, as a fraction, the medians of two successive windows may lie apart for that."""

PARTS = {
    "network": "prepared image on the device -> map and score on the device",
    "loader": "file -> prepared tensor",
    "end_to_end": "file -> map and score in main memory",
}
"""What each latency of `thorough` holds."""


class Clock:
    """Seconds by phase. It waits for the device before it starts and before it stops, so only done work counts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        """Adds the time of the block to the phase."""
        return self._counted(phase, 1)

    def excluded(self, phase: str) -> AbstractContextManager[None]:
        """Takes the time of the block off the phase that runs around it."""
        return self._counted(phase, -1)

    @contextmanager
    def _counted(self, phase: str, sign: int) -> Iterator[None]:
        wait(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            wait(self.device)
            self.seconds[phase] = self.seconds.get(phase, 0.0) + sign * (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def milliseconds(act: Callable[[], object], device: torch.device) -> float:
    """How long `act` takes, the device idle before and after: by CUDA events on a GPU, by `perf_counter` elsewhere."""
    wait(device)
    if device.type == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        act()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))
    start = time.perf_counter()
    act()
    wait(device)
    return (time.perf_counter() - start) * 1000


def percentiles(samples: Sequence[float]) -> dict[str, float | list[float]]:
    """The median, the 5th and 95th percentile, and every sample, in milliseconds."""
    low, middle, high = (float(value) for value in np.percentile(samples, [5, 50, 95]))
    return {"median_ms": middle, "p5_ms": low, "p95_ms": high, "samples_ms": list(samples)}


def latency(
    method: Method, images: Tensor, *, warmup: int = 10, passes: int = 30, budget: float = 10.0
) -> dict[str, float | list[float]]:
    """The short form, as `bench run` takes it: the network's time for one image, in milliseconds.

    images: (n, 3, h, w) real test images on the device; they are taken in turn. The fitted method is asked `warmup`
    times untimed and `passes` times timed, each with the device waited for at both ends; after `budget` seconds each
    stops early, but never before 1 and 3 passes. Returns `spread`.
    """

    def judge(i: int) -> object:
        return method.predict(images[i % len(images)][None])

    _asked(judge, range(warmup), images.device, least=1, budget=budget)
    return percentiles(_asked(judge, range(passes), images.device, least=3, budget=budget))


def profile(
    method: Method,
    reads: Sequence[Callable[[], Tensor]],
    device: torch.device,
    *,
    passes: int = 100,
    budget: float = 20.0,
    largest: int = 256,
) -> dict[str, Any]:
    """All that is known of the cost of a fitted method; the network's latency also at the top, as `latency` gives it.

    reads: each reads another real test image from its file, (1, 3, h, w) in main memory; they are taken in turn. Each
    latency is warmed up until it is steady and then taken `passes` times, or as often as `budget` seconds allow, but 3
    times at least. "throughput" has an entry a batch size up to `largest`, each within `budget` seconds. "flops" are
    what the first image took, as torch counts them, a multiply-add as two; what runs outside of torch is not in them.
    """
    images = torch.cat([read() for read in reads]).to(device)

    def judge(i: int) -> object:
        return method.predict(images[i % len(images)][None])

    def load(i: int) -> object:
        return reads[i % len(reads)]()

    def all_the_way(i: int) -> object:
        found = method.predict(reads[i % len(reads)]().to(device))
        return found.scores.cpu(), found.maps.cpu()

    environment.reset_peak(device)
    judge(0)
    told: dict[str, Any] = {"memory": environment.peak_memory(device)}
    for name, act in zip(PARTS, (judge, load, all_the_way), strict=True):
        told[name] = _steady(act, device if name != "loader" else torch.device("cpu"), passes=passes, budget=budget)
    # The counter sees no fused kernel: neither a compiled one nor, on a CPU, that of attention.
    eager, plain = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, eager, plain:
        judge(0)
    told |= {"throughput": throughput(method, images, budget=budget, largest=largest)}
    told |= {"flops": counter.get_total_flops(), "parameters": parameters(method), "state": _numbers(method)}
    return {name: told["network"][name] for name in ("median_ms", "p5_ms", "p95_ms", "samples_ms")} | told


def throughput(method: Method, images: Tensor, *, budget: float = 20.0, largest: int = 256) -> dict[str, Any]:
    """Images a second at batches of 1, 2, 4, ...: the network's, on images (n, 3, h, w) on the device, taken in turn.

    It ends at the `largest` batch, where memory runs out ("memory"), or where 3 passes took `budget` seconds ("time").
    """
    device, rows = images.device, list[dict[str, float | int]]()
    batch, ended = 1, "largest"
    while batch <= largest:
        given = images[torch.arange(batch, device=device) % len(images)]
        environment.reset_peak(device)
        before = environment.peak_memory(device)["host"]
        try:
            median = _at(method, given, budget / 4)
        except RuntimeError as error:  # torch's OutOfMemoryError is one; on the CPU it has no name of its own
            if "memory" not in str(error):
                raise
            ended = "memory"
            break
        rows.append({"batch": batch, "median_ms": median, "images_per_second": 1000 * batch / median})
        if 3 * median > budget * 1000:
            ended = "time"
            break
        if device.type == "cpu" and 3 * (environment.peak_memory(device)["host"] - before) > environment.free_memory():
            ended = "memory"  # before the system ends this process
            break
        batch *= 2
    gc.collect()
    return {"batches": rows, "ended": ended}


def _at(method: Method, images: Tensor, budget: float) -> float:
    """The median of up to 10 passes, in milliseconds."""
    method.predict(images)
    return float(np.median(_asked(lambda _: method.predict(images), range(10), images.device, least=3, budget=budget)))


def parameters(method: Method) -> int:
    """Numbers in the networks that the method holds, frozen ones included."""
    modules = [module for module in vars(method).values() if isinstance(module, nn.Module)]
    found = {id(value): value for module in modules for value in module.parameters() if value.device.type != "meta"}
    return sum(value.numel() for value in found.values())


def _numbers(method: Method) -> int:
    """Numbers that the fit learned or kept: trained weights, a bank."""
    return sum(value.numel() for value in method.state().values())


def _steady(act: Callable[[int], object], device: torch.device, *, passes: int, budget: float) -> dict[str, Any]:
    """The spread after a warm-up that lasts until two windows of passes agree; "warmup" and "settled" tell of it."""
    begin, before, settled = time.perf_counter(), list[float](), False
    while not settled and time.perf_counter() - begin < budget:
        window = range(len(before), len(before) + WINDOW)
        before += _asked(act, window, device, least=1, budget=budget)
        if len(before) >= 2 * WINDOW:
            earlier, later = (float(np.median(part)) for part in (before[-2 * WINDOW : -WINDOW], before[-WINDOW:]))
            settled = abs(later - earlier) <= WARMUP_TOLERANCE * earlier
    samples = _asked(act, range(passes), device, least=3, budget=budget)
    return {**percentiles(samples), "warmup": len(before), "settled": settled}


def _asked(
    act: Callable[[int], object], turns: range, device: torch.device, *, least: int, budget: float
) -> list[float]:
    """Milliseconds of `act` at each turn; none begins after `budget` seconds, but the first `least` always run."""
    begin, samples = time.perf_counter(), list[float]()
    for i in turns:
        if len(samples) >= least and time.perf_counter() - begin > budget:
            break
        samples.append(milliseconds(lambda i=i: act(i), device))  # type: ignore[misc]
    return samples
