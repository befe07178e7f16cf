"""Protocols: pure functions from samples to tasks. A task is one fit and the categories that it is judged on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType

from bench.dataset import Sample
from bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Task:
    """One fit, and the test images of each category that it is judged on, in sorted order.

    Attributes:
        name: the category, or "all" where one model serves all.
        train: good images.
        tests: test images by category.
    """

    name: str
    train: tuple[Sample, ...]
    tests: dict[str, tuple[Sample, ...]]


Protocol = Callable[[Sequence[Sample], int, int], list[Task]]
"""Called with (samples, k, seed); a protocol that does not draw ignores the last two."""


def limited(samples: Iterable[Sample], limit: int) -> list[Sample]:
    """At most `limit` training, good test and defect test images a category, evenly spread over the sorted names."""
    groups: dict[tuple[str, str, bool], list[Sample]] = {}
    for sample in sorted(samples, key=_order):
        groups.setdefault((sample.category, sample.split, sample.anomalous), []).append(sample)
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
        train = tuple(sample for sample in own if sample.split == "train" and not sample.anomalous)
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


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {"one-for-one": one_for_one, "unified": unified, "kshot": k_shot}
)


def _order(sample: Sample) -> tuple[str, str, str, str]:
    return (sample.category, sample.split, sample.defect, sample.image.as_posix())


def _lot(seed: int, sample: Sample) -> bytes:
    return sha256(f"{seed}/{sample.category}/{sample.image.stem}".encode(errors="surrogateescape")).digest()
