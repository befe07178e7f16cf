"""A job is one fit with all that it needs, an outcome is what the store keeps of it.

`work` is the whole way from a job to its outcomes, wherever it runs; a crash becomes outcomes that say so. `local` does
jobs in this process, `bench.execution.subprocess_executor` in a child, `bench.execution.ray_executor` on many machines.
"""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from bench import environment, registry
from bench.config.settings import resolve
from bench.data.images import FileImages, read
from bench.data.protocol import Task
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation import timing
from bench.evaluation.timing import Clock
from bench.execution.fit import CategoryPrediction, Fit, SelectionRule, representative_images
from bench.method import Method, Precision, Preprocessing, Setup
from bench.record import Maps, Predictions, Record, Run, Selection

ProgressCallback = Callable[[str, str, int, int, float | None], None]
"""Called as `watch(what, phase, done, total, loss)` while a job runs."""

TIMING_IMAGES = 8
"""Test images that a measurement of time takes in turn."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fit, resolved: it can be sent to another process, and what it answers depends on nothing else.

    Attributes:
        run, task, data: what is asked, on which samples, with which digest.
        rule, every, batch, maps, keep_model, time: as in `bench.config.plan.Options`.
        device, threads: where and how wide. weights, cache: folders.
        checkpoint: the file that the fitted method is read from; None where it is trained here.
        thorough: time everything, as `bench time`, not only the latency of one image.
        kept, model: a record whose stored model is only to be timed, and that model's file; None where one is fitted.
        origin, command: told in the record. warnings: what was said of the data set.
    """

    run: Run
    task: Task
    data_digest: str
    selection: SelectionRule
    eval_every: int
    batch: int
    maps: Maps
    keep_model: bool
    time: bool
    device: str
    threads: int
    weights: Path | None
    cache: Path
    origin: dict[str, str]
    command: str
    warnings: tuple[str, ...] = ()
    checkpoint: Path | None = None
    full_timing: bool = False
    existing_record: Record | None = None
    saved_model: Path | None = None

    @property
    def label(self) -> str:
        """What a person calls it: "AMI-Net bottle, seed 0"."""
        k = f" k={self.run.k}" if self.run.k else ""
        over = f", {self.run.sweep_label}" if self.run.sweep_label else ""
        return f"{self.run.title} {self.task.name}{k}, seed {self.run.seed}{over}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record and what lies beside it: raw answers, pictures by name, the fitted method as safetensors."""

    record: Record
    predictions: Predictions | None = None
    views: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    model: bytes | None = None


JobResult = tuple[Job, Sequence[Outcome]]
"""What every executor yields: a job, and its outcomes."""


def run_locally(jobs: Iterable[Job], watch: ProgressCallback) -> Iterator[JobResult]:
    """The outcomes of each job, one job after the other, in this process."""
    for job in jobs:
        yield job, run_job(job, watch)


def run_job(job: Job, watch: ProgressCallback) -> list[Outcome]:
    """Fits and judges; an outcome a category and selection. What goes wrong becomes failed records, never a crash."""
    started = datetime.now(UTC)
    with capture_warnings() as warnings:
        try:
            blank = _blank(job, started)
            outcomes = (
                [_timed(job, job.existing_record, job.saved_model)]
                if job.existing_record and job.saved_model
                else _do(job, blank, watch)
            )
            said = [*job.warnings, *warnings]
            outcomes = [replace(outcome, record=replace(outcome.record, warnings=said)) for outcome in outcomes]
            for outcome in outcomes:
                outcome.record.to_json()  # what can't be written is this run's failure, and told by its field
                spent = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in outcome.record.seconds.items())
                _log.info("%s: %s", job.label, spent)
        except (Exception, SystemExit) as error:  # noqa: BLE001  one run must not take the others along
            lines = traceback.format_exception(error, limit=-3)
            reason = str(error) if isinstance(error, BenchError) else "".join(lines).strip()
            return failure_outcomes(job, reason, warnings, started)
    return outcomes


