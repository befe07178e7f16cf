"""Whether a data set is sound: what it holds, files that can't be read, masks that don't fit, images in train and test.

Two images are **equal** where their decoded pixels are, whatever the file. They are **nearly equal** where their
thumbnails (32 x 32 pixels, grey, each less its mean) differ by a root mean square of at most 1.5 of 255 levels and
correlate by at least 0.99: that finds copies that were saved again as JPEG (0.8 levels at most at quality 50), halved
(1.4) or made lighter, and second photographs of the same part. Different parts, well aligned, lie further apart: among
2691 real images of five kinds the rule names three pairs, each of them one surface photographed twice. A finding
is to be looked at all the same. Copies that were turned or cut are not found, nor those of images without contrast.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import environment
from bench.data import images
from bench.dataset import Sample
from bench.errors import BenchError, CheckResult
from bench.method import Preprocessing

SIDE = 32
"""Pixels of a thumbnail's side."""

NEAR = 1.5
"""Root mean square difference of two thumbnails, of 255 levels, up to which two images may be nearly equal ..."""

ALIKE = 0.99
"""... if their thumbnails also correlate by so much, so that two faint surfaces are not taken for copies."""

MAX_MASK_FRACTION = 0.95
"""The share of an image from which on its mask is suspected of marking the good pixels."""

SHOWN = 5
"""So many of the files that a finding is about are named."""

BLOCK = 512
"""Thumbnails compared at once."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of an image once it was decoded: sample, hash of its pixels, thumbnail; or what is wrong."""

    sample: Sample
    digest: bytes = b""
    thumbnail: NDArray[np.float32] = field(default_factory=lambda: np.zeros(SIDE**2, np.float32))
    unreadable: str = ""
    mask_problem: str = ""


def inspect(samples: Sequence[Sample], said: Sequence[str], progress: Callable[[int, int], None]) -> list[CheckResult]:
    """All findings; `said` is what the listing warned of. Decodes every image and mask once, on all cores."""
    seen = []
    with ThreadPoolExecutor(environment.threads()) as pool:
        for done, one in enumerate(pool.map(_look, samples), start=1):
            seen.append(one)
            progress(done, len(samples))
    whole = [one for one in seen if not one.unreadable]
    return [
        *_counts(samples),
        *(CheckResult("The layout and counts are the official ones.", warning, required=False) for warning in said),
        _finding("Every image can be read.", [one.unreadable for one in seen if one.unreadable]),
        _finding(
            "Every mask fits its image and marks a part of it.", [one.mask_problem for one in seen if one.mask_problem]
        ),
        *_doubles(whole),
        _finding("No test image nearly equals a training image.", list(_near(whole)), needed=False),
    ]


def _counts(samples: Sequence[Sample]) -> Iterator[CheckResult]:
    for category in sorted({sample.category for sample in samples}):
        here = [sample for sample in samples if sample.category == category]
        train = sum(sample.split == "train" for sample in here)
        good = sum(sample.split == "test" and not sample.is_anomalous for sample in here)
        kinds = Counter(sample.defect for sample in here if sample.is_anomalous)
        masked = sum(bool(sample.masks) for sample in here if sample.is_anomalous)
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        told = f"{category}: {train} training images, {good} good and {kinds.total()} defective test images"
        yield CheckResult(told + (f" ({listed}; {masked} with a mask)" if kinds else ""))


def _look(sample: Sample) -> _Seen:
    try:
        image = images.decode(sample.image)
    except BenchError as error:
        return _Seen(sample, unreadable=str(error))
    digest = blake2b(f"{image.size}".encode() + image.tobytes()).digest()
    small = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    return _Seen(sample, digest, small - small.mean(), mask_problem=_misfit(sample, image.size))


def _misfit(sample: Sample, size: tuple[int, int]) -> str:
    if not sample.masks:
        return ""
    try:
        marked = float(images.defect_mask(sample, Preprocessing(height=size[1], width=size[0])).mean())
    except BenchError as error:
        return str(error)
    if not marked:
        return f"the mask of {_name(sample)} marks nothing"
    return (
        f"the mask of {_name(sample)} marks {marked:.0%} of the image; is it inverted?"
        if marked > MAX_MASK_FRACTION
        else ""
    )


def _doubles(seen: Sequence[_Seen]) -> Iterator[CheckResult]:
    """Equal images: in train and test, good and defective, twice in one split."""
    groups: dict[bytes, list[Sample]] = defaultdict(list)
    for one in seen:
        groups[one.digest].append(one.sample)
    doubles = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in doubles if len({sample.split for sample in group}) > 1]
    torn = [group for group in doubles if len({sample.is_anomalous for sample in group}) > 1]
    rest = [group for group in doubles if group not in leaks and group not in torn]
    yield _finding("No image is in train and in test.", [" = ".join(map(_name, group)) for group in leaks])
    yield _finding("No image is both good and defective.", [" = ".join(map(_name, group)) for group in torn])
    twice = [" = ".join(map(_name, group)) for group in rest]
    yield _finding("No image is twice in one split.", twice, needed=False)


def _near(seen: Sequence[_Seen]) -> Iterator[str]:
    """The test images that nearly equal a training image, each with the closest; equal ones are told elsewhere."""
    train, test = ([one for one in seen if one.sample.split == split] for split in ("train", "test"))
    if not train or not test:
        return
    known = np.stack([one.thumbnail for one in train])  # (n, SIDE * SIDE)
    lengths = np.einsum("ij,ij->i", known, known)
    for start in range(0, len(test), BLOCK):
        block = np.stack([one.thumbnail for one in test[start : start + BLOCK]])
        own = np.einsum("ij,ij->i", block, block)[:, None]
        products = block @ known.T  # (b, n)
        apart = np.sqrt(np.maximum(own + lengths - 2 * products, 0) / SIDE**2)
        alike = (products >= ALIKE * np.sqrt(own * lengths)) & (own > 0) & (lengths > 0)
        apart[~alike] = np.inf
        for row, column in enumerate(apart.argmin(axis=1).tolist()):
            one, other, distance = test[start + row], train[column], float(apart[row, column])
            if distance <= NEAR and one.digest != other.digest:
                yield f"{_name(one.sample)} ~ {_name(other.sample)} ({distance:.1f} levels)"


def _finding(promise: str, broken: list[str], *, needed: bool = True) -> CheckResult:
    more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    told = f"{len(broken)}: {'; '.join(broken[:SHOWN])}{more}" if broken else ""
    return CheckResult(promise, told, required=needed)


def _name(sample: Sample) -> str:
    return f"{sample.category}/{sample.split}/{sample.defect}/{sample.image.name}"
