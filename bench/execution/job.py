"""A job: one fit with everything that it needs, and its outcomes for the store.

`run_job` fits and evaluates in any process; an exception becomes a failed record.
`run_locally` runs jobs in this process, `bench.execution.subprocess_executor` in a child process, and
`bench.execution.ray_executor` on many machines.
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
from bench.config.options import ComputeOptions, EvaluationOptions, ExecutionOptions
from bench.config.settings import resolve
from bench.data.data_report import image_sizes
from bench.data.images import FileImages, read
from bench.data.protocol import Task
from bench.data.value_range import NARROW, stored_value_range, value_range_warnings, with_value_range
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation import timing
from bench.evaluation.timing import Clock
from bench.execution.fit import CategoryPrediction, Fit, FitResult, representative_images
from bench.method import Method, Preprocessing, Setup
from bench.record import Predictions, Record, Run, Selection

ProgressCallback = Callable[[str, str, int, int, float | None], None]
"""Called as `progress(label, phase, done, total, loss)` while a job runs."""

TIMING_IMAGES = 8
"""Number of test images that a timing measurement cycles through."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fit, fully resolved: it can be sent to another process, and its numbers depend on nothing else.

    Attributes:
        run, task, data_digest: what is run, on which samples, with which hash of their files.
        evaluation, compute, execution: the options of the plan.
        weights, cache: folders.
        origin, command: stored in the record.
        warnings: about the data set; stored in the record.
        checkpoint: file of the fitted method; None if it is trained here.
        full_timing: time everything, as `bench time`, not only the latency of one image.
        existing_record, saved_model: a record whose stored model is only timed, and that model's file; None if a method
            is fitted.
    """

    run: Run
    task: Task
    data_digest: str
    evaluation: EvaluationOptions
    compute: ComputeOptions
    execution: ExecutionOptions
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
        """Return the name of the job for people: "AMI-Net bottle, seed 0"."""
        return self.run.label(self.task.name)

    @property
    def preprocessing(self) -> Preprocessing:
        """Return how files become inputs."""
        return Preprocessing(**self.run.preprocessing)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record and its other files: predictions, pictures by name, the fitted method as safetensors."""

    record: Record
    predictions: Predictions | None = None
    views: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    model: bytes | None = None


JobResult = tuple[Job, Sequence[Outcome]]
"""What every executor yields: a job and its outcomes."""


def run_locally(jobs: Iterable[Job], progress: ProgressCallback) -> Iterator[JobResult]:
    """Yield the outcomes of each job, one job after the other, in this process."""
    for job in jobs:
        yield job, run_job(job, progress)


def run_job(job: Job, progress: ProgressCallback) -> list[Outcome]:
    """Fit and evaluate: return one outcome per category and selection. An exception becomes failed records."""
    started = datetime.now(UTC)
    with capture_warnings() as warnings:
        try:
            if job.existing_record and job.saved_model:
                outcomes = [_time_saved_model(job, job.existing_record, job.saved_model)]
            else:
                outcomes = _fit_and_evaluate(job, _new_record(job, started), progress)
            texts = [*job.warnings, *warnings]
            outcomes = [replace(outcome, record=replace(outcome.record, warnings=texts)) for outcome in outcomes]
            for outcome in outcomes:
                outcome.record.to_json()  # a value that JSON cannot express is a failure of this job
                seconds = ", ".join(f"{phase} {value:.2f} s" for phase, value in outcome.record.seconds.items())
                _log.info("%s: %s", job.label, seconds)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the other jobs must run
            lines = traceback.format_exception(error, limit=-3)
            reason = str(error) if isinstance(error, BenchError) else "".join(lines).strip()
            return failure_outcomes(job, reason, warnings, started)
    return outcomes


def failure_outcomes(
    job: Job, reason: str, warnings: Sequence[str] = (), started: datetime | None = None
) -> list[Outcome]:
    """Return the outcomes of a job that failed: one record per category, with the reason."""
    record = _new_record(job, started or datetime.now(UTC))
    selection: Selection = "oracle" if job.evaluation.selection == "oracle" else "last"
    record = replace(record, failure=reason, selection=selection, warnings=[*job.warnings, *warnings])
    return [Outcome(replace(record, category=category)) for category in job.task.tests]


