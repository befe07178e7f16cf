"""A data set as one plan uses it: its samples, its tasks, and the hashes of the files that decide the numbers."""

import logging
from dataclasses import dataclass
from hashlib import sha256

from bench import registry
from bench.config.plan import Plan
from bench.data.fingerprint import category_fingerprints
from bench.data.images import content_hash
from bench.data.protocol import PROTOCOLS, Task, split_calibration, subsample, with_others
from bench.dataset import Sample
from bench.errors import BenchError, check_known
from bench.execution.job import capture_warnings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a run states about its data set: name, whether its images are generated, a fingerprint of each category."""

    name: str
    synthetic: bool
    fingerprints: dict[str, str]


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task of a plan.

    Attributes:
        k, seed: shots and seed of the draw.
        task: the fit and its test images.
        data_digest: hash of the files that decide its numbers.
    """

    k: int
    seed: int
    task: Task
    data_digest: str


class PlannedData:
    """The data set of a plan.

    Attributes:
        info: what the runs state about it.
        samples: those of the plan's categories, at most as many as its limit.
        warnings: of wrong counts, missing masks and the like, for the records.
        skipped: category whose files cannot be read -> the reason.

    Raises BenchError if the data set, a category or a protocol of the plan is wrong.
    """

    def __init__(self, plan: Plan) -> None:
        module = registry.load("datasets", plan.tasks.dataset)
        with capture_warnings() as warnings:
            listed: list[Sample] = module.samples(plan.data)
        name = plan.tasks.dataset if plan.tasks.dataset != "folder" else f"folder-{plan.data.resolve().name}"
        self.plan = plan
        self.info = DatasetInfo(name, module.SYNTHETIC, category_fingerprints(listed))
        self.warnings = tuple(warnings)
        self.samples = _select_samples(plan, listed)
        self.skipped: dict[str, str] = {}
        # A method may pretrain on categories that the call does not run, so that --category changes no number.
        self._listed = subsample(listed, plan.tasks.limit) if plan.tasks.limit else listed
        self._good_hashes: dict[str, str] = {}

    def tasks(self, *, first_only: bool = False) -> list[PlannedTask]:
        """Return the tasks whose files can be read, for each number of shots and seed; `skipped` has the others.

        Args:
            first_only: return the first one only.

        Raises:
            BenchError: if there are too few images, or if no file can be read.
        """
        options = self.plan.tasks
        counts = options.k if options.protocol == "kshot" else (0,)
        tasks = [(k, seed, task) for k in counts for seed in options.seed for task in self._draw(k, seed)]
        tasks = tasks[:1] if first_only else tasks
        digests = self._content_hashes({task.name: task for _, _, task in tasks})
        return [PlannedTask(k, seed, task, digests[task.name]) for k, seed, task in tasks if task.name in digests]

    def with_pretraining(self, planned: PlannedTask) -> PlannedTask:
        """Return the task with the other categories' good training images, which then belong to its data digest.

        Raises:
            BenchError: if one of these images cannot be read.
        """
        task = with_others(planned.task, self._listed)
        if not task.others:
            return planned
        hashes = [planned.data_digest, *(self._good_hash(*item) for item in sorted(task.others.items()))]
        digest = sha256("\n".join(hashes).encode()).hexdigest()
        return PlannedTask(planned.k, planned.seed, task, digest)

    def _draw(self, k: int, seed: int) -> list[Task]:
        """Return the tasks of one seed and number of shots, with calibration images held out if the plan calibrates."""
        tasks = PROTOCOLS[self.plan.tasks.protocol](self.samples, k, seed)
        rate = self.plan.evaluation.calibrate
        return [split_calibration(task, rate, seed) for task in tasks] if rate else tasks

    def _content_hashes(self, tasks: dict[str, Task]) -> dict[str, str]:
        """Return the hash of each task's files, by name. A task whose files cannot be read is skipped."""
        hashes: dict[str, str] = {}
        for name, task in tasks.items():
            try:
                hashes[name] = content_hash([sample for sample in self.samples if sample.category in task.tests])
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

    def _good_hash(self, category: str, samples: tuple[Sample, ...]) -> str:
        """Return the hash of a category's good training images, computed once."""
        if category not in self._good_hashes:
            self._good_hashes[category] = content_hash(samples)
        return self._good_hashes[category]


def _select_samples(plan: Plan, samples: list[Sample]) -> list[Sample]:
    tasks = plan.tasks
    check_known(tasks.category, sorted({sample.category for sample in samples}), f"a category of {tasks.dataset}")
    if tasks.category:
        samples = [sample for sample in samples if sample.category in tasks.category]
    return subsample(samples, tasks.limit) if tasks.limit else samples
