"""A fast fingerprint of each category of a dataset, to distinguish datasets of the same name."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from bench.dataset import Sample

N_HASHED_SAMPLES = 8
"""Number of samples per category whose content is hashed; of the others only names and sizes are hashed."""


def category_fingerprints(samples: Sequence[Sample]) -> dict[str, str]:
    """Return a short hash per category: of ids and file sizes of all samples, and of the content of some.

    Images and masks are both included. Reading all files would take minutes for a large dataset of which only one
    category is run. Of a file that cannot be read, only the sample's id is hashed; the error is raised when a task
    reads it.
    """
    by_category: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.category, sample.id, sample.image.as_posix())):
        by_category.setdefault(sample.category, []).append(sample)
    return {category: _fingerprint(members) for category, members in by_category.items()}


def _fingerprint(samples: Sequence[Sample]) -> str:
    digest = sha256()
    sampled = {index * len(samples) // N_HASHED_SAMPLES for index in range(N_HASHED_SAMPLES)}
    for index, sample in enumerate(samples):
        digest.update(f"{sample.id}\n".encode(errors="surrogateescape"))
        for path in (sample.image, *sample.masks):
            digest.update(_describe(path, with_content=index in sampled).encode())
    return digest.hexdigest()[:12]


def _describe(path: Path, *, with_content: bool) -> str:
    try:
        content = sha256(path.read_bytes()).hexdigest() if with_content else ""
        return f"{path.stat().st_size} {content}\n"
    except OSError:
        return "unreadable\n"
