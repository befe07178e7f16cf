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
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from bench import environment, registry
from bench.config.options import ComputeOptions, EvaluationOptions, ExecutionOptions
from bench.config.settings import resolve
from bench.data.data_report import image_sizes, size_warnings
from bench.data.images import FileImages
from bench.data.protocol import Task
from bench.data.value_range import NARROW, stored_value_range, value_range_warnings, with_value_range
from bench.dataset import Sample
from bench.errors import MAX_REASON, BenchError, error_text, shortened
from bench.evaluation.timing import Clock
from bench.execution.fit import Fit, representative_images
from bench.execution.fit_checkpoint import job_checkpoints
from bench.execution.fit_result import CategoryPrediction, FitResult
from bench.execution.pictures_and_times import check_pictures, measure_times, to_8_bit
from bench.method import Method, Preprocessing, Setup
from bench.process_state import restored_state
from bench.record import Predictions, Record, Run, Selection
from bench.store import read_verified

ProgressCallback = Callable[[str, str, int, int, float | None], None]
"""Called as `progress(label, phase, done, total, loss)` while a job runs."""

OutcomesCallback = Callable[[Sequence["Outcome"]], None]
"""Called with the outcomes when the metrics are computed, but no pictures and times: a kill then loses only these."""

MAX_WARNINGS = 100
"""Largest number of warnings in a record."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fit, fully resolved: it can be sent to another process, and its metrics depend on nothing else.

    Attributes:
        run, task, data_hash: what is run, on which samples, with which hash of their files.
        evaluation, compute, execution: the options of the plan.
        weights, cache: folders of weights and of cached files.
        runs: folder of the store, for checkpoints inside the fit.
        origin, command: stored in the record.
        warnings: warnings about the dataset; stored in the record.
        checkpoint: file of the fitted method; None if it is trained here.
        full_timing: time everything, as `bench time`, not only the latency of one image.
        existing_record, saved_model: a record whose stored model is only timed, and that model's file; None if a method
            is fitted.
    """

    run: Run
    task: Task
    data_hash: str
    evaluation: EvaluationOptions
    compute: ComputeOptions
    execution: ExecutionOptions
    weights: Path | None
    cache: Path
    runs: Path
    origin: dict[str, str]
    command: str
    warnings: tuple[str, ...] = ()
    checkpoint: Path | None = None
    full_timing: bool = False
    existing_record: Record | None = None
    saved_model: Path | None = None

    @property
    def label(self) -> str:
        """Return the readable name of the job: "AMI-Net bottle, seed 0"."""
        return self.run.label(self.task.name)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the images."""
        return Preprocessing(**self.run.preprocessing)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record and its other files: predictions, pictures by name, the fitted method as safetensors."""

    record: Record
    predictions: Predictions | None = None
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    model: bytes | None = None


JobResult = tuple[Job, Sequence[Outcome]]
"""What every executor yields: a job and its outcomes."""


def run_locally(jobs: Iterable[Job], progress: ProgressCallback) -> Iterator[JobResult]:
    """Yield the outcomes of each job, one job after the other, in this process."""
    for job in jobs:
        yield job, run_job(job, progress)


def run_job(job: Job, progress: ProgressCallback, keep: OutcomesCallback = lambda _: None) -> list[Outcome]:
    """Fit and evaluate: return one outcome per category and selection. An exception becomes failed records."""
    started = datetime.now(UTC)
    with capture_warnings() as warnings, restored_state(job.run.title, job.compute.threads):
        try:
            if job.existing_record and job.saved_model:
                record = job.existing_record
                outcomes = [_time_saved_model(job, record, job.saved_model)]
                job = replace(job, warnings=tuple(dict.fromkeys((*record.warnings, *job.warnings))))
            else:
                record = _new_record(job, started)
                outcomes = _fit_and_evaluate(
                    job, record, progress, lambda outcomes: keep(_with_warnings(outcomes, job, warnings))
                )
            for outcome in outcomes:
                Record.from_json(outcome.record.to_json())  # a value that cannot be stored is a failure of this job
                seconds = ", ".join(f"{phase} {value:.2f} s" for phase, value in outcome.record.seconds.items())
                _log.info("%s: %s", job.label, seconds)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  the other jobs must run
            lines = traceback.format_exception(error, limit=-3)
            reason = error_text(error) if isinstance(error, BenchError) else "".join(lines).strip()
            outcomes = failure_outcomes(job, reason, started)
    return _with_warnings(outcomes, job, warnings)