def build_method(job: Job) -> tuple[ModuleType, Method]:
    """Return the method's module and the method, not fitted unless from a checkpoint. Sets threads and seeds."""
    if job.compute.threads:
        torch.set_num_threads(job.compute.threads)
    seed = environment.derive_seed(job.run.seed, job.task.name)
    environment.seed_everything(seed)
    module = registry.load("methods", job.run.method)
    precision = job.compute.precision
    device = environment.device(job.compute.device)
    if environment.emulates(device, precision):
        _log.warning("This processor emulates %s, which is far slower than float32.", precision)
    setup = Setup(
        job.preprocessing.size, device, seed, job.weights, job.cache / "features", precision, job.compute.compile
    )
    settings, _ = resolve(module.Settings, {key: (value, "") for key, value in job.run.settings.items()}, job.run.name)
    kind: type[Method] = module.METHOD
    if not job.checkpoint:
        return module, kind(settings, setup)
    if not job.checkpoint.is_file():
        raise BenchError(f"--checkpoint must contain {kind.checkpoint} per category; {job.checkpoint} does not exist.")
    return module, kind.from_checkpoint(job.checkpoint, settings, setup)


def source_hash(module: ModuleType) -> str:
    """Return the hash of a plug-in's file."""
    return sha256(Path(module.__file__ or "").read_bytes()).hexdigest()


@contextmanager
def capture_warnings() -> Iterator[list[str]]:
    """Collect the warnings that bench and its plug-ins log inside the block."""
    messages: list[str] = []

    class ListHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = ListHandler(logging.WARNING)
    logger = logging.getLogger("bench")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def _new_record(job: Job, started: datetime) -> Record:
    """Return the fields of a job's records that are known before it runs."""
    others = [] if job.checkpoint else [sample.id for samples in job.task.others.values() for sample in samples]
    return Record(
        run=job.run,
        category=job.task.name,
        data_digest=job.data_digest,
        pretrain_files=others,
        train_files=[] if job.checkpoint else [sample.id for sample in job.task.train],
        origin=job.origin,
        command=job.command,
        commit=environment.commit(),
        started=started.isoformat(timespec="microseconds"),
    )


def _fit_and_evaluate(job: Job, record: Record, progress: ProgressCallback) -> list[Outcome]:
    module, method = build_method(job)
    preprocessing, data_report = _describe_training_images(job)
    record = replace(record, data_report=data_report)

    def load(samples: Sequence[Sample]) -> FileImages:
        return FileImages(samples, preprocessing)

    device = method.setup.device
    environment.reset_peak(device)
    fit = Fit(job.task, method, load, job.evaluation, job.compute)
    if job.checkpoint:
        result = FitResult(metrics_by_epoch={category: [] for category in job.task.tests})
    else:
        result = fit.fit(lambda phase, done, total, loss: progress(job.label, phase, done, total, loss))
        levels = fit.train.used_levels()
        if levels and "value_range" not in data_report and levels[1] - levels[0] < NARROW * 255:
            _log.warning("%s: the training images use the levels %d to %d of 0 to 255 only, and are not "
                         "stretched.", job.task.name, *levels)  # fmt: skip
    predictions = list(result.oracle)
    if job.evaluation.selection != "oracle" or not method.iterative:  # without epochs there is no best epoch
        predictions = [*fit.predict_tests(epoch=result.epoch), *predictions]
    record = replace(
        record,
        losses=result.losses,
        memory=environment.peak_memory(device),
        method_info=method.info(),
        environment=environment.describe(device),
        source_hash=source_hash(module),
    )
    model = save(method.state()) if job.execution.keep_model else None
    outcomes = []
    for done, prediction in enumerate(predictions):
        progress(job.label, "evaluate", done, len(predictions), None)
        outcome = _evaluate(job, record, fit, result, prediction)
        outcomes.append(replace(outcome, model=model) if outcome.record.selection == "last" else outcome)
    return outcomes


def _describe_category(fit: Fit, prediction: CategoryPrediction) -> dict[str, Any]:
    """Return the report about the masks of a category, and the distribution of the scores of its good test images."""
    predictions = prediction.predictions
    scores = predictions.scores[~predictions.is_anomalous]
    quantiles = dict(zip(("min", "p25", "median", "p75", "p95", "max"), (0, 0.25, 0.5, 0.75, 0.95, 1), strict=True))
    summary = {name: float(np.quantile(scores, level)) for name, level in quantiles.items()} if scores.size else {}
    return {"masks": fit.mask_reports[prediction.category], "good_scores": {"images": int(scores.size), **summary}}


