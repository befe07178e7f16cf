"""Clocks that wait for the device, and the latency of one image."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bench.method import Method


class Clock:
    """Seconds by phase. It waits for the device before it starts and before it stops, so only done work counts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to the phase."""
        wait(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            wait(self.device)
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    @contextmanager
    def stopped(self, phase: str) -> Iterator[None]:
        """Takes the time of the block off the phase that runs around it."""
        wait(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            wait(self.device)
            self.seconds[phase] = self.seconds.get(phase, 0.0) - (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def latency(
    method: Method, images: Tensor, *, warmup: int = 10, passes: int = 30, budget: float = 10.0
) -> dict[str, float | list[float]]:
    """How long one image takes: prepared batch of 1 on the device -> map and score on the device, in milliseconds.

    images: (n, 3, h, w) real test images on the device; they are taken in turn. The fitted method is asked `warmup`
    times untimed and `passes` times timed, each with the device waited for at both ends; after `budget` seconds each
    stops early, but never before 1 and 3 passes. Returns the median, p5, p95 and every sample.
    """
    device = images.device
    clock = Clock(device)

    def ask(times: int, least: int) -> list[float]:
        begin, samples = time.perf_counter(), list[float]()
        for i in range(times):
            if i >= least and time.perf_counter() - begin > budget:
                break
            one = images[i % len(images)][None]
            clock.seconds.clear()
            with clock("predict"):
                method.predict(one)
            samples.append(clock.seconds["predict"] * 1000)
        return samples

    ask(warmup, 1)
    samples = ask(passes, 3)
    low, middle, high = (float(value) for value in np.percentile(samples, [5, 50, 95]))
    return {"median_ms": middle, "p5_ms": low, "p95_ms": high, "samples_ms": samples}
