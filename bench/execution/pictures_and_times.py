"""What a record has in addition to metrics: pictures of some test images, and the times of the fitted method."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import environment
from bench.data.images import FileImages, load_image
from bench.errors import BenchError
from bench.evaluation import timing
from bench.method import Method
from bench.store import check_picture_name

TIMING_IMAGES = 8
"""Number of test images that a timing measurement cycles through."""


def measure_times(method: Method, tests: FileImages, *, full: bool) -> dict[str, Any]:
    """Return the latency, or with `full` all times, on images spread over the test set."""
    device = method.setup.device
    indices = torch.linspace(0, len(tests) - 1, min(TIMING_IMAGES, len(tests))).round().int()
    if not full:
        return dict(timing.latency(method, torch.cat(list(tests.batches(TIMING_IMAGES, indices))).to(device)))
    samples = [replace(tests.samples[index], hashes=()) for index in indices.tolist()]  # no check in the measured time
    load_functions = [partial(load_image, sample, tests.preprocessing) for sample in samples]
    return timing.profile(method, load_functions, device) | {"environment": environment.describe(device)}


def check_pictures(pictures: Mapping[str, Tensor], images: Tensor) -> None:
    """Raise BenchError unless pictures of (b, 3, h, w) images are (b, h, w) or (b, 3, h, w), finite, and have names.

    Args:
        pictures: what a method explains, by name.
        images: the images that it explains.
    """
    count, _, height, width = images.shape
    for title, batch in pictures.items():
        check_picture_name(title)
        if batch.shape not in {(count, height, width), (count, 3, height, width)}:
            raise BenchError(
                f"For {count} images of {height} x {width}, pictures must be ({count}, {height}, {width}) or ({count}, "
                f"3, {height}, {width}); '{title}' is {tuple(batch.shape)}. Fix explain."
            )
        if not torch.isfinite(batch).all():
            raise BenchError(f"Pictures must be finite; '{title}' has NaN or infinity. Fix explain.")


def to_8_bit(pictures: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return each picture of each image as 8 bits, by "<name of the image>.<title>".

    RGB and masks, whose titles begin with "mask", are in [0, 1]; another map is scaled to its range.
    """
    converted = {}
    for title, batch in pictures.items():
        for name, picture in zip(names, batch.detach().float().cpu(), strict=True):
            is_fraction = picture.ndim == 3 or title.startswith("mask")
            low, high = (0.0, 1.0) if is_fraction else (float(picture.min()), float(picture.max()))
            pixels = ((picture - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().byte().numpy()
            converted[f"{name}.{title}"] = pixels.transpose(1, 2, 0) if picture.ndim == 3 else pixels
    return converted