def failure_outcomes(
    job: Job, reason: str, warnings: Sequence[str] = (), started: datetime | None = None
) -> list[Outcome]:
    """The outcomes of a job that came to nothing: a record a category, with the reason."""
    blank = _blank(job, started or datetime.now(UTC))
    selection: Selection = "oracle" if job.selection == "oracle" else "last"
    record = replace(blank, failure=reason, selection=selection, warnings=[*job.warnings, *warnings])
    return [Outcome(replace(record, category=category)) for category in job.task.tests]


def _blank(job: Job, started: datetime) -> Record:
    """What is known of a job's records before it is done."""
    return Record(
        run=job.run,
        category=job.task.name,
        data_digest=job.data_digest,
        train_files=[] if job.checkpoint else [_told(sample) for sample in job.task.train],
        origin=job.origin,
        command=job.command,
        commit=environment.commit(),
        started=started.isoformat(timespec="seconds"),
    )


def _do(job: Job, blank: Record, watch: ProgressCallback) -> list[Outcome]:
    module, setup, make = build_method(job)
    device, preprocessing = setup.device, Preprocessing(**job.run.preprocessing)

    def load(samples: Sequence[Sample]) -> FileImages:
        return FileImages(samples, preprocessing)

    environment.reset_peak(device)
    fit = Fit(
        job.task,
        make,
        load,
        device,
        rule=job.selection,
        every=job.eval_every,
        batch=job.batch,
        maps=job.maps,
        calibrate=job.run.calibrate,
        resolution=job.run.resolution,
    )
    trained = fit.answers(lambda done, total, loss: watch(job.label, "fit", done, total, loss))
    answers = list(fit.asked() if job.checkpoint else trained)
    shared = replace(
        blank,
        losses=fit.losses,
        memory=environment.peak_memory(device),
        method_info=fit.method.info(),
        environment=environment.describe(device),
        source_hash=source_hash(module),
    )
    model = None
    if job.keep_model:
        state = fit.method.state().items()
        model = save({name: value.detach().cpu().clone().contiguous() for name, value in state})
    outcomes = []
    for done, answer in enumerate(answers):
        watch(job.label, "judge", done, len(answers), None)
        outcomes.append(_judged(job, shared, fit, answer, model))
    return outcomes


def build_method(job: Job) -> tuple[ModuleType, Setup, Callable[[], Method]]:
    """The method's file, what it is given, and how to make it; threads and seeds are set."""
    if job.threads:
        torch.set_num_threads(job.threads)
    seed = environment.derive_seed(job.run.seed, job.task.name)
    environment.seed_everything(seed)
    module = registry.load("methods", job.run.method)
    precision: Precision = job.run.precision  # type: ignore[assignment]  # the config has checked it
    size, device = Preprocessing(**job.run.preprocessing).size, environment.device(job.device)
    if environment.emulates(device, precision):
        _log.warning("This processor only emulates %s, which is far slower than float32.", precision)
    setup = Setup(size, device, seed, job.weights, job.cache / "features", precision, job.run.compile)
    settings, _ = resolve(module.Settings, {key: (value, "") for key, value in job.run.settings.items()}, job.run.name)
    kind: type[Method] = module.METHOD
    return module, setup, lambda: _released(kind, job, settings, setup) if job.checkpoint else kind(settings, setup)


def _timed(job: Job, kept: Record, model: Path) -> Outcome:
    """The record with all times of its stored model."""
    _, setup, make = build_method(job)
    method = make()
    method.restore(load_file(model))
    images = FileImages(job.task.tests[kept.category], Preprocessing(**job.run.preprocessing))
    with torch.no_grad():
        return Outcome(replace(kept, latency=_latency(job, method, images, setup.device)))


def _released(kind: type[Method], job: Job, settings: Any, setup: Setup) -> Method:
    path = job.checkpoint or Path()
    if not path.is_file():
        raise BenchError(f"--checkpoint holds one {kind.checkpoint} a category; {path} is not there. Fetch it.")
    return kind.from_checkpoint(path, settings, setup)


