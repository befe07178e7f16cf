"""A job is one fit with all that it needs, an outcome is what the store keeps of it.

`work` is the whole way from a job to its outcomes, wherever it runs; a crash becomes outcomes that say so. `local` does
jobs in this process, `bench.process` in a child, `bench.cluster` on many machines.
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

from bench import machine, registry, timing
from bench.dataset import Sample
from bench.errors import BenchError
from bench.images import FileImages, read
from bench.method import Method, Precision, Preprocessing, Setup
from bench.protocol import Task
from bench.record import Answers, Maps, Record, Run, Selection
from bench.runner import Answer, Fit, Rule, cases
from bench.settings import resolve
from bench.timing import Clock

Watch = Callable[[str, str, int, int, float | None], None]
"""Called as `watch(what, phase, done, total, loss)` while a job runs."""

TIMED = 8
"""Test images that a measurement of time takes in turn."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fit, resolved: it can be sent to another process, and what it answers depends on nothing else.

    Attributes:
        run, task, data: what is asked, on which samples, with which digest.
        rule, every, batch, maps, keep_model, time: as in `bench.config.Options`.
        device, threads: where and how wide. weights, cache: folders.
        checkpoint: the file that the fitted method is read from; None where it is trained here.
        thorough: time everything, as `bench time`, not only the latency of one image.
        kept, model: a record whose stored model is only to be timed, and that model's file; None where one is fitted.
        origin, command: told in the record. warnings: what was said of the data set.
    """

    run: Run
    task: Task
    data: str
    rule: Rule
    every: int
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
    thorough: bool = False
    kept: Record | None = None
    model: Path | None = None

    @property
    def what(self) -> str:
        """What a person calls it: "AMI-Net bottle, seed 0"."""
        k = f" k={self.run.k}" if self.run.k else ""
        over = f", {self.run.over}" if self.run.over else ""
        return f"{self.run.title} {self.task.name}{k}, seed {self.run.seed}{over}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record and what lies beside it: raw answers, pictures by name, the fitted method as safetensors."""

    record: Record
    answers: Answers | None = None
    views: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    model: bytes | None = None


Done = tuple[Job, Sequence[Outcome]]
"""What every executor yields: a job, and its outcomes."""


def local(jobs: Iterable[Job], watch: Watch) -> Iterator[Done]:
    """The outcomes of each job, one job after the other, in this process."""
    for job in jobs:
        yield job, work(job, watch)


def work(job: Job, watch: Watch) -> list[Outcome]:
    """Fits and judges; an outcome a category and selection. What goes wrong becomes failed records, never a crash."""
    started = datetime.now(UTC)
    with heard() as warnings:
        try:
            blank = _blank(job, started)
            outcomes = [_timed(job, job.kept, job.model)] if job.kept and job.model else _do(job, blank, watch)
            said = [*job.warnings, *warnings]
            outcomes = [replace(outcome, record=replace(outcome.record, warnings=said)) for outcome in outcomes]
            for outcome in outcomes:
                outcome.record.to_json()  # what can't be written is this run's failure, and told by its field
                spent = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in outcome.record.seconds.items())
                _log.info("%s: %s", job.what, spent)
        except (Exception, SystemExit) as error:  # noqa: BLE001  one run must not take the others along
            lines = traceback.format_exception(error, limit=-3)
            reason = str(error) if isinstance(error, BenchError) else "".join(lines).strip()
            return failed(job, reason, warnings, started)
    return outcomes


def failed(job: Job, reason: str, warnings: Sequence[str] = (), started: datetime | None = None) -> list[Outcome]:
    """The outcomes of a job that came to nothing: a record a category, with the reason."""
    blank = _blank(job, started or datetime.now(UTC))
    selection: Selection = "oracle" if job.rule == "oracle" else "last"
    record = replace(blank, failure=reason, selection=selection, warnings=[*job.warnings, *warnings])
    return [Outcome(replace(record, category=category)) for category in job.task.tests]


def _blank(job: Job, started: datetime) -> Record:
    """What is known of a job's records before it is done."""
    return Record(
        run=job.run,
        category=job.task.name,
        data=job.data,
        train=[] if job.checkpoint else [_told(sample) for sample in job.task.train],
        origin=job.origin,
        command=job.command,
        commit=machine.commit(),
        started=started.isoformat(timespec="seconds"),
    )


def _do(job: Job, blank: Record, watch: Watch) -> list[Outcome]:
    module, setup, make = made(job)
    device, preparation = setup.device, Preprocessing(**job.run.preparation)

    def load(samples: Sequence[Sample]) -> FileImages:
        return FileImages(samples, preparation)

    machine.reset_peak(device)
    fit = Fit(
        job.task,
        make,
        load,
        device,
        rule=job.rule,
        every=job.every,
        batch=job.batch,
        maps=job.maps,
        calibrate=job.run.calibrate,
        resolution=job.run.resolution,
    )
    trained = fit.answers(lambda done, total, loss: watch(job.what, "fit", done, total, loss))
    answers = list(fit.asked() if job.checkpoint else trained)
    shared = replace(
        blank,
        losses=fit.losses,
        memory=machine.peak_memory(device),
        facts=fit.method.facts(),
        machine=machine.describe(device),
        source=source(module),
    )
    model = None
    if job.keep_model:
        state = fit.method.state().items()
        model = save({name: value.detach().cpu().clone().contiguous() for name, value in state})
    outcomes = []
    for done, answer in enumerate(answers):
        watch(job.what, "judge", done, len(answers), None)
        outcomes.append(_judged(job, shared, fit, answer, model))
    return outcomes


