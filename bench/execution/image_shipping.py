"""The image files of a job on another machine: read there at the same paths, or sent there and written to its cache."""

import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from bench.dataset import Sample
from bench.errors import BenchError
from bench.execution.job import Job


def job_files(job: Job) -> set[Path]:
    """Return the images and masks that a job reads."""
    task = job.task
    groups = (*task.tests.values(), *task.calibration.values(), *task.others.values(), task.train)
    return {path for samples in groups for sample in samples for path in (sample.image, *sample.masks)}


def write_images(job: Job, files: Mapping[str, bytes]) -> Job:
    """Return the job with files of this machine, written once for all jobs on the same data.

    Args:
        job: with the paths of the machine that made it.
        files: content of each file by such a path; a file that is written already is not needed.
    """
    root = job.cache / "shipped" / job.data_digest

    def local_path(path: Path) -> Path:
        parent = sha256(str(path.parent).encode(errors="surrogateescape")).hexdigest()[:12]
        target = root / parent / path.parent.name / path.name  # the file keeps its name, which its Sample.id contains
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.write_bytes(files[str(path)])
            temporary.replace(target)
        return target

    def move(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(
            replace(sample, image=local_path(sample.image), masks=tuple(map(local_path, sample.masks)))
            for sample in samples
        )

    def move_all(groups: dict[str, tuple[Sample, ...]]) -> dict[str, tuple[Sample, ...]]:
        return {category: move(samples) for category, samples in groups.items()}

    task = job.task
    moved = replace(
        task,
        train=move(task.train),
        tests=move_all(task.tests),
        calibration=move_all(task.calibration),
        others=move_all(task.others),
    )
    return replace(job, task=moved)


def check_local_files(job: Job) -> Job:
    """Return the job. Raises BenchError if a file of it does not exist on this machine."""
    for path in sorted(job_files(job)):
        if not path.is_file():
            raise BenchError(
                f"Each node reads the images at the caller's paths; this node has no {path}. "
                f"Copy the data there, or pass --ship-data."
            )
    return job
