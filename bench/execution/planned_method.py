"""A method as one plan uses it: its class, its settings for each task, and the jobs that fit it."""

import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import environment, registry
from bench.config.method_specs import MethodSpec
from bench.config.options import OPTION_GROUPS, options_that_affect_metrics
from bench.config.plan import Plan
from bench.config.settings import resolve
from bench.data.protocol import Task
from bench.data.value_range import depth_range
from bench.errors import BenchError
from bench.execution.job import Job, source_hash
from bench.execution.planned_data import PlannedData, PlannedTask
from bench.files import file_sha256
from bench.identity import run_hash
from bench.method import Method, Preprocessing
from bench.record import Run

_log = logging.getLogger(__name__)


class PlannedMethod:
    """A method of a plan. Raises BenchError if it cannot run with the plan's options."""

    def __init__(self, plan: Plan, spec: MethodSpec) -> None:
        self.plan = plan
        self.spec = spec
        self.module = registry.load("methods", spec.method)
        self.method_class: type[Method] = self.module.METHOD
        if not issubclass(self.method_class, Method):
            raise BenchError(
                f"METHOD of methods/{spec.method} must be a subclass of bench.method.Method. Fix the file."
            )
        self.source_hash = source_hash(self.module)
        self._file_hashes: dict[str, dict[str, str]] = {}
        self._checkpoint_hashes: dict[Path, str] = {}
        with registry.plugin_call("methods", spec.method):
            self.iterative = bool(self.method_class.iterative)
            self.preprocessing = self._preprocessing()
            self._check_options()
            for category in ("", *spec.by_category):
                self._hash_files(self.settings(category)[0])

    def settings(self, category: str) -> tuple[Any, dict[str, str]]:
        """Return the method's Settings for a category, or "" for all, and the origin of each value."""
        return self.spec.resolve(self.module.Settings, category)

    def pretrains_for(self, task: Task) -> bool:
        """Return whether a fit on the task needs the images of other categories."""
        with registry.plugin_call("methods", self.spec.method):
            return bool(self.method_class.pretrains_with(self.settings(task.name)[0]))

    def job(self, planned: PlannedTask, data: PlannedData) -> Job:
        """Return the job that fits this method on the task. Raises BenchError if the plug-in has an error."""
        with registry.plugin_call("methods", self.spec.method):
            return self._job(planned, data)

    def _job(self, planned: PlannedTask, data: PlannedData) -> Job:
        plan, task, dataset = self.plan, planned.task, data.info
        settings, origin = self.settings(task.name)
        evaluation = replace(plan.evaluation, calibrate=planned.calibrate)
        if not self.iterative:  # without epochs there is no best epoch
            evaluation = replace(evaluation, selection="last")
        groups = {group: getattr(plan, group) for group in OPTION_GROUPS} | {"evaluation": evaluation}
        run = Run(
            dataset=dataset.name,
            synthetic=dataset.synthetic,
            data_fingerprints=dataset.fingerprints,
            protocol=plan.tasks.protocol,
            k=planned.k,
            seed=planned.seed,
            name=self.spec.name,
            method=self.spec.method,
            title=self.spec.title,
            settings=_json_settings(settings),
            preprocessing=asdict(self.preprocessing),
            file_hashes=self._hash_files(settings),
            options=options_that_affect_metrics(groups),
            profile=plan.profile,
            profile_note=plan.profile_note,
            sweep_keys=list(self.spec.sweep_keys),
        )
        shared_settings, _ = self.settings("")
        shared = replace(run, settings=_json_settings(shared_settings), file_hashes=self._hash_files(shared_settings))
        checkpoint = self._checkpoint(task)
        evaluation = replace(evaluation, time=evaluation.time and self._has_device_exclusively())
        if checkpoint and plan.checkpoint:  # the run has the file's hash, the group the folder's name
            evaluation = replace(evaluation, selection="last")
            run = replace(run, file_hashes=run.file_hashes | {"checkpoint": self._hash_checkpoint(checkpoint)})
            shared = replace(shared, file_hashes=shared.file_hashes | {"checkpoint": plan.checkpoint.name})
        # A unified model depends on its categories, so their hash is part of the group's hash.
        group_hash = run_hash(shared, planned.data_hash if plan.tasks.protocol == "unified" else "")
        return Job(
            run=replace(run, group_hash=group_hash),
            task=task,
            data_hash=planned.data_hash,
            evaluation=evaluation,
            compute=plan.compute,
            # A fit without test images serves only to predict later.
            execution=replace(plan.execution, keep_model=plan.execution.keep_model or not planned.has_tests),
            weights=plan.weights,
            cache=plan.cache,
            runs=plan.runs.absolute(),
            origin=plan.origin | {f"settings.{name}": where for name, where in origin.items()},
            command=plan.command,
            warnings=(*data.warnings, *planned.warnings),
            checkpoint=checkpoint,
        )

    def estimate_memory(self, task: Task) -> int:
        """Return the method's estimate of the peak memory of that fit in bytes.

        0 if it has none, or an error; `sys.maxsize` if the error is that a size is too large to be computed.
        """
        try:
            with registry.plugin_call("methods", self.spec.method):
                settings = self.settings(task.name)[0]
                return int(self.method_class.estimate_memory(settings, self.preprocessing.size, len(task.train)) or 0)
        except BenchError as error:
            if isinstance(error.__cause__, MemoryError | OverflowError) or "overflow" in str(error):  # torch's message
                return sys.maxsize
            _log.warning("The memory of %s is unknown: %s", self.spec.title, error)
            return 0

    def _has_device_exclusively(self) -> bool:
        """Return whether a fit has its device to itself, so that a latency measured there is meaningful."""
        execution, compute = self.plan.execution, self.plan.compute
        if execution.executor != "ray":
            return True
        device = compute.device if compute.device != "auto" else environment.device("auto").type
        return not device.startswith("cpu") and execution.gpus_per_task >= 1

    def _preprocessing(self) -> Preprocessing:
        """Return the plan's preprocessing, or that of the method's paper with the plan's options of image files."""
        shared = shared_preprocessing(self.plan)
        if self.plan.compute.preprocessing != "paper":
            return shared
        of_files = {name: getattr(shared, name) for name in ("black", "white", "page", "allow_large")}
        return replace(self.method_class.paper_preprocessing, **of_files)

    def _check_options(self) -> None:
        """Raise BenchError if the method does not support an option of the plan."""
        if self.plan.checkpoint:
            self._check_checkpoint(self.plan.checkpoint)
        if self.plan.compute.compile and not self.method_class.supports_compile:
            raise BenchError(f"{self.spec.title} does not support --compile. Remove one of the two.")

    def _check_checkpoint(self, path: Path) -> None:
        """Raise BenchError if the method has no released checkpoints, or if there is none at that path."""
        if not self.method_class.checkpoint:
            raise BenchError(f"{self.spec.title} cannot read released checkpoints. Remove --checkpoint to fit it.")
        if not path.exists():
            file = self.method_class.checkpoint
            raise BenchError(f"--checkpoint must be a file or a folder with <category>/{file}; {path} does not exist.")

    def _checkpoint(self, task: Task) -> Path | None:
        path = self.plan.checkpoint
        return path / task.name / self.method_class.checkpoint if path and path.is_dir() else path

    def _hash_checkpoint(self, path: Path) -> str:
        """Return the file's sha256, computed once; "missing" if it does not exist, which the job then reports."""
        if path not in self._checkpoint_hashes:
            self._checkpoint_hashes[path] = "missing"
            if path.is_file():
                self._checkpoint_hashes[path] = file_sha256(path)
        return self._checkpoint_hashes[path]

    def _hash_files(self, settings: Any) -> dict[str, str]:
        """Return the method's `file_hashes`, computed once per settings: hashing weights takes a moment."""
        key = repr(settings)
        if key not in self._file_hashes:
            self._file_hashes[key] = self.method_class.file_hashes(settings, self.plan.weights)
        return self._file_hashes[key]


def shared_preprocessing(plan: Plan) -> Preprocessing:
    """Return the preprocessing that the plan's profile shares among methods, with the plan's options of image files.

    Raises:
        BenchError: a key or value is wrong, only one of black and white is given, or white is not above black.
    """
    raw = {key: (value, f"profile {plan.profile}") for key, value in plan.preprocessing.items()}
    shared, _ = resolve(Preprocessing, raw, "the profile's shared preprocessing")
    tasks = plan.tasks
    black, white = depth_range(tasks.depth) if tasks.depth else (shared.black, shared.white)
    if (black is None) != (white is None) or (black is not None and white is not None and white <= black):
        raise BenchError(
            f"shared_preprocessing must have both black and white, with white > black, got {black} and {white}. Set "
            f"both, or remove both to compute them."
        )
    page, allow_large = tasks.page or shared.page, tasks.allow_large or shared.allow_large
    return replace(shared, black=black, white=white, page=page, allow_large=allow_large)


def _json_settings(settings: Any) -> dict[str, Any]:
    """Return a method's Settings as JSON returns them, so that a record equals itself after a round trip."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}
