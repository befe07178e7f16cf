"""The walk of `bench run`, once: a plan becomes jobs, jobs become records in the store."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest
from pathlib import Path
from time import perf_counter
from typing import Any

from bench import environment, registry
from bench.config.method_specs import MethodSpec, check_setting_names
from bench.config.options import Options
from bench.config.plan import Plan
from bench.config.settings import resolve
from bench.data import images
from bench.data.protocol import PROTOCOLS, Task, split_calibration, subsample
from bench.dataset import Sample
from bench.errors import BenchError, check_known
from bench.execution.job import Job, JobResult, Outcome, ProgressCallback, capture_warnings, run_locally, source_hash
from bench.method import Method, Preprocessing
from bench.record import Record, Run, Selection
from bench.store import Store

_log = logging.getLogger(__name__)

MAP_BYTES = {"float16": 2, "float32": 4, "none": 0}


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a plan comes to, before anything is fitted.

    Attributes:
        jobs: still to do.
        found: records that stand in the store already.
        refused: methods that can't run here and categories whose files can't be read, with the reason.
        disk: estimated bytes that the jobs' answers will take.
        memory: estimated peak bytes of the greediest fit, by method; 0 where nobody worked it out.
    """

    jobs: tuple[Job, ...]
    existing: tuple[Record, ...]
    skipped: dict[str, str]
    disk: int
    memory: dict[str, int]


def run_schedule(plan: Plan, schedule: Schedule, watch: ProgressCallback) -> Iterator[Record]:
    """Does the survey's jobs and yields each record when it stands in the store."""
    store = Store(plan.runs)
    for job, outcomes in _executed(plan, schedule.jobs, watch):
        watch(job.label, "done", 1, 1, None)
        refused: list[str] = []
        for outcome in outcomes:
            try:
                record = _saved(store, outcome, plan)
            except BenchError as refusal:  # the job's other outcomes may still find room, if only elsewhere
                refused.append(str(refusal))
            else:
                yield record
        if refused:
            raise BenchError("\n".join(refused))


def _saved(store: Store, outcome: Outcome, plan: Plan) -> Record:
    """The outcome's record as it stands in the store; what was measured is not given up for a failure."""
    record = outcome.record
    if record.failure:
        standing = store.get(record.run, record.data_digest, record.category, record.selection)
        if standing and not standing.failure:
            return record
    if outcome.predictions is None and not record.failure:
        return store.update(record)  # only its times are new
    return store.save(record, outcome.predictions, maps=plan.options.maps, views=outcome.views, model=outcome.model)


def _executed(plan: Plan, jobs: tuple[Job, ...], watch: ProgressCallback) -> Iterator[JobResult]:
    """The jobs, done by the executor that the plan names."""
    options = plan.options
    if options.executor == "ray":
        from bench.execution.ray_executor import run_on_ray

        share, ship = options.gpus_per_task, options.ship_data
        done = run_on_ray(jobs, watch, address=options.address, gpus=share, timeout=options.timeout, ship=ship)
        yield from _told(done)
    elif options.executor == "process" or options.timeout:
        from bench.execution.subprocess_executor import run_in_subprocess

        yield from _told(run_in_subprocess(jobs, watch, timeout=options.timeout))
    else:
        yield from run_locally(jobs, watch)


def _told(done: Iterator[JobResult]) -> Iterator[JobResult]:
    """The same, with a word of what was warned of in another process, where nobody has heard it."""
    for job, outcomes in done:
        for warning in dict.fromkeys(said for outcome in outcomes for said in outcome.record.warnings):
            if warning not in job.warnings:
                _log.warning("%s: %s", job.label, warning)
        yield job, outcomes