def unfinished_outcomes(job: Job, outcomes: Sequence[Outcome], reason: str) -> list[Outcome]:
    """Return the outcomes that a killed job had kept, with the reason why they have no pictures and times."""
    warning = shortened(f"There are no pictures and no latency. {reason}")
    return [
        replace(
            outcome,
            record=replace(
                outcome.record,
                latency={"error": "the measurement was stopped; see the warnings"} if job.evaluation.time else {},
                warnings=[*outcome.record.warnings, warning],
            ),
        )
        if outcome.record.selection == "last"  # others never have pictures and times
        else outcome
        for outcome in outcomes
    ]


def _with_warnings(outcomes: Sequence[Outcome], job: Job, warnings: Sequence[str]) -> list[Outcome]:
    texts = [*job.warnings, *warnings]
    return [replace(outcome, record=replace(outcome.record, warnings=texts)) for outcome in outcomes]


def failure_outcomes(job: Job, reason: str, started: datetime | None = None) -> list[Outcome]:
    """Return the outcomes of a job that failed: one record per category, with the reason."""
    record = _new_record(job, started or datetime.now(UTC))
    selection: Selection = "oracle" if job.evaluation.selection == "oracle" else "last"
    record = replace(record, failure=shortened(reason), selection=selection, warnings=list(job.warnings))
    return [Outcome(replace(record, category=category)) for category in job.task.tests]


def build_method(job: Job) -> tuple[ModuleType, Method]:
    """Return the method's module and the method, not fitted unless from a checkpoint. Sets the seeds."""
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
    method_class: type[Method] = module.METHOD
    if not job.checkpoint:
        return module, method_class(settings, setup)
    if not job.checkpoint.is_file():
        raise BenchError(
            f"--checkpoint must contain {method_class.checkpoint} per category; {job.checkpoint} does not exist."
        )
    return module, method_class.from_checkpoint(job.checkpoint, settings, setup)


def source_hash(module: ModuleType) -> str:
    """Return the hash of a plug-in's file."""
    return sha256(Path(module.__file__ or "").read_bytes()).hexdigest()


@contextmanager
def capture_warnings() -> Iterator[list[str]]:
    """Collect the warnings that bench and its plug-ins log inside the block: the first ones and the last one."""
    messages: list[str] = []

    class ListHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages[MAX_WARNINGS - 1 :] = []  # the newest one replaces the last
            messages.append(shortened(record.getMessage()))

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
        data_hash=job.data_hash,
        pretrain_files=others,
        train_files=[] if job.checkpoint else [sample.id for sample in job.task.train],
        origin=job.origin,
        command=job.command,
        commit=environment.commit(),
        started=started.isoformat(timespec="microseconds"),
    )


def _fit_and_evaluate(job: Job, record: Record, progress: ProgressCallback, keep: OutcomesCallback) -> list[Outcome]:
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
        result = fit.fit(
            lambda phase, done, total, loss: progress(job.label, phase, done, total, loss),
            job_checkpoints(job, module, device),
        )
        levels = fit.train.used_levels()
        if levels and "value_range" not in data_report and levels[1] - levels[0] < NARROW * 255:
            _log.warning("%s: the training images use the levels %d to %d of 0 to 255 only, and are not "
                         "stretched.", job.task.name, *levels)  # fmt: skip
    predictions = list(result.oracle)
    if job.evaluation.selection != "oracle":
        progress(job.label, "predict", 0, 1, None)
        predictions = [*fit.predict_tests(epoch=result.epoch), *predictions]
    record = replace(
        record,
        losses=result.losses,
        resumed_after=result.resumed_after,
        memory=environment.peak_memory(device),
        method_info=method.info(),
        environment=environment.describe(device),
        source_hash=source_hash(module),
    )
    model = save(method.state_dict()) if job.execution.keep_model else None
    outcomes = []
    for done, prediction in enumerate(predictions):
        progress(job.label, "evaluate", done, len(predictions), None)
        outcome = _evaluate(job, record, fit, result, prediction)
        outcomes.append(replace(outcome, model=model) if outcome.record.selection == "last" else outcome)
    keep(outcomes)
    progress(job.label, "explain", 0, 1, None)
    # The fitted method is that of the last epoch, so it gives no pictures or times of another one.
    return [
        _add_pictures_and_times(job, outcome, fit) if outcome.record.selection == "last" else outcome
        for outcome in outcomes
    ]


