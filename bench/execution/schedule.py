"""From a plan to records: `make_schedule` lists the jobs that are not yet in the store, `run_schedule` runs them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from bench import environment, registry
from bench.config.method_specs import check_setting_names
from bench.config.plan import Plan
from bench.errors import BenchError
from bench.execution.job import Job, JobResult, Outcome, ProgressCallback, run_locally
from bench.execution.planned_data import PlannedData, PlannedTask
from bench.execution.planned_method import PlannedMethod
from bench.execution.process_tree import descendants_end_with_this_process
from bench.identity import retry_key
from bench.record import Record, Selection
from bench.store import Store

_log = logging.getLogger(__name__)

MAP_BYTES = {"float16": 2, "float32": 4, "none": 0}


@dataclass(frozen=True, slots=True)
class Schedule:
    """The jobs and records of a plan, before anything is fitted.

    Attributes:
        jobs: jobs to run.
        existing: records that are in the store already.
        skipped: methods that cannot run here and categories whose files cannot be read, with the reason.
        disk: estimated bytes of the jobs' predictions.
        memory: estimated peak memory of the largest fit in bytes, by method; 0 if unknown.
        force: whether each fit starts from the beginning, even if it has a checkpoint.
        finished: the jobs whose records exist.
    """

    jobs: tuple[Job, ...]
    existing: tuple[Record, ...]
    skipped: dict[str, str]
    disk: int
    memory: dict[str, int]
    force: bool = False
    finished: tuple[Job, ...] = ()


def run_schedule(plan: Plan, schedule: Schedule, progress: ProgressCallback) -> Iterator[Record]:
    """Run the jobs, and yield each record after it is saved."""
    store = Store(plan.runs)
    store.root.mkdir(parents=True, exist_ok=True)  # for checkpoints
    # A kill after a record was saved leaves its checkpoints.
    for job in (*schedule.finished, *(schedule.jobs if schedule.force else ())):
        store.remove_checkpoints(job.run, job.data_hash, job.task.name)
    with descendants_end_with_this_process():
        for job, outcomes in _execute(plan, schedule.jobs, progress):
            progress(job.label, "done", 1, 1, None)
            errors: list[str] = []
            for outcome in outcomes:
                try:
                    record = _save(store, outcome, plan)
                except BenchError as error:  # the other outcomes of the job may still be saved
                    errors.append(str(error))
                else:
                    yield record
            if errors:
                raise BenchError("\n".join(errors))
            if not any(outcome.record.failure for outcome in outcomes):
                store.remove_checkpoints(job.run, job.data_hash, job.task.name)


def make_schedule(plan: Plan, *, force: bool = False, retry: bool = False, full_timing: bool = False) -> Schedule:
    """List the samples, draw the tasks, and look up which records exist.

    Args:
        plan: the plan of the command.
        force: schedule everything, whether or not its records exist; a fit does not continue from a checkpoint.
        retry: schedule only what failed before.
        full_timing: time everything of one model per method, the first task's, and fit it only if no model is stored.

    Raises:
        BenchError: if the data, a name or a number of the plan is wrong, if the store is not writable or the disk is
            too full, or if no method can run.
    """
    started = perf_counter()
    device_type = target_device_type(plan)  # a missing device is an error before any image is read
    if plan.checkpoint and plan.evaluation.calibrate:
        raise BenchError("A released checkpoint may have been trained on the held-out images. Remove --calibrate.")
    methods, skipped = _planned_methods(plan)
    data = PlannedData(plan)
    tasks = data.tasks(first_only=full_timing)
    _log.info(
        "%d samples, %d task(s); listed and hashed in %.2f s", len(data.samples), len(tasks), perf_counter() - started
    )
    _warn_of_unknown_categories(plan, data)
    _check_checkpoint_is_folder(plan, {planned.task.name for planned in tasks})
    store = Store(plan.runs)
    failed = (
        {retry_key(record.run, record.category) for record in store.records() if record.failure} if retry else set()
    )
    jobs: list[Job] = []
    existing: list[Record] = []
    finished: list[Job] = []
    memory: dict[str, int] = {}
    limit = _memory_limit(plan)
    for method in methods:
        for job in _method_jobs(method, data, tasks, skipped):
            if full_timing:
                job = replace(job if force else _with_saved_model(store, job), full_timing=True)  # noqa: PLW2901
            records = [] if force else _existing_records(store, job, device_type)
            existing += records
            if records:
                finished.append(job)
            if records or (retry and not any(retry_key(job.run, name) in failed for name in job.task.tests)):
                continue
            name, required = method.spec.name, 0 if job.saved_model else method.estimate_memory(job.task)
            if limit is not None and required > limit:
                skipped[job.label] = (
                    f"A fit must need at most {limit / 1e9:.1f} GB of memory; its estimate is {required / 1e9:.1f} GB. "
                    f"Pass --limit N for fewer images, or --max-memory GB if the estimate is wrong."
                )
                _log.warning("%s is skipped: %s", job.label, skipped[job.label])
                continue
            jobs.append(job)
            memory[name] = max(memory.get(name, 0), required)
    if not jobs and not existing and skipped:
        raise BenchError(next(iter(skipped.values())))
    _warn_of_changed_files(methods, existing)
    disk = sum(_estimate_disk(job) for job in jobs)
    if jobs:
        store.check_writable(disk)
    return Schedule(tuple(jobs), tuple(existing), skipped | data.skipped, disk, memory, force, tuple(finished))


def _warn_of_unknown_categories(plan: Plan, data: PlannedData) -> None:
    """Log the categories of the user's own images that bench.toml has settings for and the images do not have."""
    if plan.tasks.dataset == "folder":  # a published dataset may be there in part
        named = {category for spec in plan.method_specs for category in spec.by_category}
        for category in sorted(named - data.info.fingerprints.keys()):
            _log.warning(
                "bench.toml has settings in [category.folder.%s], but the images have no such category; they have %s.",
                category,
                ", ".join(sorted(data.info.fingerprints)),
            )