def make_schedule(plan: Plan, *, force: bool = False, retry: bool = False, thorough: bool = False) -> Schedule:
    """Lists the samples, draws the tasks, and looks up what is done.

    force: do it all again. retry: do only those again that failed. thorough: time all of one model a method, the first
    task's, and fit it only where no model is kept. Raises BenchError where the data, a name or a number of the plan
    does not fit, where the store can't be written to or the disk is too full, or where no method can run.
    """
    options, began = plan.options, perf_counter()
    kind = device(options)  # what isn't there is refused before anything is drawn or read
    if plan.checkpoint and options.calibrate:
        raise BenchError("No image is known to be held out of a released checkpoint's training. Leave --calibrate out.")
    methods, refused = _methods(plan)
    module = registry.load("datasets", options.dataset)
    with (
        capture_warnings() as said
    ):  # of counts that aren't the official ones, missing masks and the like: records keep it
        samples = _chosen(plan, module.samples(plan.data))
    tasks = [(k, seed, task) for k in _ks(plan) for seed in options.seed for task in _draw(plan, samples, k, seed)]
    tasks = tasks[:1] if thorough else tasks
    digests = _digests({task.name: task for _, _, task in tasks}, samples, refused)
    tasks = [found for found in tasks if found[2].name in digests]
    _log.info("%d samples, %d task(s); listed and hashed in %.2f s", len(samples), len(tasks), perf_counter() - began)
    if plan.checkpoint and plan.checkpoint.is_file() and len(digests) > 1:
        raise BenchError(f"--checkpoint {plan.checkpoint} is one model; this plan has {len(digests)}. Give a folder.")
    dataset = options.dataset if options.dataset != "folder" else f"folder-{plan.data.resolve().name}"
    store = Store(plan.runs)
    failed = {_place(record.run, record.category) for record in store.records() if record.failure} if retry else set()
    jobs: list[Job] = []
    found: list[Record] = []
    memory: dict[str, int] = {}
    changed: set[str] = set()
    for method in methods:
        name = method.choice.name
        for k, seed, task in tasks:
            data = digests[task.name]
            job = method.job(task, dataset=dataset, synthetic=module.SYNTHETIC, k=k, seed=seed, data=data)
            job = _to_time(store, job) if thorough and not force else replace(job, full_timing=thorough)
            done = [] if force else _done(store, job, kind, iterative=method.kind.iterative)
            if any(record.source_hash != method.source_hash for record in done):
                changed.add(name)
            found += done
            if not done and (not retry or any(_place(job.run, category) in failed for category in task.tests)):
                jobs.append(replace(job, warnings=tuple(said)))
                memory[name] = max(memory.get(name, 0), method.memory(task))
    for name in sorted(changed):
        _log.warning("The file of %s has changed since its records were made; --force makes them again.", name)
    disk = sum(_disk(job) for job in jobs)
    if jobs:
        store.check_writable(disk)
    return Schedule(tuple(jobs), tuple(found), refused, disk, memory)