def _describe_category(fit: Fit, prediction: CategoryPrediction) -> dict[str, Any]:
    """Return the report about the masks of a category, and the distribution of the scores of its good test images."""
    predictions = prediction.predictions
    scores = predictions.scores[~predictions.is_anomalous]
    quantiles = dict(zip(("min", "p25", "median", "p75", "p95", "max"), (0, 0.25, 0.5, 0.75, 0.95, 1), strict=True))
    summary = {name: float(np.quantile(scores, level)) for name, level in quantiles.items()} if scores.size else {}
    clipped = fit.clipped_images[prediction.category]
    return {
        "masks": fit.mask_reports[prediction.category],
        "good_scores": {"images": int(scores.size), **summary},
        **({"clipped_images": clipped} if clipped else {}),
    }


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
    tests = [sample for samples in job.task.tests.values() for sample in samples]
    for warning in size_warnings(job.task.name, tests, report["image_sizes"], preprocessing):
        _log.warning("%s", warning)
    return preprocessing, report


def _evaluate(job: Job, record: Record, fit: Fit, result: FitResult, prediction: CategoryPrediction) -> Outcome:
    """Return the metrics and predictions of one category, without pictures and times."""
    clock = Clock(torch.device("cpu"))
    with clock("evaluate"):
        evaluation = fit.evaluate(prediction)
    is_last = prediction.selection == "last"
    threshold, pixel_threshold = prediction.thresholds or (None, None)
    predictions, category = prediction.predictions, prediction.category
    picture_indices = representative_images(predictions)
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
        artifacts={
            "pictures": {name: predictions.files[index] for name, index in picture_indices.items()} if is_last else {}
        },
    )
    return Outcome(record, predictions)


def _add_pictures_and_times(job: Job, outcome: Outcome, fit: Fit) -> Outcome:
    """Return the outcome with the pictures and the latency. If the method fails here, it keeps its metrics."""
    assert outcome.predictions is not None  # it has metrics
    image_indices = representative_images(outcome.predictions)
    tests, method = fit.tests[outcome.record.category], fit.method
    indices, names = torch.tensor(list(image_indices.values())), list(image_indices)
    pictures: dict[str, NDArray[np.uint8]] = {}
    record = outcome.record
    with torch.no_grad():
        images = torch.cat(list(tests.batches(1, indices))).to(method.setup.device)  # (b, 3, h, w)
        pictures |= to_8_bit({"image": images}, names)
        with _logged_error(f"{job.label}: no pictures of explain"):
            explained = method.explain(images)
            check_pictures(explained, images)
            pictures |= to_8_bit(explained, names)
        if job.evaluation.time:
            record = replace(record, latency={"error": "the measurement failed; see the warnings"})
            with _logged_error(f"{job.label}: no latency"):
                record = replace(record, latency=measure_times(method, tests, full=job.full_timing))
    return replace(outcome, record=record, pictures=pictures)


@contextmanager
def _logged_error(result: str) -> Iterator[None]:
    """Log any exception of the block as a warning that begins with the result that is missing."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  the metrics are valid whatever happens here
        _log.warning("%s: %s: %s", result, type(error).__name__, shortened(error_text(error), MAX_REASON))


def _time_saved_model(job: Job, record: Record, model: Path) -> Outcome:
    """Return the record with all times of its stored model."""
    _, method = build_method(job)
    method.load_state_dict(load(read_verified(model, record.artifacts.get("model_sha256"))))
    preprocessing = stored_value_range(job.preprocessing, record.data_report)
    images = FileImages(job.task.tests[record.category], preprocessing)
    with torch.no_grad():
        return Outcome(replace(record, latency=measure_times(method, images, full=job.full_timing)))