def _memory_limit(plan: Plan) -> float | None:
    """Return the bytes that a fit may need; None if they are unknown, as on a cluster."""
    if plan.execution.max_memory or plan.execution.executor == "ray":
        return plan.execution.max_memory * 1e9 or None
    return environment.total_memory(environment.device(plan.compute.device))


def target_device_type(plan: Plan) -> str:
    """Return the type of the device that the fits will run on; that of a cluster does not need to exist here."""
    if plan.execution.executor == "ray" and plan.compute.device != "auto":
        return plan.compute.device.partition(":")[0]
    return environment.device(plan.compute.device).type


def _save(store: Store, outcome: Outcome, plan: Plan) -> Record:
    """Save the outcome and return its record; a failure does not replace a record with metrics."""
    record = _without_private_paths(outcome.record, plan)
    if record.failure:
        existing = store.get(record.run, record.data_hash, record.category, record.selection)
        if existing and not existing.failure:
            return record
    if outcome.predictions is None and not record.failure:
        return store.update(record)  # only its times are new
    return store.save(
        record,
        outcome.predictions,
        map_precision=plan.evaluation.map_precision,
        pictures=outcome.pictures,
        model=outcome.model,
    )


def _without_private_paths(record: Record, plan: Plan) -> Record:
    """Return the record without absolute paths of the user, which its texts may contain."""
    shorten = partial(environment.without_private_paths, data=plan.data.absolute())
    return replace(
        record,
        command=environment.without_private_paths(record.command, data=Path("/")),
        failure=shorten(record.failure),
        warnings=[shorten(warning) for warning in record.warnings],
        origin={name: shorten(origin) for name, origin in record.origin.items()},
    )


def _execute(plan: Plan, jobs: tuple[Job, ...], progress: ProgressCallback) -> Iterator[JobResult]:
    """Run the jobs with the executor of the plan."""
    execution = plan.execution
    if execution.executor == "ray":
        from bench.execution.ray_executor import run_on_ray

        yield from _relay_warnings(run_on_ray(jobs, progress, execution))
    elif execution.executor == "process" or execution.timeout:
        from bench.execution.subprocess_executor import run_in_subprocess

        yield from _relay_warnings(run_in_subprocess(jobs, progress, timeout=execution.timeout))
    else:
        yield from run_locally(jobs, progress)


def _relay_warnings(results: Iterator[JobResult]) -> Iterator[JobResult]:
    """Log the warnings of other processes again in this one."""
    for job, outcomes in results:
        for warning in dict.fromkeys(warning for outcome in outcomes for warning in outcome.record.warnings):
            if warning not in job.warnings:
                _log.warning("%s: %s", job.label, warning)
        yield job, outcomes


