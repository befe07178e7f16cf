"""Hashes of the files of samples: they identify the data of a run, and detect images that change while it runs."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from bench.data.decoding import file_errors
from bench.dataset import Sample
from bench.errors import BenchError


def with_hashes(sample: Sample) -> Sample:
    """Return the sample with the hashes of its files. Raises BenchError if one cannot be read."""
    return replace(sample, hashes=tuple(_file_hash(path) for path in (sample.image, *sample.masks)))


def content_hash(samples: Sequence[Sample]) -> str:
    """Return a hash of the names and labels of the samples and of every byte of their images and masks."""
    digest = sha256()
    for sample in samples:
        settings = f" {sample.saturations}" if sample.saturations else ""
        digest.update(
            f"{sample.id}{settings}\n".encode(errors="surrogateescape")
        )  # a file name does not need to be UTF-8
        for file_hash in sample.hashes or with_hashes(sample).hashes:
            digest.update(bytes.fromhex(file_hash))
    return digest.hexdigest()


def check_unchanged(sample: Sample, *paths: Path) -> None:
    """Raise BenchError if files of the sample differ from its hashes, if it has any.

    Called after the files were decoded, so that the pixels are those of the hash.
    """
    for path, expected in zip((sample.image, *sample.masks), sample.hashes, strict=False):
        if path in paths and _file_hash(path) != expected:
            raise BenchError(
                f"The files of a dataset must not change during a run; {path} has changed. Run the command again."
            )


def _file_hash(path: Path) -> str:
    with file_errors(path, "A file of a dataset"):
        return sha256(path.read_bytes()).hexdigest()
