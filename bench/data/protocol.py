"""Protocols: pure functions from samples to tasks. A task is one fit and the test images that evaluate it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import MappingProxyType
from unicodedata import normalize

from bench.dataset import Sample
from bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Task:
    """One fit and the test images of each category that it is evaluated on, in sorted order.

    Attributes:
        name: the category, or "all" for one model of all categories.
        train: good training images.
        tests: test images by category.
        calibration: good images by category that are held out of training to set a threshold; empty without
            --calibrate.
        others: good training images of the other categories, by category, for a method that pretrains; else empty.
    """

    name: str
    train: tuple[Sample, ...]
    tests: dict[str, tuple[Sample, ...]]
    calibration: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    others: dict[str, tuple[Sample, ...]] = field(default_factory=dict)

    def map_samples(self, change: Callable[[Sample], Sample]) -> "Task":
        """Return the task with the result of a function for each of its samples."""

        def of_each(groups: dict[str, tuple[Sample, ...]]) -> dict[str, tuple[Sample, ...]]:
            return {category: tuple(map(change, samples)) for category, samples in groups.items()}

        return replace(
            self,
            train=tuple(map(change, self.train)),
            tests=of_each(self.tests),
            calibration=of_each(self.calibration),
            others=of_each(self.others),
        )


Protocol = Callable[[Sequence[Sample], int, int], list[Task]]
"""Function of (samples, k, seed). Only k-shot uses k and seed."""


_HELD_OUT = 19
"""Good images that a threshold at a false positive rate of 0.05 needs."""


def subsample(samples: Iterable[Sample], limit: int) -> list[Sample]:
    """Return at most `limit` training, good test and defective test images per category.

    They are evenly spaced in the order of the names, so all defect types are represented.
    """
    groups: dict[tuple[str, str, bool], list[Sample]] = {}
    for sample in sorted(samples, key=_sort_key):
        groups.setdefault((sample.category, sample.split, sample.is_anomalous), []).append(sample)
    selected: list[Sample] = []
    for group in groups.values():
        count = min(limit, len(group))
        selected += [group[i * len(group) // count] for i in range(count)]
    return selected


def one_for_one(samples: Sequence[Sample], k: int = 0, seed: int = 0) -> list[Task]:  # noqa: ARG001
    """Return one task per category, with all its good training images. Its tests may be empty."""
    tasks = []
    if not samples:
        raise BenchError("A protocol needs images, got none. Check the folder of the dataset and --category.")
    for category in sorted({sample.category for sample in samples}):
        members = sorted((sample for sample in samples if sample.category == category), key=_sort_key)
        train = tuple(sample for sample in members if sample.split == "train" and not sample.is_anomalous)
        test = tuple(sample for sample in members if sample.split == "test")
        if not train:
            raise BenchError(
                f"A category needs good training images; '{category}' has none. Add some, or exclude the category with "
                f"--category."
            )
        tasks.append(Task(category, train, {category: test}))
    return tasks


def unified(samples: Sequence[Sample], k: int = 0, seed: int = 0) -> list[Task]:
    """Return one task for all categories, with all their good training images, evaluated per category.

    A category without test images is trained on and not evaluated, unless no category has any.
    """
    tasks = one_for_one(samples, k, seed)
    train = tuple(sample for task in tasks for sample in task.train)
    tests = {task.name: task.tests[task.name] for task in tasks}
    return [Task("all", train, {name: images for name, images in tests.items() if images} or tests)]


def k_shot(samples: Sequence[Sample], k: int, seed: int) -> list[Task]:
    """Return one task per category, with k of its good training images.

    The images are sorted by a hash of (seed, category, file name without extension) and the first k are used. The draw
    is therefore the same on every machine and for every method, does not change when a category is added, and is
    nested in k: the 2 images are among the 4.

    Raises:
        BenchError: k < 1, or a category has fewer than k training images.
    """
    if k < 1:
        raise BenchError(f"k must be >= 1, got {k}. Pass --k 1 or more.")
    tasks = []
    for task in one_for_one(samples):
        if len(task.train) < k:
            raise BenchError(
                f"k must not exceed the number of training images; k is {k} and '{task.name}' has {len(task.train)}. "
                f"Pass --k {len(task.train)} or less, or --protocol one-for-one."
            )
        by_draw_key = sorted(task.train, key=lambda sample: _draw_key(seed, sample))[:k]
        tasks.append(Task(task.name, tuple(sorted(by_draw_key, key=_sort_key)), task.tests))
    return tasks


def split_calibration(task: Task, rate: float, seed: int) -> Task:
    """Return the task with good images of each category moved from training to calibration.

    A fifth of them, or as many as the false positive rate needs if that is more, drawn by hash as in `k_shot`.

    Raises:
        BenchError: the rate needs more than half of the training images of a category.
    """
    from bench.evaluation.metrics import min_calibration_images  # imports NumPy, which `bench list` does not need

    calibration: dict[str, tuple[Sample, ...]] = {}
    for category in task.tests:
        candidates = [sample for sample in task.train if sample.category == category]
        count, maximum = max(min_calibration_images(rate), len(candidates) // 5), len(candidates) // 2
        if count > maximum:
            possible_rate = math.ceil(100 / (maximum + 1)) / 100 if maximum else None
            alternative = f", pass --calibrate {possible_rate:g} or more" if possible_rate else ""
            raise BenchError(
                f"A threshold at a false positive rate of {rate:g} needs {count} good images, which must be at most "
                f"half of the training images; '{category}' has {len(candidates)}. Train on more images{alternative} "
                f"or remove --calibrate."
            )
        calibration_samples = sorted(candidates, key=lambda sample: _draw_key(f"held/{seed}", sample))[:count]
        calibration[category] = tuple(sorted(calibration_samples, key=_sort_key))
    return _hold_out(task, calibration)


def split_without_defects(task: Task, seed: int) -> tuple[Task, float]:
    """Return a task without defective test images with good images held out to set a threshold, and its rate.

    A threshold is all that such a task can be evaluated by: on good test images, the false positive rate. 19 images are
    held out for a rate of 0.05, but at most a third of the training images of a category and at least a fifth; with
    fewer images the rate is higher. If the task has no test images at all, the held-out images are used as test images,
    so that the distribution of their scores is stored.

    Raises:
        BenchError: a category has fewer than three training images.
    """
    calibration: dict[str, tuple[Sample, ...]] = {}
    for category in task.tests:
        candidates = [sample for sample in task.train if sample.category == category]
        count = max(len(candidates) // 5, min(_HELD_OUT, len(candidates) // 3))
        if not count:
            raise BenchError(
                f"Without defective test images, a category needs at least 3 good training images to fit and to set a "
                f"threshold; '{category}' has {len(candidates)}. Add images."
            )
        calibration_samples = sorted(candidates, key=lambda sample: _draw_key(f"held/{seed}", sample))[:count]
        calibration[category] = tuple(sorted(calibration_samples, key=_sort_key))
    fewest = min(len(samples) for samples in calibration.values())
    rate = max(1 / (_HELD_OUT + 1), math.ceil(100 / (fewest + 1)) / 100)
    tests = {category: images or calibration[category] for category, images in task.tests.items()}
    return replace(_hold_out(task, calibration), tests=tests), rate


def with_others(task: Task, samples: Iterable[Sample]) -> Task:
    """Return the task with the good training images of all categories that it does not test, for pretraining.

    They include no image of the task's categories, so k-shot uses no more than k images of a category.
    """
    others: dict[str, tuple[Sample, ...]] = {}
    tested_categories = {sample.category for sample in task.train} | task.tests.keys()
    for sample in sorted(samples, key=_sort_key):
        if sample.category not in tested_categories and sample.split == "train" and not sample.is_anomalous:
            others[sample.category] = (*others.get(sample.category, ()), sample)
    return replace(task, others=others)


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({"one-for-one": one_for_one, "unified": unified, "kshot": k_shot})


def _hold_out(task: Task, calibration: dict[str, tuple[Sample, ...]]) -> Task:
    held_out = {sample for samples in calibration.values() for sample in samples}
    train = tuple(sample for sample in task.train if sample not in held_out)
    return replace(task, train=train, calibration=calibration)


def _sort_key(sample: Sample) -> tuple[str, str, str, str]:
    return (sample.category, sample.split, sample.defect, sample.image.as_posix())


def _draw_key(seed: int | str, sample: Sample) -> bytes:
    folder = f"{sample.folder}/" if sample.folder else ""
    key = normalize("NFC", f"{seed}/{sample.category}/{folder}{sample.image.stem}")
    return sha256(key.encode(errors="surrogateescape")).digest()