def _describe_training_images(job: Job) -> tuple[Preprocessing, dict[str, Any]]:
    """Return the preprocessing with the range of the training images' values, and the start of the data report."""
    train = job.task.train
    preprocessing, values = with_value_range(job.preprocessing, train)
    report: dict[str, Any] = {"image_sizes": image_sizes(train, preprocessing)}
    if values:
        report["value_range"] = values.to_dict()
        is_given = job.preprocessing.black is not None
        for warning in value_range_warnings(job.task.name, values, len(train), is_given=is_given):
            _log.warning("%s", warning)
    return preprocessing, report


def _evaluate(job: Job, record: Record, fit: Fit, result: FitResult, prediction: CategoryPrediction) -> Outcome:
    """Return the outcome of one category: metrics, and for the last epoch pictures and latency."""
    clock = Clock(torch.device("cpu"))
    with clock("evaluate"):
        evaluation = fit.evaluate(prediction)
    is_last = prediction.selection == "last"
    threshold, pixel_threshold = prediction.thresholds or (None, None)
    predictions, category = prediction.predictions, prediction.category
    shown = representative_images(predictions)
    record = replace(
        record,
        category=category,
        selection=prediction.selection,
        eval_every=0 if is_last else job.evaluation.eval_every,
        epoch=prediction.epoch,
        metrics=evaluation.values,
        undefined_metrics=evaluation.undefined,
        threshold=threshold,
        pixel_threshold=pixel_threshold,
        metric_error_bound=evaluation.error_bound,
        metrics_by_epoch=result.metrics_by_epoch[category],
        seconds=result.seconds | {"predict": prediction.seconds} | clock.seconds,
        test_files=list(predictions.files),
        calibration_files=[sample.id for sample in job.task.calibration.get(category, ())],
        data_report=record.data_report | _describe_category(fit, prediction),
        artifacts={"views": {name: predictions.files[index] for name, index in shown.items()} if is_last else {}},
    )
    if not is_last:  # the fitted method is that of the last epoch, so it gives no pictures or times of this one
        return Outcome(record, predictions)
    with torch.no_grad():
        record, views = _add_latency_and_views(job, record, fit, shown)
    return Outcome(record, predictions, views)


def _add_latency_and_views(
    job: Job, record: Record, fit: Fit, shown: dict[str, int]
) -> tuple[Record, dict[str, NDArray[np.uint8]]]:
    """Return the record with its latency, and the pictures. If the method fails here, it keeps its metrics."""
    tests, method, views = fit.tests[record.category], fit.method, dict[str, NDArray[np.uint8]]()
    try:
        images = torch.cat(list(tests.batches(1, torch.tensor(list(shown.values()))))).to(method.setup.device)
        views = _views(method, images, list(shown))
        if job.evaluation.time:
            record = replace(record, latency=_latency(job, method, tests))
    except Exception as error:  # noqa: BLE001  the metrics are valid whatever happens here
        _log.warning("%s: no pictures or no latency: %s: %s", job.label, type(error).__name__, error)
    return record, views


def _time_saved_model(job: Job, record: Record, model: Path) -> Outcome:
    """Return the record with all times of its stored model."""
    _, method = build_method(job)
    method.restore(load_file(model))
    preprocessing = stored_value_range(job.preprocessing, record.data_report)
    images = FileImages(job.task.tests[record.category], preprocessing)
    with torch.no_grad():
        return Outcome(replace(record, latency=_latency(job, method, images)))


def _latency(job: Job, method: Method, tests: FileImages) -> dict[str, Any]:
    """Return the latency, and all other times if the job asks for them, on images spread over the test set."""
    device = method.setup.device
    indices = torch.linspace(0, len(tests) - 1, min(TIMING_IMAGES, len(tests))).round().int()
    if not job.full_timing:
        return dict(timing.latency(method, torch.cat(list(tests.batches(TIMING_IMAGES, indices))).to(device)))
    reads = [partial(read, tests.samples[index], tests.preprocessing) for index in indices.tolist()]
    return timing.profile(method, reads, device) | {"environment": environment.describe(device)}


def _views(method: Method, images: Tensor, names: list[str]) -> dict[str, NDArray[np.uint8]]:
    """Return the images and what the method explains about them as 8-bit pictures; a map is scaled to its range."""
    views = {}
    for kind, pictures in {"image": images, **method.explain(images)}.items():
        for name, picture in zip(names, pictures.detach().float().cpu(), strict=True):
            low, high = (0.0, 1.0) if picture.ndim == 3 else (float(picture.min()), float(picture.max()))
            pixels = ((picture - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().byte().numpy()
            views[f"{name}.{kind}"] = pixels.transpose(1, 2, 0) if picture.ndim == 3 else pixels
    return views
