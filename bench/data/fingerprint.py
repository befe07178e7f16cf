"""A cheap fingerprint of each category of a data set, to tell data sets of the same name apart."""

from collections.abc import Sequence
from hashlib import sha256

from bench.dataset import Sample

SAMPLED_FILES = 8
"""Number of images per category whose content is hashed; of the others, name and size are."""


def category_fingerprints(samples: Sequence[Sample]) -> dict[str, str]:
    """Return a short hash per category: of the ids and sizes of all its images, and of some images' content.

    Reading everything would take minutes for a large data set of which only one category is run. A file that cannot be
    read counts by its name; reading it later raises the error.
    """
    by_category: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.category, sample.id, sample.image.as_posix())):
        by_category.setdefault(sample.category, []).append(sample)
    return {category: _fingerprint(images) for category, images in by_category.items()}


def _fingerprint(samples: Sequence[Sample]) -> str:
    digest = sha256()
    sampled = {index * len(samples) // SAMPLED_FILES for index in range(SAMPLED_FILES)}
    for index, sample in enumerate(samples):
        try:
            size = sample.image.stat().st_size
            content = sha256(sample.image.read_bytes()).hexdigest() if index in sampled else ""
        except OSError:
            size, content = -1, ""
        digest.update(f"{sample.id}\n{size}\n{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]
