"""A dataset as one plan uses it: its samples, its tasks, and the hashes of the files that affect the metrics."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from unicodedata import normalize

from bench import registry
from bench.config.plan import Plan
from bench.data.content import content_hash, duplicate_warnings, with_hashes
from bench.data.fingerprint import category_fingerprints
from bench.data.protocol import PROTOCOLS, Task, split_calibration, split_without_defects, subsample, with_others
from bench.dataset import Sample
from bench.errors import BenchError, check_known
from bench.execution.job import capture_warnings

_log = logging.getLogger(__name__)

MAX_CATEGORY_BYTES = 100
"""Largest length of the name of a category in UTF-8; file systems allow 255 bytes, of which suffixes need some."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """The dataset of a run: name, whether its images are generated, and a fingerprint of each category."""

    name: str
    synthetic: bool
    fingerprints: dict[str, str]


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task of a plan.

    Attributes:
        k, seed: shots and seed of the draw.
        task: the fit and its test images.
        data_hash: hash of the files that affect its metrics.
        calibrate: false positive rate of its threshold: that of the plan, or of a task without defective test images.
        warnings: warnings about the task, for the records.
        has_tests: whether there are test images; else held-out images are used as test images.
    """

    k: int
    seed: int
    task: Task
    data_hash: str
    calibrate: float
    warnings: tuple[str, ...] = ()
    has_tests: bool = True


class PlannedData:
    """The dataset of a plan.

    Attributes:
        info: what its runs record about it.
        samples: those of the plan's categories, at most as many as its limit.
        warnings: warnings about wrong counts, missing masks and the like, for the records.
        skipped: category whose files cannot be read -> the reason.

    Raises BenchError if the dataset, a category or a protocol of the plan is wrong.
    """

    def __init__(self, plan: Plan) -> None:
        module = registry.load("datasets", plan.tasks.dataset)
        with capture_warnings() as warnings:
            all_samples = list_samples(plan, module)
        name = plan.tasks.dataset if plan.tasks.dataset != "folder" else f"folder-{plan.data.resolve().name}"
        self.plan = plan
        self.info = DatasetInfo(name, module.SYNTHETIC, category_fingerprints(all_samples))
        self.warnings = tuple(warnings)
        self.samples = _select_samples(plan, all_samples)
        self.skipped: dict[str, str] = {}
        # A method may pretrain on categories that the command does not run, so that --category changes no metric.
        self._limited_samples = subsample(all_samples, plan.tasks.limit) if plan.tasks.limit else all_samples
        self._hashed: dict[Sample, Sample] = {}
        self._logged: set[str] = set()

    def tasks(self, *, first_only: bool = False) -> list[PlannedTask]:
        """Return the tasks whose files can be read, for each number of shots and seed; `skipped` has the others.

        Args:
            first_only: return the first one only.

        Raises:
            BenchError: if there are too few images, or if no file can be read.
        """
        options = self.plan.tasks
        counts = options.k if options.protocol == "kshot" else (0,)
        planned_tasks = [planned for k in counts for seed in options.seed for planned in self._draw(k, seed)]
        planned_tasks = planned_tasks[:1] if first_only else planned_tasks
        hashes = self._content_hashes({planned.task.name: planned.task for planned in planned_tasks})
        return [
            self._with_data_hash(planned, hashes[planned.task.name])
            for planned in planned_tasks
            if planned.task.name in hashes
        ]

    def _with_data_hash(self, planned: PlannedTask, data_hash: str) -> PlannedTask:
        """Return the task with the hashes of its files, and with warnings about equal files."""
        task = planned.task.map_samples(self._with_hashes)
        tests = [sample for samples in task.tests.values() for sample in samples]
        calibration = [sample for samples in task.calibration.values() for sample in samples]
        warnings = tuple(duplicate_warnings(task.name, (*task.train, *calibration), tests))
        self._log_once(warnings)
        return replace(planned, task=task, data_hash=data_hash, warnings=(*planned.warnings, *warnings))

    def with_pretraining(self, planned: PlannedTask) -> PlannedTask:
        """Return the task with the other categories' good training images, which are then part of its `data_hash`.

        Raises:
            BenchError: if one of these images cannot be read.
        """
        task = with_others(planned.task, self._limited_samples)
        if not task.others:
            return planned
        task = task.map_samples(self._with_hashes)
        hashes = [planned.data_hash, *(content_hash(samples) for _, samples in sorted(task.others.items()))]
        return replace(planned, task=task, data_hash=sha256("\n".join(hashes).encode()).hexdigest())

    def _draw(self, k: int, seed: int) -> list[PlannedTask]:
        """Return the tasks of one seed and number of shots, without hashes.

        Calibration images are held out if the plan calibrates, or if a task has no defective test images.
        """
        planned = []
        for task in PROTOCOLS[self.plan.tasks.protocol](self.samples, k, seed):
            rate = self.plan.evaluation.calibrate
            tests = [sample for images in task.tests.values() for sample in images]
            warnings: tuple[str, ...] = ()
            if self.plan.checkpoint and not tests:
                raise BenchError(f"A released checkpoint needs test images; '{task.name}' has none. Add some.")
            if rate and tests:
                task = split_calibration(task, rate, seed)  # noqa: PLW2901
            elif not any(sample.is_anomalous for sample in tests) and not self.plan.checkpoint:
                task, rate, warnings = self._without_defects(task, rate, seed)  # noqa: PLW2901
            planned.append(PlannedTask(k, seed, task, "", rate, warnings, has_tests=bool(tests)))
        return planned

    def _without_defects(self, task: Task, rate: float, seed: int) -> tuple[Task, float, tuple[str, ...]]:
        """Return a task without defective test images with a threshold, its rate, and a warning about it."""
        n_tests = sum(len(images) for images in task.tests.values())
        if rate:
            task = split_calibration(task, rate, seed)
            task = replace(task, tests=task.calibration)
        else:
            task, rate = split_without_defects(task, seed)
        n_held_out = sum(len(images) for images in task.calibration.values())
        use = "their scores and the model are stored"
        if n_tests:
            use = f"the {n_tests} good test images give the rate that it has on them"
        warning = (
            f"{task.name}: there are no defective test images; {n_held_out} good training images are held out for a "
            f"threshold at a false positive rate of {rate:g}; {use}."
        )
        self._log_once((warning,))
        return task, rate, (warning,)

    def _log_once(self, warnings: Iterable[str]) -> None:
        """Log the warnings that were not logged before, for example for another seed."""
        for warning in warnings:
            if warning not in self._logged:
                self._logged.add(warning)
                _log.warning("%s", warning)

    def _content_hashes(self, tasks: dict[str, Task]) -> dict[str, str]:
        """Return the hash of each task's files, by name. A task whose files cannot be read is skipped."""
        hashes: dict[str, str] = {}
        for name, task in tasks.items():
            try:
                categories = task.tests.keys() | {sample.category for sample in task.train}
                samples = [sample for sample in self.samples if sample.category in categories]
                hashes[name] = content_hash([self._with_hashes(sample) for sample in samples])
            except BenchError as error:
                if len(tasks) == 1:
                    raise
                self.skipped[name] = str(error)
                _log.warning("%s is skipped: %s", name, error)
        if not hashes:
            raise BenchError(
                f"None of the categories can be read: {', '.join(tasks)}. The warnings above give the reasons."
            )
        return hashes

    def _with_hashes(self, sample: Sample) -> Sample:
        """Return the sample with the hashes of its files, computed once."""
        if sample.hashes:
            return sample
        if sample not in self._hashed:
            self._hashed[sample] = with_hashes(sample)
        return self._hashed[sample]


