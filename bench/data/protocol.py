"""Protocols: pure functions from samples to tasks. A task is one fit and the categories that it is judged on."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import MappingProxyType

from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation.metrics import min_calibration_images


@dataclass(frozen=True, slots=True)
class Task:
    """One fit, and the test images of each category that it is judged on, in sorted order.

    Attributes:
        name: the category, or "all" where one model serves all.
        train: good images.
        tests: test images by category.
        held: good images by category that were held out of training, to set a threshold by; empty unless asked for.
    """

    name: str
    train: tuple[Sample, ...]
    tests: dict[str, tuple[Sample, ...]]
    calibration: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    others: dict[str, tuple[Sample, ...]] = field(default_factory=dict)


Protocol = Callable[[Sequence[Sample], int, int], list[Task]]
"""Called with (samples, k, seed); a protocol that does not draw ignores the last two."""


def subsample(samples: Iterable[Sample], limit: int) -> list[Sample]:
    """At most `limit` training, good test and defect test images a category, evenly spread over the sorted names."""
    groups: dict[tuple[str, str, bool], list[Sample]] = {}
    for sample in sorted(samples, key=_order):
        groups.setdefault((sample.category, sample.split, sample.is_anomalous), []).append(sample)
    kept: list[Sample] = []
    for group in groups.values():
        count = min(limit, len(group))
        kept += [group[i * len(group) // count] for i in range(count)]
    return kept


def one_for_one(samples: Sequence[Sample], k: int = 0, seed: int = 0) -> list[Task]:  # noqa: ARG001
    """One model a category, fitted on all its good training images."""
    tasks = []
    if not samples:
        raise BenchError("A protocol needs images; there is none. Look at the data set's folder and at --category.")
    for category in sorted({sample.category for sample in samples}):
        own = sorted((sample for sample in samples if sample.category == category), key=_order)
        train = tuple(sample for sample in own if sample.split == "train" and not sample.is_anomalous)
        test = tuple(sample for sample in own if sample.split == "test")
        if not train or not test:
            part = "training" if not train else "test"
            raise BenchError(
                f"A category needs good training images and test images; '{category}' has no {part} image. "
                f"Add some, or leave the category out with --category."
            )
        tasks.append(Task(category, train, {category: test}))
    return tasks


def unified(samples: Sequence[Sample], k: int = 0, seed: int = 0) -> list[Task]:
    """One model on the training images of all categories; each category is judged on its own."""
    alone = one_for_one(samples, k, seed)
    train = tuple(sample for task in alone for sample in task.train)
    return [Task("all", train, {task.name: task.tests[task.name] for task in alone})]


def k_shot(samples: Sequence[Sample], k: int, seed: int) -> list[Task]:
    """One model a category, fitted on k of its good training images.

    The draw orders the images by a hash of (seed, category, file name without ending) and takes the first k. So it is
    the same on every machine and for every method, does not move when a category is added, and is nested in k: the
    2 images are among the 4. Raises BenchError where a category has fewer than k, or k < 1.
    """
    if k < 1:
        raise BenchError(f"k-shot fits on at least one image; --k is {k}. Give --k 1 or more.")
    tasks = []
    for task in one_for_one(samples):
        if len(task.train) < k:
            raise BenchError(
                f"k-shot asks for {k} images; '{task.name}' has {len(task.train)} to train on. "
                f"Lower --k to {len(task.train)} or choose --protocol one-for-one."
            )
        drawn = sorted(task.train, key=lambda sample: _lot(seed, sample))[:k]
        tasks.append(Task(task.name, tuple(sorted(drawn, key=_order)), task.tests))
    return tasks


def split_calibration(task: Task, rate: float, seed: int) -> Task:
    """The task with good images of each category taken out of training, to set a threshold at a false positive rate.

    A fifth of them, or as many as the rate needs where that is more, drawn as `k_shot` draws: the same on every machine
    and for every method. Raises BenchError where that would be more than half of a category's images.
    """
    held: dict[str, tuple[Sample, ...]] = {}
    for category in task.tests:
        own = [sample for sample in task.train if sample.category == category]
        count, most = max(min_calibration_images(rate), len(own) // 5), len(own) // 2
        if count > most:
            allowed = f", or allow a rate of {math.ceil(100 / (most + 1)) / 100:g} or more" if most else ""
            raise BenchError(
                f"A threshold at a false positive rate of {rate:g} takes {count} good images out of training, and half "
                f"of them at most; '{category}' has {len(own)}. Train on more, leave --calibrate out{allowed}."
            )
        drawn = sorted(own, key=lambda sample: _lot(f"held/{seed}", sample))[:count]
        held[category] = tuple(sorted(drawn, key=_order))
    out = {sample for samples in held.values() for sample in samples}
    return replace(task, train=tuple(sample for sample in task.train if sample not in out), calibration=held)


def with_others(task: Task, samples: Iterable[Sample]) -> Task:
    """Return the task with the good training images of all categories that it does not test, by category.

    A method that pretrains gets them. Images of the task's own categories are never among them, so k-shot sees no more
    than its k images of a category.
    """
    others: dict[str, tuple[Sample, ...]] = {}
    for sample in sorted(samples, key=_order):
        if sample.category not in task.tests and sample.split == "train" and not sample.is_anomalous:
            others[sample.category] = (*others.get(sample.category, ()), sample)
    return replace(task, others=others)


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({"one-for-one": one_for_one, "unified": unified, "kshot": k_shot})


def _order(sample: Sample) -> tuple[str, str, str, str]:
    return (sample.category, sample.split, sample.defect, sample.image.as_posix())


def _lot(seed: int | str, sample: Sample) -> bytes:
    return sha256(f"{seed}/{sample.category}/{sample.image.stem}".encode(errors="surrogateescape")).digest()