def made(job: Job) -> tuple[ModuleType, Setup, Callable[[], Method]]:
    """The method's file, what it is given, and how to make it; threads and seeds are set."""
    if job.threads:
        torch.set_num_threads(job.threads)
    seed = machine.seed_of(job.run.seed, job.task.name)
    machine.seed_everything(seed)
    module = registry.load("methods", job.run.method)
    precision: Precision = job.run.precision  # type: ignore[assignment]  # the config has checked it
    size, device = Preprocessing(**job.run.preparation).size, machine.device(job.device)
    if machine.emulates(device, precision):
        _log.warning("This processor only emulates %s, which is far slower than float32.", precision)
    setup = Setup(size, device, seed, job.weights, job.cache / "features", precision, job.run.compile)
    settings, _ = resolve(module.Settings, {key: (value, "") for key, value in job.run.settings.items()}, job.run.name)
    kind: type[Method] = module.METHOD
    return module, setup, lambda: _released(kind, job, settings, setup) if job.checkpoint else kind(settings, setup)


def _timed(job: Job, kept: Record, model: Path) -> Outcome:
    """The record with all times of its stored model."""
    _, setup, make = made(job)
    method = make()
    method.restore(load_file(model))
    images = FileImages(job.task.tests[kept.category], Preprocessing(**job.run.preparation))
    with torch.no_grad():
        return Outcome(replace(kept, latency=_latency(job, method, images, setup.device)))


def _released(kind: type[Method], job: Job, settings: Any, setup: Setup) -> Method:
    path = job.checkpoint or Path()
    if not path.is_file():
        raise BenchError(f"--checkpoint holds one {kind.checkpoint} a category; {path} is not there. Fetch it.")
    return kind.from_checkpoint(path, settings, setup)


def _judged(job: Job, shared: Record, fit: Fit, answer: Answer, model: bytes | None) -> Outcome:
    clock = Clock(torch.device("cpu"))
    with clock("judge"):
        found = fit.judge(answer)
    last = answer.selection == "last"
    threshold, pixel_threshold = answer.thresholds or (None, None)
    shown = cases(answer.answers)
    record = replace(
        shared,
        category=answer.category,
        selection=answer.selection,
        every=0 if last else job.every,
        epoch=answer.epoch,
        metrics=found.values,
        missing=found.missing,
        threshold=threshold,
        pixel_threshold=pixel_threshold,
        error=found.error,
        curve=fit.curves[answer.category],
        seconds=({} if job.checkpoint else {"fit": fit.seconds}) | {"predict": answer.seconds} | clock.seconds,
        tests=[_told(sample) for sample in fit.tests[answer.category].samples],
        held=[_told(sample) for sample in job.task.held.get(answer.category, ())],
        stored={"views": {case: answer.answers.files[index] for case, index in shown.items()} if last else {}},
    )
    if not last:  # the method has gone on since that epoch: no picture or latency of it can be had
        return Outcome(record, answer.answers)
    with torch.no_grad():
        record, views = _beside(job, record, fit, shown)
    return Outcome(record, answer.answers, views, model)


def _beside(job: Job, record: Record, fit: Fit, shown: dict[str, int]) -> tuple[Record, dict[str, NDArray[np.uint8]]]:
    """The latency in the record, and the pictures; a method that fails at these is told of, and keeps its numbers."""
    tests, views = fit.tests[record.category], dict[str, NDArray[np.uint8]]()
    try:
        picked = torch.cat(list(tests.batches(1, torch.tensor(list(shown.values()))))).to(fit.device)
        views = _views(fit.method, picked, list(shown))
        if job.time:
            record = replace(record, latency=_latency(job, fit.method, tests, fit.device))
    except Exception as error:  # noqa: BLE001  the metrics stand whatever happens here
        _log.warning("%s: no pictures or no latency of it: %s: %s", job.what, type(error).__name__, error)
    return record, views


def _latency(job: Job, method: Method, tests: FileImages, device: torch.device) -> dict[str, Any]:
    """As far as the job asks for it, on test images from all over the set."""
    some = torch.linspace(0, len(tests) - 1, min(TIMED, len(tests))).round().int()
    if not job.thorough:
        return dict(timing.latency(method, torch.cat(list(tests.batches(TIMED, some))).to(device)))
    reads = [partial(read, tests.samples[i], tests.preparation) for i in some.tolist()]
    found = timing.thorough(method, reads, device)
    return found | {"machine": machine.describe(device)}


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


def source(module: ModuleType) -> str:
    """The hash of a plug-in's file."""
    return sha256(Path(module.__file__ or "").read_bytes()).hexdigest()


@contextmanager
def heard() -> Iterator[list[str]]:
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