def list_samples(plan: Plan, module: ModuleType) -> list[Sample]:
    """Return the samples of a dataset's module in the plan's folder and layout.

    Raises BenchError if the folder does not contain the dataset, or if a layout is given for a published one.
    """
    layout = plan.tasks.layout
    if layout and plan.tasks.dataset != "folder":
        raise BenchError(
            f"--layout needs your own images; the layout of {plan.tasks.dataset} is fixed. Pass --dataset folder."
        )
    name = plan.tasks.dataset
    with registry.plugin_call("datasets", name):
        samples = list(module.samples(plan.data, layout) if layout else module.samples(plan.data))
    if not all(isinstance(sample, Sample) for sample in samples):
        raise BenchError(f"samples of datasets/{name} must return objects of bench.dataset.Sample. Fix the file.")
    for category in {sample.category for sample in samples}:  # it is the name of the record's file
        if category in {"", ".", ".."} or Path(category).name != category or "\0" in category:
            raise BenchError(f"A category must be a name without path separators, got {category!r}. Rename it.")
        if (n_bytes := len(category.encode(errors="surrogateescape"))) > MAX_CATEGORY_BYTES:
            raise BenchError(
                f"The name of a category must have at most {MAX_CATEGORY_BYTES} bytes, because it is the name of a "
                f"file; {category[:20]!r}... has {n_bytes}. Rename it."
            )
    return samples


def _select_samples(plan: Plan, samples: list[Sample]) -> list[Sample]:
    tasks = plan.tasks
    available = sorted({sample.category for sample in samples})
    categories = _join_names_with_commas([normalize("NFC", name) for name in tasks.category], available)
    check_known(categories, available, f"a category of {tasks.dataset}")
    if categories:
        samples = [sample for sample in samples if sample.category in categories]
    return subsample(samples, tasks.limit) if tasks.limit else samples


def _join_names_with_commas(words: Sequence[str], available: Sequence[str]) -> list[str]:
    """Return the names in a list that was split at commas, where a known name itself may contain commas."""
    by_words = {tuple(word.strip() for word in name.split(",")): name for name in available}
    names = []
    start = 0
    while start < len(words):
        stops = range(len(words), start, -1)  # the longest name first
        candidates = ((tuple(word.strip() for word in words[start:stop]), stop) for stop in stops)
        name, start = next(
            ((by_words[candidate], stop) for candidate, stop in candidates if candidate in by_words),
            (words[start], start + 1),
        )
        names.append(name)
    return names
