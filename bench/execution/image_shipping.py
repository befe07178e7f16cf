"""The image files of a job on another machine: read there at the same paths, or sent there and written to its cache."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from bench.dataset import Sample
from bench.errors import BenchError
from bench.execution.job import Job
from bench.files import write_files

FILES_AT_ONCE = 100
"""Number of files that are written together; all are open at the same time."""


def job_files(job: Job) -> set[Path]:
    """Return the images and masks that a job reads."""
    task = job.task
    groups = (*task.tests.values(), *task.calibration.values(), *task.others.values(), task.train)
    return {path for samples in groups for sample in samples for path in (sample.image, *sample.masks)}


def write_images(job: Job, files: Mapping[str, bytes]) -> Job:
    """Return the job with files of this machine, written once for all jobs on the same data.

    Args:
        job: a job with the paths of the machine that created it.
        files: content of each file by such a path; a file that is written already is not needed.
    """
    root = job.cache / "shipped" / job.data_hash

    def local_path(path: Path) -> Path:
        parent = sha256(str(path.parent).encode(errors="surrogateescape")).hexdigest()[:12]
        return root / parent / path.parent.name / path.name  # the file keeps its name, which its Sample.id contains

    missing = [path for path in sorted(job_files(job)) if not _has_content(local_path(path), files.get(str(path)))]
    for start in range(0, len(missing), FILES_AT_ONCE):
        write_files({local_path(path): files[str(path)] for path in missing[start : start + FILES_AT_ONCE]})

    def move(sample: Sample) -> Sample:
        return replace(sample, image=local_path(sample.image), masks=tuple(map(local_path, sample.masks)))

    return replace(job, task=job.task.map_samples(move))


def _has_content(path: Path, content: bytes | None) -> bool:
    """Return whether the file exists and, if its content is given, has it."""
    return path.is_file() and (content is None or path.read_bytes() == content)


def check_local_files(job: Job) -> Job:
    """Return the job. Raises BenchError if a file of it does not exist on this machine."""
    for path in sorted(job_files(job)):
        if not path.is_file():
            raise BenchError(
                f"Each node reads the images at the caller's paths; this node has no {path}. "
                f"Copy the data there, or pass --ship-data."
            )
    return job
