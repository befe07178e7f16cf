"""Repeat a run: its command with other options, and the comparison of its metrics with those of the record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from bench.identity import Difference, differing_values
from bench.record import Record, Run

RERUN_TOLERANCE = 0.5
"""Percentage points that a metric of the same run may differ: settings, images and seed are the same, but training on
another machine rounds differently, with the same effect as another seed."""


@dataclass(frozen=True, slots=True)
class MetricCheck:
    """A metric of the record and of the repeated run, as fractions; None if one of them lacks it."""

    name: str
    recorded: float | None
    repeated: float | None
    tolerance: float

    @property
    def difference(self) -> float | None:
        """The repeated value minus the recorded one, in percentage points."""
        if self.recorded is None or self.repeated is None:
            return None
        return 100 * (self.repeated - self.recorded)

    @property
    def agrees(self) -> bool:
        """Whether both exist and differ by at most the tolerance."""
        return self.difference is not None and abs(self.difference) <= self.tolerance + 1e-9


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The comparison of a record with its repetition.

    Attributes:
        metrics: a check of each metric of either.
        inputs: differences of what determines the numbers: images, weights, settings, options. Then the run is not a
            repetition.
        environment: differences of machine, versions, and code.
    """

    metrics: tuple[MetricCheck, ...]
    inputs: tuple[Difference, ...]
    environment: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Whether the inputs are equal and all metrics agree."""
        return not self.inputs and bool(self.metrics) and all(check.agrees for check in self.metrics)


def without_options(command: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """Return the words of a command without some of its options.

    Args:
        command: the words of the command.
        options: whether an option has a value, by its name: {"--k": True} removes `--k 4` and `--k=4`.
    """
    remaining_words: list[str] = []
    words = iter(command)
    for word in words:
        option, equals, _ = word.partition("=")
        if option not in options:
            remaining_words.append(word)
        elif options[option] and not equals:
            next(words, None)  # skip its value
    return remaining_words


def compare_repetition(record: Record, repeated: Record, tolerance: float = RERUN_TOLERANCE) -> Reproduction:
    """Compare a record with its repetition.

    Args:
        record: the record that was repeated.
        repeated: the new one, of the same category and selection.
        tolerance: percentage points that a metric may differ.
    """
    names = dict.fromkeys([*record.metrics, *repeated.metrics])
    checks = (MetricCheck(name, record.metrics.get(name), repeated.metrics.get(name), tolerance) for name in names)
    return Reproduction(
        tuple(checks),
        tuple(differing_values(_inputs(record), _inputs(repeated))),
        tuple(differing_values(_environment(record), _environment(repeated))),
    )


def _inputs(record: Record) -> dict[str, Any]:
    """Return what determines the numbers. Lists of images are shortened to their number and a hash."""
    run = record.run
    return {
        "images and masks": {"hash": record.data_hash, "fingerprints": _own_fingerprints(record)},
        "training images": _listed(record.train_files),
        "test images": _listed(sorted(record.test_files)),
        "calibration images": _listed(record.calibration_files),
        "weights": run.file_hashes,
        "method": run.method,
        "settings": run.settings,
        "preprocessing": run.preprocessing,
        "options": run.options,
        "run": _protocol(run),
    }


def _own_fingerprints(record: Record) -> dict[str, str]:
    """Return the fingerprints of the categories that were used; the dataset may have others on another machine."""
    files = (*record.train_files, *record.test_files, *record.pretrain_files)
    categories = {name.partition("/")[0] for name in files}
    return {name: value for name, value in record.run.data_fingerprints.items() if name in categories}


def _protocol(run: Run) -> dict[str, Any]:
    return {"protocol": run.protocol, "k": run.k, "seed": run.seed}


def _listed(files: list[str]) -> str:
    """Return the number of images and a hash of their names."""
    digest = sha256("\n".join(files).encode(errors="surrogatepass")).hexdigest()
    return f"{len(files)} images, names {digest[:12]}"


def _environment(record: Record) -> Mapping[str, Any]:
    code = {"method's file": record.source_hash[:12], "commit": record.commit}
    return {"code": code, "environment": record.environment}