class _Method:
    """A method as one plan uses it: its class, and the settings of each task resolved."""

    def __init__(self, plan: Plan, choice: MethodSpec) -> None:
        self.plan = plan
        self.choice = choice
        self.module = registry.load("methods", choice.method)
        self.kind: type[Method] = self.module.METHOD
        self.source_hash = source_hash(self.module)
        raw = {key: (value, f"profile {plan.profile}") for key, value in plan.preprocessing.items()}
        shared, _ = resolve(Preprocessing, raw, "the profile's shared preprocessing")
        self.preprocessing = self.kind.paper_preprocessing if plan.options.preprocessing == "paper" else shared
        self._hashes: dict[str, dict[str, str]] = {}
        self._digests: dict[Path, str] = {}
        if plan.checkpoint:
            self._check_released(plan.checkpoint)
        if plan.options.compile and not self.kind.supports_compile:
            raise BenchError(f"{choice.title} has nothing that --compile would compile. Leave one of the two out.")
        for category in ("", *choice.by_category):
            self._inputs(self.settings(category)[0])

    def settings(self, category: str) -> tuple[Any, dict[str, str]]:
        """The method's Settings for a category, or for "all", and the origin of each value."""
        return self.choice.resolve(self.module.Settings, category)

    def job(self, task: Task, *, dataset: str, synthetic: bool, k: int, seed: int, data: str) -> Job:
        """The job that fits this method on the task."""
        plan, options = self.plan, self.plan.options
        settings, origin = self.settings(task.name)
        shared, _ = self.settings("")
        told = Run(
            dataset=dataset,
            synthetic=synthetic,
            protocol=options.protocol,
            k=k,
            seed=seed,
            limit=options.limit,
            name=self.choice.name,
            method=self.choice.method,
            title=self.choice.title,
            settings=_plain(settings),
            preprocessing=asdict(self.preprocessing),
            precision=options.precision,
            file_hashes=self._inputs(settings),
            profile=plan.profile,
            profile_note=plan.profile_note,
            calibrate=options.calibrate,
            resolution=options.resolution,
            compile=options.compile,
            sweep_keys=list(self.choice.sweep_keys),
        )
        common = replace(told, settings=_plain(shared), file_hashes=self._inputs(shared))
        checkpoint = self._checkpoint(task)
        if checkpoint and plan.checkpoint:  # the file tells the runs apart, the folder the tables
            told = replace(told, file_hashes=told.file_hashes | {"checkpoint": self._digest(checkpoint)})
            common = replace(common, file_hashes=common.file_hashes | {"checkpoint": plan.checkpoint.name})
        return Job(
            # One model for all categories is another one where the categories are others.
            run=replace(told, group_hash=common.key(data if options.protocol == "unified" else "")),
            task=task,
            data_digest=data,
            selection="last" if checkpoint else options.selection,
            eval_every=options.eval_every,
            batch=options.batch,
            maps=options.maps,
            keep_model=options.keep_model,
            time=options.time and _alone(options),
            device=options.device,
            threads=options.threads,
            weights=plan.weights,
            cache=plan.cache,
            origin=plan.origin | {f"settings.{name}": where for name, where in origin.items()},
            command=plan.command,
            checkpoint=checkpoint,
        )

    def _check_released(self, place: Path) -> None:
        """Raises BenchError where no released model can be judged."""
        if not self.kind.checkpoint:
            raise BenchError(f"{self.choice.title} reads no released checkpoint; fit it: leave out --checkpoint.")
        if not place.exists():
            file = self.kind.checkpoint
            raise BenchError(f"--checkpoint names a file, or a folder with <category>/{file}; {place} is neither.")

    def _checkpoint(self, task: Task) -> Path | None:
        place = self.plan.checkpoint
        return place / task.name / self.kind.checkpoint if place and place.is_dir() else place

    def _digest(self, path: Path) -> str:
        """The file's sha256, worked out once; "missing" where there is none, which the run will say."""
        if path not in self._digests:
            self._digests[path] = "missing"
            if path.is_file():
                with path.open("rb") as file:
                    self._digests[path] = file_digest(file, "sha256").hexdigest()
        return self._digests[path]

    def _inputs(self, settings: Any) -> dict[str, str]:
        """The method's `inputs`, asked once for each settings: hashing a file of weights takes a moment."""
        key = repr(settings)
        if key not in self._hashes:
            self._hashes[key] = self.kind.file_hashes(settings, self.plan.weights)
        return self._hashes[key]

    def memory(self, task: Task) -> int:
        """The method's own estimate of the peak bytes of that fit; 0 where it has none."""
        return self.kind.estimate_memory(self.settings(task.name)[0], self.preprocessing.size, len(task.train)) or 0


def _methods(plan: Plan) -> tuple[list[_Method], dict[str, str]]:
    """The methods that can run here, and why the others can't. Raises BenchError where none can."""
    found: list[_Method] = []
    refused: dict[str, str] = {}
    for choice in plan.method_specs:
        try:
            kind = registry.load("methods", choice.method).Settings
            variants = choice.variants(kind, one_at_a_time=plan.options.one_at_a_time)
        except BenchError as refusal:
            refused[choice.name] = str(refusal)
            continue
        for variant in variants:
            try:
                found.append(_Method(plan, variant))
            except BenchError as refusal:
                point = (
                    f"{key}={variant.method_overrides[key][0]}"
                    for key in variant.sweep_keys
                    if key in variant.method_overrides
                )
                refused[" ".join([choice.name, *point])] = str(refusal)
    if not found and len(set(refused.values())) == 1:
        raise BenchError(next(iter(refused.values())))
    for name, reason in refused.items():
        _log.warning("%s is left out: %s", name, reason)
    if not found:
        raise BenchError(f"None of the methods can run here: {', '.join(refused)}. The lines above say why.")
    check_setting_names(plan.method_specs, {method.choice.name: method.module.Settings for method in found})
    return found, refused


def _chosen(plan: Plan, samples: list[Sample]) -> list[Sample]:
    """The samples of the plan's categories, in the plan's number."""
    options = plan.options
    check_known(options.category, sorted({sample.category for sample in samples}), f"a category of {options.dataset}")
    if options.category:
        samples = [sample for sample in samples if sample.category in options.category]
    return subsample(samples, options.limit) if options.limit else samples


def _ks(plan: Plan) -> tuple[int, ...]:
    return plan.options.k if plan.options.protocol == "kshot" else (0,)


