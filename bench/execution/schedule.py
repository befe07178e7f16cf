"""From a plan to records: `make_schedule` lists the jobs that are not yet in the store, `run_schedule` runs them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from bench import environment, registry
from bench.config.method_specs import check_setting_names
from bench.config.plan import Plan
from bench.data.fingerprint import category_fingerprints
from bench.data.images import content_hash
from bench.data.protocol import PROTOCOLS, Task, split_calibration, subsample, with_others
from bench.dataset import Sample
from bench.errors import BenchError, check_known
from bench.execution.job import Job, JobResult, Outcome, ProgressCallback, capture_warnings, run_locally
from bench.execution.planned_method import DatasetInfo, PlannedMethod
from bench.identity import retry_key
from bench.record import Record, Selection
from bench.store import Store

_log = logging.getLogger(__name__)

MAP_BYTES = {"float16": 2, "float32": 4, "none": 0}


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a plan requires, before anything is fitted.

    Attributes:
        jobs: to run.
        existing: records that are in the store already.
        skipped: methods that cannot run here and categories whose files cannot be read, with the reason.
        disk: estimated bytes of the jobs' predictions.
        memory: estimated peak memory of the largest fit in bytes, by method; 0 if unknown.
    """

    jobs: tuple[Job, ...]
    existing: tuple[Record, ...]
    skipped: dict[str, str]
    disk: int
    memory: dict[str, int]


def run_schedule(plan: Plan, schedule: Schedule, progress: ProgressCallback) -> Iterator[Record]:
    """Run the jobs, and yield each record after it is saved."""
    store = Store(plan.runs)
    for job, outcomes in _execute(plan, schedule.jobs, progress):
        progress(job.label, "done", 1, 1, None)
        errors: list[str] = []
        for outcome in outcomes:
            try:
                record = _save(store, outcome, plan)
            except BenchError as error:  # the job's other outcomes may still be saved, if only elsewhere
                errors.append(str(error))
            else:
                yield record
        if errors:
            raise BenchError("\n".join(errors))


def make_schedule(plan: Plan, *, force: bool = False, retry: bool = False, full_timing: bool = False) -> Schedule:
    """List the samples, draw the tasks, and look up which records exist.

    Args:
        plan: of the call.
        force: schedule everything, whether or not its records exist.
        retry: schedule only what failed before.
        full_timing: time everything of one model per method, the first task's, and fit it only if no model is stored.

    Raises:
        BenchError: if the data, a name or a number of the plan is wrong, if the store is not writable or the disk is
            too full, or if no method can run.
    """
    started = perf_counter()
    device_type = target_device_type(plan)  # a missing device is an error before anything is drawn or read
    if plan.checkpoint and plan.evaluation.calibrate:
        raise BenchError("A released checkpoint may have been trained on the held-out images. Remove --calibrate.")
    methods, skipped = _planned_methods(plan)
    module = registry.load("datasets", plan.tasks.dataset)
    with capture_warnings() as warnings:  # of wrong counts, missing masks and the like: records keep them
        listed = module.samples(plan.data)
    samples = _select_samples(plan, listed)
    tasks = [
        (k, seed, task)
        for k in _shot_counts(plan)
        for seed in plan.tasks.seed
        for task in _draw(plan, samples, k, seed)
    ]
    tasks = tasks[:1] if full_timing else tasks
    digests = _content_hashes({task.name: task for _, _, task in tasks}, samples, skipped)
    tasks = [entry for entry in tasks if entry[2].name in digests]
    dataset = DatasetInfo(
        plan.tasks.dataset if plan.tasks.dataset != "folder" else f"folder-{plan.data.resolve().name}",
        module.SYNTHETIC,
        category_fingerprints(listed),
    )
    others = subsample(listed, plan.tasks.limit) if plan.tasks.limit else listed
    _log.info("%d samples, %d task(s); listed and hashed in %.2f s", len(samples), len(tasks), perf_counter() - started)
    if plan.checkpoint and plan.checkpoint.is_file() and len(digests) > 1:
        raise BenchError(
            f"--checkpoint must be a folder if the plan has several models ({len(digests)} here); "
            f"{plan.checkpoint} is one file."
        )
    store = Store(plan.runs)
    failed = (
        {retry_key(record.run, record.category) for record in store.records() if record.failure} if retry else set()
    )
    jobs: list[Job] = []
    existing: list[Record] = []
    memory: dict[str, int] = {}
    changed: set[str] = set()
    for method in methods:
        name = method.spec.name
        for k, seed, task in tasks:
            digest = digests[task.name]
            if method.kind.pretrains:
                task = with_others(task, others)  # noqa: PLW2901
                pretraining = [sample for images in task.others.values() for sample in images]
                digest = f"{digest}+{content_hash(pretraining)}" if pretraining else digest
            job = method.job(task, dataset, k=k, seed=seed, data_digest=digest)
            if full_timing and not force:
                job = _with_saved_model(store, job)
            job = replace(job, full_timing=full_timing)
            records = [] if force else _existing_records(store, job, device_type, iterative=method.kind.iterative)
            if any(record.source_hash != method.source_hash for record in records):
                changed.add(name)
            existing += records
            if not records and (not retry or any(retry_key(job.run, category) in failed for category in task.tests)):
                jobs.append(replace(job, warnings=tuple(warnings)))
                memory[name] = max(memory.get(name, 0), method.estimate_memory(task))
    for name in sorted(changed):
        _log.warning("The file of %s has changed since its records were made. Pass --force to run it again.", name)
    disk = sum(_estimate_disk(job) for job in jobs)
    if jobs:
        store.check_writable(disk)
    return Schedule(tuple(jobs), tuple(existing), skipped, disk, memory)