def _judged(job: Job, shared: Record, fit: Fit, answer: CategoryPrediction, model: bytes | None) -> Outcome:
    clock = Clock(torch.device("cpu"))
    with clock("judge"):
        found = fit.evaluate(answer)
    last = answer.selection == "last"
    threshold, pixel_threshold = answer.thresholds or (None, None)
    shown = representative_images(answer.predictions)
    record = replace(
        shared,
        category=answer.category,
        selection=answer.selection,
        eval_every=0 if last else job.eval_every,
        epoch=answer.epoch,
        metrics=found.values,
        undefined_metrics=found.undefined,
        threshold=threshold,
        pixel_threshold=pixel_threshold,
        metric_error_bound=found.error_bound,
        metrics_by_epoch=fit.curves[answer.category],
        seconds=({} if job.checkpoint else {"fit": fit.seconds}) | {"predict": answer.seconds} | clock.seconds,
        test_files=[_told(sample) for sample in fit.tests[answer.category].samples],
        calibration_files=[_told(sample) for sample in job.task.calibration.get(answer.category, ())],
        artifacts={"views": {case: answer.predictions.files[index] for case, index in shown.items()} if last else {}},
    )
    if not last:  # the method has gone on since that epoch: no picture or latency of it can be had
        return Outcome(record, answer.predictions)
    with torch.no_grad():
        record, views = _beside(job, record, fit, shown)
    return Outcome(record, answer.predictions, views, model)


def _beside(job: Job, record: Record, fit: Fit, shown: dict[str, int]) -> tuple[Record, dict[str, NDArray[np.uint8]]]:
    """The latency in the record, and the pictures; a method that fails at these is told of, and keeps its numbers."""
    tests, views = fit.tests[record.category], dict[str, NDArray[np.uint8]]()
    try:
        picked = torch.cat(list(tests.batches(1, torch.tensor(list(shown.values()))))).to(fit.device)
        views = _views(fit.method, picked, list(shown))
        if job.time:
            record = replace(record, latency=_latency(job, fit.method, tests, fit.device))
    except Exception as error:  # noqa: BLE001  the metrics stand whatever happens here
        _log.warning("%s: no pictures or no latency of it: %s: %s", job.label, type(error).__name__, error)
    return record, views


def _latency(job: Job, method: Method, tests: FileImages, device: torch.device) -> dict[str, Any]:
    """As far as the job asks for it, on test images from all over the set."""
    some = torch.linspace(0, len(tests) - 1, min(TIMING_IMAGES, len(tests))).round().int()
    if not job.full_timing:
        return dict(timing.latency(method, torch.cat(list(tests.batches(TIMING_IMAGES, some))).to(device)))
    reads = [partial(read, tests.samples[i], tests.preprocessing) for i in some.tolist()]
    found = timing.profile(method, reads, device)
    return found | {"machine": environment.describe(device)}


def _views(method: Method, images: Tensor, names: list[str]) -> dict[str, NDArray[np.uint8]]:
    """The chosen images and what the method explains of them, as 8-bit pictures; each map over its own range."""
    found = {}
    for name, picture in {"image": images, **method.explain(images)}.items():
        for case, one in zip(names, picture.detach().float().cpu(), strict=True):
            low, high = (0.0, 1.0) if one.ndim == 3 else (float(one.min()), float(one.max()))
            shown = ((one - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().byte().numpy()
            found[f"{case}.{name}"] = shown.transpose(1, 2, 0) if one.ndim == 3 else shown
    return found


def _told(sample: Sample) -> str:
    return f"{sample.category}/{sample.split}/{sample.defect}/{sample.image.name}"


def source_hash(module: ModuleType) -> str:
    """The hash of a plug-in's file."""
    return sha256(Path(module.__file__ or "").read_bytes()).hexdigest()


@contextmanager
def capture_warnings() -> Iterator[list[str]]:
    """What bench and its plug-ins warn of inside the block."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear = Ear(logging.WARNING)
    logger = logging.getLogger("bench")
    logger.addHandler(ear)
    try:
        yield said
    finally:
        logger.removeHandler(ear)