def _draw(plan: Plan, samples: list[Sample], k: int, seed: int) -> list[Task]:
    check_known([plan.options.protocol], PROTOCOLS, "a protocol")
    tasks = PROTOCOLS[plan.options.protocol](samples, k, seed)
    rate = plan.options.calibrate
    return [split_calibration(task, rate, seed) for task in tasks] if rate else tasks


def device(options: Options) -> str:
    """The kind of device that the fits will run on; on a cluster it need not be here."""
    if options.executor == "ray" and options.device != "auto":
        return options.device.partition(":")[0]
    return environment.device(options.device).type


def _alone(options: Options) -> bool:
    """Whether a fit has its device to itself, so that a latency measured there means something."""
    return options.executor != "ray" or (device(options) != "cpu" and options.gpus_per_task >= 1)


def _digests(tasks: dict[str, Task], samples: list[Sample], refused: dict[str, str]) -> dict[str, str]:
    """The digest of each task's images, by name. A task whose files can't be read is refused, and the others go on."""
    found: dict[str, str] = {}
    for name, task in tasks.items():
        try:
            found[name] = images.content_hash([sample for sample in samples if sample.category in task.tests])
        except BenchError as refusal:
            if len(tasks) == 1:
                raise
            refused[name] = str(refusal)
            _log.warning("%s is left out: %s", name, refusal)
    if not found:
        raise BenchError(f"None of the categories can be read: {', '.join(tasks)}. The lines above say why.")
    return found


def _place(run: Run, category: str) -> tuple[Any, ...]:
    """What a failed record and the job that repeats it share: all but files, which may have been mended."""
    key = replace(run, file_hashes={}).key("")
    return (run.dataset, run.protocol, run.k, run.seed, run.name, run.is_released_checkpoint, key, category)


def _done(store: Store, job: Job, kind: str, *, iterative: bool) -> list[Record]:
    """The records of the job if all of them stand in the store unfailed; else none."""
    asked: tuple[Selection, ...] = ("last", "oracle") if job.selection == "both" else (job.selection,)
    found = []
    for selection in asked if iterative else ("last",):
        for category in job.task.tests:
            record = store.get(job.run, job.data_digest, category, selection)
            if record is None or record.failure or not _as_asked(record, job, kind):
                return []
            found.append(record)
    title, swept = job.run.title, job.run.sweep_keys  # as this call names it
    return [replace(record, run=replace(record.run, title=title, sweep_keys=swept)) for record in found]


def _to_time(store: Store, job: Job) -> Job:
    """The job as one that times everything: of the model that stands in the store, where one does."""
    job = replace(job, full_timing=True)
    category = next(iter(job.task.tests))
    record = store.get(job.run, job.data_digest, category, "last")
    if len(job.task.tests) > 1 or record is None or record.failure or not record.artifacts.get("model"):
        return job
    return replace(
        job,
        existing_record=record,
        saved_model=store.path(job.run, job.data_digest, category, "last").with_suffix(".safetensors"),
    )


def _as_asked(record: Record, job: Job, kind: str) -> bool:
    """Whether all that the job would store stands beside the record."""
    if record.artifacts.get("maps") != job.maps:
        return False
    if record.selection == "oracle":
        return record.eval_every == job.eval_every
    if job.full_timing and "network" not in record.latency:
        return False
    if job.keep_model and not record.artifacts.get("model"):
        return False
    return not job.time or (bool(record.latency) and _same_clock(record, job, kind))


def _same_clock(record: Record, job: Job, kind: str) -> bool:
    """Whether the latency was measured where the job would measure it: on such a device, with as many threads."""
    on_gpu = "cuda" in record.environment
    if kind == "cuda" or on_gpu:
        return kind == "cuda" and on_gpu
    return record.environment.get("threads") == (job.threads or environment.threads())


def _disk(job: Job) -> int:
    """Estimated bytes of the answers: maps, packed masks and four cases of pictures a category."""
    height, width = Preprocessing(**job.run.preprocessing).size
    pixels, count = height * width, sum(len(tests) for tests in job.task.tests.values())
    both = 2 if job.selection == "both" else 1
    return both * count * pixels * MAP_BYTES[job.maps] + count * pixels // 8 + len(job.task.tests) * 4 * 3 * pixels


def _plain(settings: Any) -> dict[str, Any]:
    """A method's Settings as JSON gives them back, so that a record equals itself after a round trip."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}