def target_device_type(plan: Plan) -> str:
    """Return the type of the device that the fits will run on; that of a cluster need not exist here."""
    if plan.execution.executor == "ray" and plan.compute.device != "auto":
        return plan.compute.device.partition(":")[0]
    return environment.device(plan.compute.device).type


def _save(store: Store, outcome: Outcome, plan: Plan) -> Record:
    """Save the outcome and return its record; a failure does not replace a record with metrics."""
    record = outcome.record
    if record.failure:
        existing = store.get(record.run, record.data_digest, record.category, record.selection)
        if existing and not existing.failure:
            return record
    if outcome.predictions is None and not record.failure:
        return store.update(record)  # only its times are new
    return store.save(record, outcome.predictions, maps=plan.evaluation.maps, views=outcome.views, model=outcome.model)


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
    for name, reason in skipped.items():
        _log.warning("%s is skipped: %s", name, reason)
    if not methods:
        raise BenchError(
            f"None of the methods can run here: {', '.join(skipped)}. The warnings above give the reasons."
        )
    check_setting_names(plan.method_specs, {method.spec.name: method.module.Settings for method in methods})
    return methods, skipped


def _select_samples(plan: Plan, samples: list[Sample]) -> list[Sample]:
    """Return the samples of the plan's categories, at most as many as its limit."""
    tasks = plan.tasks
    check_known(tasks.category, sorted({sample.category for sample in samples}), f"a category of {tasks.dataset}")
    if tasks.category:
        samples = [sample for sample in samples if sample.category in tasks.category]
    return subsample(samples, tasks.limit) if tasks.limit else samples


def _shot_counts(plan: Plan) -> tuple[int, ...]:
    return plan.tasks.k if plan.tasks.protocol == "kshot" else (0,)


def _draw(plan: Plan, samples: Sequence[Sample], k: int, seed: int) -> list[Task]:
    """Return the tasks of one seed and number of shots, with calibration images held out if asked for."""
    tasks = PROTOCOLS[plan.tasks.protocol](samples, k, seed)
    rate = plan.evaluation.calibrate
    return [split_calibration(task, rate, seed) for task in tasks] if rate else tasks


def _content_hashes(tasks: dict[str, Task], samples: list[Sample], skipped: dict[str, str]) -> dict[str, str]:
    """Return the hash of each task's files, by name. A task whose files cannot be read is skipped."""
    hashes: dict[str, str] = {}
    for name, task in tasks.items():
        try:
            hashes[name] = content_hash([sample for sample in samples if sample.category in task.tests])
        except BenchError as error:
            if len(tasks) == 1:
                raise
            skipped[name] = str(error)
            _log.warning("%s is skipped: %s", name, error)
    if not hashes:
        raise BenchError(
            f"None of the categories can be read: {', '.join(tasks)}. The warnings above give the reasons."
        )
    return hashes


def _existing_records(store: Store, job: Job, device_type: str, *, iterative: bool) -> list[Record]:
    """Return the records of the job if all of them are in the store without failure and complete; else none."""
    rule = job.evaluation.selection
    selections: tuple[Selection, ...] = ("last", "oracle") if rule == "both" else (rule,)
    records = []
    for selection in selections if iterative else ("last",):
        for category in job.task.tests:
            record = store.get(job.run, job.data_digest, category, selection)
            if record is None or record.failure or not _is_complete(record, job, device_type):
                return []
            records.append(record)
    title, sweep_keys = job.run.title, job.run.sweep_keys  # as this call names it
    return [replace(record, run=replace(record.run, title=title, sweep_keys=sweep_keys)) for record in records]


def _with_saved_model(store: Store, job: Job) -> Job:
    """Return the job that times the stored model instead of fitting one, if a model is stored."""
    category = next(iter(job.task.tests))
    record = store.get(job.run, job.data_digest, category, "last")
    if len(job.task.tests) > 1 or record is None or record.failure or not record.artifacts.get("model"):
        return job
    return replace(job, existing_record=record, saved_model=store.path_of(record).with_suffix(".safetensors"))


def _is_complete(record: Record, job: Job, device_type: str) -> bool:
    """Return whether the store has everything that the job would store."""
    if record.artifacts.get("maps") != job.evaluation.maps:
        return False
    if record.selection == "oracle":
        return record.eval_every == job.evaluation.eval_every
    if job.full_timing and "network" not in record.latency:
        return False
    if job.execution.keep_model and not record.artifacts.get("model"):
        return False
    return not job.evaluation.time or (bool(record.latency) and _is_same_hardware(record, job, device_type))


def _is_same_hardware(record: Record, job: Job, device_type: str) -> bool:
    """Return whether the latency was measured on such a device as the job would use, with as many threads."""
    on_gpu = "cuda" in record.environment
    if device_type == "cuda" or on_gpu:
        return device_type == "cuda" and on_gpu
    return record.environment.get("threads") == (job.compute.threads or environment.threads())


def _estimate_disk(job: Job) -> int:
    """Return the estimated bytes of the predictions: maps, packed masks and four images of pictures per category."""
    height, width = job.preprocessing.size
    pixels, count = height * width, sum(len(tests) for tests in job.task.tests.values())
    selections = 2 if job.evaluation.selection == "both" else 1
    maps = selections * count * pixels * MAP_BYTES[job.evaluation.maps]
    return maps + count * pixels // 8 + len(job.task.tests) * 4 * 3 * pixels
