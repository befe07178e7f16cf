"""Hashes of the files of samples: they identify the data of a run, and detect images that change while it runs."""

from collections.abc import Iterator, Sequence
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


def duplicate_warnings(name: str, train: Sequence[Sample], tests: Sequence[Sample]) -> Iterator[str]:
    """Yield the warnings about files that are in training and in test, or good and defective; samples have hashes.

    Equal pixels in different files are not found; `bench check` compares pixels.
    """
    by_hash: dict[str, list[Sample]] = {}
    for sample in (*train, *tests):
        by_hash.setdefault(sample.hashes[0], []).append(sample)
    groups = [group for group in by_hash.values() if len(group) > 1]
    leaks = [group for group in groups if len({sample.split for sample in group}) > 1]
    contradictions = [group for group in groups if len({sample.is_anomalous for sample in group}) > 1]
    for equal, where in ((leaks, "in training and in test"), (contradictions, "good and defective")):
        if equal:
            example = " = ".join(sample.id for sample in equal[0])
            plural = "image is" if len(equal) == 1 else "images are"
            yield f"{name}: {len(equal)} {plural} both {where}, for example {example}. Remove the copies."


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
