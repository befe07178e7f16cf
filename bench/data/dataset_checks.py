"""Checks of a dataset: counts, unreadable files, masks that do not fit, images in both train and test.

Two images are **equal** if their decoded pixels are equal, in any file format. They are **nearly equal** if their
thumbnails (32 x 32 pixels, grayscale, minus their mean) differ by a root mean square of at most 1.5 of 255 levels and
have a correlation of at least 0.99. This rule finds copies that were saved as JPEG (at most 0.8 levels at quality 50),
downscaled by two (1.4) or brightened, and second photographs of the same part. It does not find rotated or cropped
copies, nor copies of images without contrast. On 2691 real images of five kinds it reports three pairs, each of them
one surface that was photographed twice.
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
from bench.data.data_report import image_sizes, mask_report, mask_warnings, size_warnings
from bench.data.decoding import decode
from bench.data.masks import MAX_FRACTION, SampleMask, sample_mask
from bench.data.value_range import find_value_range, value_range_warnings, with_value_range
from bench.dataset import Sample
from bench.errors import BenchError, CheckResult
from bench.method import Preprocessing

THUMBNAIL_SIDE = 32
"""Side of a thumbnail in pixels."""

MAX_DIFFERENCE = 1.5
"""Largest root mean square difference of the thumbnails of nearly equal images, of 255 levels."""

MIN_CORRELATION = 0.99
"""Smallest correlation of the thumbnails of nearly equal images; excludes pairs of surfaces with little contrast."""

MAX_LISTED_FILES = 5
"""Number of files that a result names."""

BLOCK = 512
"""Number of test thumbnails that are compared at once."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The properties of a decoded image that the checks need.

    Attributes:
        sample: the sample.
        pixel_hash: hash of the decoded pixels.
        thumbnail: (32 * 32,) grayscale levels minus their mean.
        read_error: why the image cannot be decoded, or "".
        mask: mask of the image, or None.
        mask_problem: what is wrong with its mask, or "".
    """

    sample: Sample
    pixel_hash: bytes = b""
    thumbnail: NDArray[np.float32] = field(default_factory=lambda: np.zeros(THUMBNAIL_SIDE**2, np.float32))
    read_error: str = ""
    mask: SampleMask | None = None
    mask_problem: str = ""


def check_dataset(
    samples: Sequence[Sample],
    warnings: Sequence[str],
    progress: Callable[[int, int], None],
    preprocessing: Preprocessing,
    *,
    is_official: bool,
) -> list[CheckResult]:
    """Return the results of all checks. Decodes every image and mask once, in parallel.

    Args:
        samples: the samples of the dataset.
        warnings: what the dataset logged when it listed the samples; each is reported as a result.
        progress: called as `progress(done, total)` after each image.
        preprocessing: preprocessing of the planned profile; masks are checked at its size.
        is_official: whether the dataset is a published one; else it is the user's own.
    """
    layout = "The layout and counts are the official ones." if is_official else "Every file of the folder is used."
    by_category, range_results = _value_ranges(samples, preprocessing)
    infos = []
    with ThreadPoolExecutor(environment.threads()) as pool:
        inspected = pool.map(lambda sample: _inspect(sample, by_category[sample.category]), samples)
        for done, info in enumerate(inspected, start=1):
            infos.append(info)
            progress(done, len(samples))
    readable = [info for info in infos if not info.read_error]
    return [
        *_counts(samples),
        *(CheckResult(layout, warning, required=False) for warning in warnings),
        *range_results,
        _result("Every image can be read.", [info.read_error for info in infos if info.read_error]),
        _result(
            "Every mask fits its image and marks a part of it.",
            [info.mask_problem for info in readable if info.mask_problem],
        ),
        *_size_results([info.sample for info in readable], preprocessing),
        *_mask_results(readable, preprocessing),
        *_duplicates(readable),
        _result("No test image nearly equals a training image.", list(near_duplicates(readable)), required=False),
    ]


def _counts(samples: Sequence[Sample]) -> Iterator[CheckResult]:
    for category in sorted({sample.category for sample in samples}):
        members = [sample for sample in samples if sample.category == category]
        train = sum(sample.split == "train" for sample in members)
        good = sum(sample.split == "test" and not sample.is_anomalous for sample in members)
        defects = Counter(sample.defect for sample in members if sample.is_anomalous)
        masked = sum(bool(sample.masks) for sample in members if sample.is_anomalous)
        per_defect = ", ".join(f"{defect} {count}" for defect, count in sorted(defects.items()))
        text = f"{category}: {train} training images, {good} good and {defects.total()} defective test images"
        yield CheckResult(text + (f" ({per_defect}; {masked} with a mask)" if defects else ""))


def _value_ranges(
    samples: Sequence[Sample], preprocessing: Preprocessing
) -> tuple[dict[str, Preprocessing], list[CheckResult]]:
    """Return the preprocessing of each category with the range of its training images, and results about ranges."""
    by_category: dict[str, Preprocessing] = {}
    results = []
    for category in sorted({sample.category for sample in samples}):
        train = [sample for sample in samples if sample.category == category and sample.split == "train"]
        readable = [sample for sample in train if _is_readable(sample, preprocessing)]
        by_category[category], values = with_value_range(preprocessing, readable)
        if values:
            is_given = preprocessing.black is not None
            problems = list(value_range_warnings(category, values, len(readable), is_given=is_given))
            requirement = "Training images with more than 8 bits per channel use most of their range."
            results += [CheckResult(requirement, problem, required=False) for problem in problems or [""]]
    return by_category, results


def _is_readable(sample: Sample, preprocessing: Preprocessing) -> bool:
    """Return whether the value range of a training image can be determined; `_inspect` reports the error."""
    try:
        find_value_range([sample], preprocessing)
    except BenchError:
        return False
    return True


def _size_results(samples: Sequence[Sample], preprocessing: Preprocessing) -> Iterator[CheckResult]:
    """Report per category which sizes the resize changes differently."""
    for category in sorted({sample.category for sample in samples}):
        members = [sample for sample in samples if sample.category == category]
        train, tests = ([sample for sample in members if sample.split == split] for split in ("train", "test"))
        for warning in size_warnings(category, tests, image_sizes(train, preprocessing), preprocessing):
            yield CheckResult("All images have similar sizes.", warning, required=False)


def _mask_results(infos: Sequence[ImageInfo], preprocessing: Preprocessing) -> Iterator[CheckResult]:
    """Report per category how the resize to the input changes the masks; problems of `_inspect` are left out."""
    rows, columns = preprocessing.size
    requirement = f"Masks have two values, and keep their defect regions at {columns} x {rows} pixels."
    for category in sorted({info.sample.category for info in infos}):
        masked = [(info.sample, info.mask) for info in infos if info.sample.category == category and info.mask]
        report = mask_report([sample for sample, _ in masked], [mask for _, mask in masked])
        if report:
            certain = {sample.id for sample, mask in masked if mask.fraction > MAX_FRACTION}
            report |= {"black": [], "inverted": [name for name in report["inverted"] if name not in certain]}
        for warning in mask_warnings(category, report, at_original=False):
            yield CheckResult(requirement, warning, required=False)


def _inspect(sample: Sample, preprocessing: Preprocessing) -> ImageInfo:
    try:
        image = decode(sample.image, preprocessing)
    except BenchError as error:
        return ImageInfo(sample, read_error=str(error))
    pixel_hash = blake2b(f"{image.size}".encode() + image.tobytes()).digest()
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnail = np.asarray(image.convert("L").resize(side, Image.Resampling.BOX), np.float32).ravel()
    mask, problem = _check_mask(sample, preprocessing)
    return ImageInfo(sample, pixel_hash, thumbnail - thumbnail.mean(), mask=mask, mask_problem=problem)


def _check_mask(sample: Sample, preprocessing: Preprocessing) -> tuple[SampleMask | None, str]:
    """Return the mask of a sample, None if it has none, and what is wrong with it, or ""."""
    if not sample.masks:
        return None, ""
    try:
        mask = sample_mask(sample, preprocessing)
    except BenchError as error:
        return None, str(error)
    if not mask.regions:
        return mask, f"the mask of {sample.id} marks nothing"
    if mask.fraction > MAX_FRACTION:
        return mask, f"the mask of {sample.id} marks {mask.fraction:.0%} of the image; is it inverted?"
    return mask, ""


def _duplicates(infos: Sequence[ImageInfo]) -> Iterator[CheckResult]:
    """Report equal images: in train and test, good and defective, twice in one split."""
    groups: dict[bytes, list[Sample]] = defaultdict(list)
    for info in infos:
        groups[info.pixel_hash].append(info.sample)
    duplicates = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in duplicates if len({sample.split for sample in group}) > 1]
    contradictions = [group for group in duplicates if len({sample.is_anomalous for sample in group}) > 1]
    repeats = [group for group in duplicates if group not in leaks and group not in contradictions]
    for requirement, equal, required in (
        ("No image is in train and in test.", leaks, True),
        ("No image is both good and defective.", contradictions, True),
        ("No image is twice in one split.", repeats, False),
    ):
        yield _result(requirement, [" = ".join(sample.id for sample in group) for group in equal], required=required)


def near_duplicates(infos: Sequence[ImageInfo]) -> Iterator[str]:
    """Yield each test image that nearly equals a training image, with the closest one; equal ones are not repeated."""
    train, test = ([info for info in infos if info.sample.split == split] for split in ("train", "test"))
    if not train or not test:
        return
    train_thumbnails = np.stack([info.thumbnail for info in train])  # (n, 32 * 32)
    train_energy = np.einsum("ij,ij->i", train_thumbnails, train_thumbnails)  # (n,)
    for start in range(0, len(test), BLOCK):
        thumbnails = np.stack([info.thumbnail for info in test[start : start + BLOCK]])  # (b, 32 * 32)
        energy = np.einsum("ij,ij->i", thumbnails, thumbnails)[:, None]  # (b, 1)
        products = thumbnails @ train_thumbnails.T  # (b, n)
        differences = np.sqrt(np.maximum(energy + train_energy - 2 * products, 0) / THUMBNAIL_SIDE**2)
        correlated = products >= MIN_CORRELATION * np.sqrt(energy * train_energy)
        differences[~(correlated & (energy > 0) & (train_energy > 0))] = np.inf
        for row, column in enumerate(differences.argmin(axis=1).tolist()):
            info, closest, difference = test[start + row], train[column], float(differences[row, column])
            if difference <= MAX_DIFFERENCE and info.pixel_hash != closest.pixel_hash:
                yield f"{info.sample.id} ~ {closest.sample.id} ({difference:.1f} levels)"


def _result(requirement: str, problems: list[str], *, required: bool = True) -> CheckResult:
    more = f"; and {len(problems) - MAX_LISTED_FILES} more" if len(problems) > MAX_LISTED_FILES else ""
    text = f"{len(problems)}: {'; '.join(problems[:MAX_LISTED_FILES])}{more}" if problems else ""
    return CheckResult(requirement, text, required=required)