def _planned_methods(plan: Plan) -> tuple[list[PlannedMethod], dict[str, str]]:
    """Return the methods that can run here, and why the others cannot. Raises BenchError if none can."""
    methods: list[PlannedMethod] = []
    skipped: dict[str, str] = {}
    for spec in plan.method_specs:
        try:
            settings = registry.load("methods", spec.method).Settings
            with registry.plugin_call("methods", spec.method):
                variants = spec.variants(settings, one_at_a_time=plan.tasks.one_at_a_time)
        except BenchError as error:
            skipped[spec.name] = str(error)
            continue
        for variant in variants:
            try:
                methods.append(PlannedMethod(plan, variant))
            except BenchError as error:
                overrides = variant.method_overrides
                point = (f"{key}={overrides[key][0]}" for key in variant.sweep_keys if key in overrides)
                skipped[" ".join([spec.name, *point])] = str(error)
    if not methods and len(set(skipped.values())) == 1:
        raise BenchError(next(iter(skipped.values())))
    for reason in dict.fromkeys(skipped.values()):  # methods with the same missing backbone share a line
        names = [name for name in skipped if skipped[name] == reason]
        _log.warning("%s %s skipped: %s", ", ".join(names), "is" if len(names) == 1 else "are", reason)
    if not methods:
        raise BenchError(
            f"None of the methods can run here: {', '.join(skipped)}. The warnings above give the reasons."
        )
    check_setting_names(plan.method_specs, {method.spec.name: method.module.Settings for method in methods})
    return methods, skipped


def _method_jobs(
    method: PlannedMethod, data: PlannedData, tasks: Sequence[PlannedTask], skipped: dict[str, str]
) -> Iterator[Job]:
    """Yield the job of each task; one that cannot be made is added to `skipped`."""
    for planned in tasks:
        try:
            planned = data.with_pretraining(planned) if method.pretrains_for(planned.task) else planned  # noqa: PLW2901
            job = method.job(planned, data)
        except BenchError as error:
            label = f"{method.spec.name} {planned.task.name}"
            skipped[label] = str(error)
            _log.warning("%s is skipped: %s", label, error)
            continue
        yield job


def _check_checkpoint_is_folder(plan: Plan, tasks: set[str]) -> None:
    if plan.checkpoint and plan.checkpoint.is_file() and len(tasks) > 1:
        raise BenchError(
            f"--checkpoint must be a folder if the plan has several models ({len(tasks)} here); "
            f"{plan.checkpoint} is one file."
        )


def _warn_of_changed_files(methods: Sequence[PlannedMethod], records: Sequence[Record]) -> None:
    """Warn of methods whose source file has changed since their records were written."""
    hashes = {method.spec.name: method.source_hash for method in methods}
    for name in sorted({record.run.name for record in records if record.source_hash != hashes[record.run.name]}):
        _log.warning("The file of %s has changed since its records were written. Pass --force to run it again.", name)


def _existing_records(store: Store, job: Job, device_type: str) -> list[Record]:
    """Return the records of the job if all of them are in the store without failure and complete; else none."""
    selection_rule = job.evaluation.selection
    selections: tuple[Selection, ...] = ("last", "oracle") if selection_rule == "both" else (selection_rule,)
    records = []
    for selection in selections:
        for category in job.task.tests:
            record = store.get(job.run, job.data_hash, category, selection)
            if record is None or record.failure or not _is_complete(record, job, device_type):
                return []
            records.append(record)
    title, sweep_keys = job.run.title, job.run.sweep_keys  # as this command names it
    return [replace(record, run=replace(record.run, title=title, sweep_keys=sweep_keys)) for record in records]


def _with_saved_model(store: Store, job: Job) -> Job:
    """Return the job that times the stored model instead of fitting one, if a model is stored."""
    category = next(iter(job.task.tests))
    record = store.get(job.run, job.data_hash, category, "last")
    if len(job.task.tests) > 1 or record is None or record.failure or not record.artifacts.get("model"):
        return job
    return replace(job, existing_record=record, saved_model=store.path_of(record).with_suffix(".safetensors"))


def _is_complete(record: Record, job: Job, device_type: str) -> bool:
    """Return whether the store has everything that the job would store."""
    if record.artifacts.get("map_precision") != job.evaluation.map_precision:
        return False
    if record.selection == "oracle":
        return record.eval_every == job.evaluation.eval_every
    if job.full_timing and "network" not in record.latency:
        return False
    if job.execution.keep_model and not record.artifacts.get("model"):
        return False
    return not job.evaluation.time or (bool(record.latency) and _is_same_device_type(record, job, device_type))


def _is_same_device_type(record: Record, job: Job, device_type: str) -> bool:
    """Return whether the latency was measured on the same type of device and, on a CPU, with as many threads."""
    on_gpu = "cuda" in record.timed_environment
    if device_type == "cuda" or on_gpu:
        return device_type == "cuda" and on_gpu
    return record.timed_environment.get("threads") == (job.compute.threads or environment.threads())


def _estimate_disk(job: Job) -> int:
    """Return the estimated bytes of the predictions: maps, packed masks and four images of pictures per category."""
    height, width = job.preprocessing.size
    pixels, count = height * width, sum(len(tests) for tests in job.task.tests.values())
    selections = 2 if job.evaluation.selection == "both" else 1
    maps = selections * count * pixels * MAP_BYTES[job.evaluation.map_precision]
    return maps + count * pixels // 8 + len(job.task.tests) * 4 * 3 * pixels
