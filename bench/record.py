"""The contract of a result: what was run, the record of one category, and the predictions behind it."""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray

from bench.dataset import GOOD
from bench.errors import BenchError
from bench.json_types import matches_type, parse_finite, parse_integer, type_name

SCHEMA = 1

MAX_BYTES = 256_000_000
"""Largest size of a file that is read as a record."""

_MAX_SEQUENCE = 2**62
"""Largest `sequence` of a record: the following ones are integers that can be read, too."""

_CHECKSUM = re.compile(r',\n "checksum": "([0-9a-f]{64})"\n}\Z')
"""The end of a record's text: the sha256 of the text without it."""

_END = "\n}"

ROUNDING = 1e-9
"""Tolerance for metrics outside of [0, 1]."""

Selection = Literal["last", "oracle"]
"""Which epoch is reported: the last, or the best on the test set, as several authors do."""

Resolution = Literal["input", "original"]
"""Size at which pixel metrics are computed: that of the network's input, or that of each image file."""

MapPrecision = Literal["float16", "float32", "none"]
"""How maps are stored: float16 with one power-of-two exponent per category, float32, or not at all."""

_REQUIRED_OPTIONS: dict[str, dict[str, Any]] = {
    "tasks": {"limit": int},
    "evaluation": {"calibrate": float, "resolution": Resolution},
    "compute": {"precision": str, "compile": bool},
}
_OPTIONAL_VALUES: dict[str, dict[str, Any]] = {
    "latency": {"median_ms": float, "p5_ms": float, "p95_ms": float, "samples_ms": list[float]},
    "artifacts": {
        "map_precision": MapPrecision, "model": bool, "sha256": str, "model_sha256": str, "pictures": dict[str, str],
        "pictures_sha256": dict[str, str],
    },
}  # fmt: skip
"""Types of the values that are read from `Run.options`, and from other tables of a record if it has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What all records of one method under one protocol share.

    `bench.identity` defines which fields make two runs the same.

    Attributes:
        dataset: name of the dataset: "mvtec".
        synthetic: whether its images are generated; every table states it.
        data_fingerprints: short hash of each category of the dataset, also of those that were not run. They
            distinguish datasets of the same name.
        protocol: "one-for-one", "unified" or "kshot".
        k: training images per category with kshot, else 0.
        seed: `--seed` of the run; the seeds of k-shot draws and fits are derived from it.
        name: the method as the user names it, an alias or a file: "aminet_jitter".
        method: the file in methods/: "aminet".
        title: title in tables: "AMI-Net‡".
        settings: every value of the method's Settings.
        preprocessing: how files become inputs, as keyword arguments of `bench.method.Preprocessing`.
        file_hashes: hashes of other files that affect the metrics: the backbone's weights, "checkpoint" of a released
            model.
        options: values of the options that affect the metrics, by group: {"compute": {"precision": "float32"}}.
        profile: the profile of bench.toml.
        profile_note: caveat of the profile: "reduced width, depth and epochs"; "" if it has none.
        group_hash: short hash that the records of one table row share; see `bench.identity.run_hash`.
        sweep_keys: the settings that distinguish this run from the others of its sweep.
    """

    dataset: str
    synthetic: bool
    data_fingerprints: dict[str, str]
    protocol: str
    k: int
    seed: int
    name: str
    method: str
    title: str
    settings: dict[str, Any]
    preprocessing: dict[str, Any]
    file_hashes: dict[str, str]
    options: dict[str, dict[str, Any]]
    profile: str
    profile_note: str
    group_hash: str = ""
    sweep_keys: list[str] = field(default_factory=list)

    @property
    def limit(self) -> int:
        """Maximum number of training, of good and of defective test images per category; 0 is no limit."""
        return int(self.options["tasks"]["limit"])

    @property
    def calibrate(self) -> float:
        """False positive rate of the threshold set on held-out good images; 0 if none was set."""
        return float(self.options["evaluation"]["calibrate"])

    @property
    def resolution(self) -> Resolution:
        """Size at which pixel metrics were computed."""
        resolution: Resolution = self.options["evaluation"]["resolution"]
        return resolution

    @property
    def precision(self) -> str:
        """Precision of the network."""
        return str(self.options["compute"]["precision"])

    @property
    def compile(self) -> bool:
        """Whether the networks were compiled for prediction."""
        return bool(self.options["compute"]["compile"])

    def label(self, task: str) -> str:
        """Return the readable name of one fit or record: "AMI-Net bottle k=4, seed 0"."""
        k = f" k={self.k}" if self.k else ""
        sweep = f", {self.sweep_label}" if self.sweep_label else ""
        return f"{self.title} {task}{k}, seed {self.seed}{sweep}"

    @property
    def store_name(self) -> str:
        """The name in a store, which is also its folder: "demo/kshot-4/aminet", "demo/kshot-4/anomalib-Padim"."""
        protocol = f"{self.protocol}-{self.k}" if self.k else self.protocol
        return f"{self.dataset}/{protocol}/{self.name.replace(':', '-')}"

    @property
    def sweep_label(self) -> str:
        """The swept settings and their values as tables print them: "clusters=4, depth=2"; "" outside a sweep."""
        return ", ".join(f"{name}={self.settings.get(name)}" for name in self.sweep_keys)

    @property
    def is_released_checkpoint(self) -> bool:
        """Whether the model is its authors' checkpoint and was not trained here."""
        return "checkpoint" in self.file_hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One fit evaluated on one category, with everything that is needed to reproduce the numbers.

    Attributes:
        run: what was run.
        category: the category of the test images.
        data_hash: hash of the images and masks that affect the metrics: the category's; all categories' if one model
            serves all; those of the other categories too if the method pretrains on them.
        selection: "last", or "oracle" if the epoch was chosen on the test set.
        eval_every: epochs between two evaluations of the oracle; 0 for "last".
        epoch: the epoch reported; 0 if the method has none.
        failure: why there are no metrics, with the end of the traceback; "" if the run succeeded.
        metrics: fractions in [0, 1], by name.
        undefined_metrics: the metrics that are undefined for this category, with the reason.
        threshold: an image with a higher score is predicted as anomalous; None unless the run was calibrated.
        pixel_threshold: the same for a pixel of the anomaly map, set so that the highest pixel of a good image exceeds
            it at the same rate.
        metric_error_bound: bound on the error of the pixel metrics; 0 if they are exact, as they are except on very
            large test sets.
        losses: the mean loss of each epoch.
        metrics_by_epoch: the metrics at each evaluation of the oracle, with "epoch".
        seconds: duration by phase: "pretrain", "fit", "predict" (the whole test set), "evaluate".
        resumed_after: if the fit was interrupted and continued from a checkpoint, the seconds of pretraining and fit
            before each of these checkpoints. `seconds` include them, but not the time between a checkpoint and the
            interruption.
        latency: latency of one image in milliseconds: median, p5, p95 and all samples; empty if not measured. After
            `bench time` also "network" (the same), "loader", "end_to_end", "throughput", "memory" in bytes, "flops",
            "parameters", "state" and "environment".
        memory: peak bytes, "host" and "device".
        method_info: the values of `Method.info`.
        data_report: properties of the images and masks: "image_sizes" of training, smallest and largest; "value_range"
            of training images with more than 8 bits per channel, with the "black" and "white" that scaled all images;
            "masks", see `bench.data.data_report.mask_report`; "good_scores", the number of good test images and the
            quantiles of their scores.
        environment: device, versions, numeric flags.
        artifacts: the other files: "map_precision" ("float16" | "float32" | "none"), "model" (whether the fitted method
            is stored), "pictures": the image that each picture shows; "sha256" of the predictions' file,
            "model_sha256", and "pictures_sha256" by name of the file.
        pretrain_files: the images of other categories that the method pretrained on.
        train_files: the training images. calibration_files: the good images held out to set the thresholds.
        test_files: the test images, in the order of the predictions. All are `Sample.id`s.
        origin: origin of each value of the plan.
        command: the command line.
        source_hash: hash of the method's source file. commit: commit of the checkout.
        started: UTC, ISO 8601.
        sequence: larger than that of every record that was saved before it in the store, also if the clock was set
            back: microseconds since 1970, or one more than the last one. 0 if it is not saved.
        warnings: the warnings of the run.
    """

    run: Run
    category: str
    data_hash: str
    selection: Selection = "last"
    eval_every: int = 0
    epoch: int = 0
    failure: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    undefined_metrics: dict[str, str] = field(default_factory=dict)
    threshold: float | None = None
    pixel_threshold: float | None = None
    metric_error_bound: float = 0.0
    losses: list[float] = field(default_factory=list)
    metrics_by_epoch: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed_after: list[float] = field(default_factory=list)
    latency: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    method_info: dict[str, Any] = field(default_factory=dict)
    data_report: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    pretrain_files: list[str] = field(default_factory=list)
    train_files: list[str] = field(default_factory=list)
    calibration_files: list[str] = field(default_factory=list)
    test_files: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    command: str = ""
    source_hash: str = ""
    commit: str = ""
    started: str = ""
    sequence: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def timed_environment(self) -> dict[str, Any]:
        """The environment in which the latency was measured: that of the fit, or of a later `bench time`."""
        environment: dict[str, Any] = self.latency.get("environment", self.environment)
        return environment

    def to_json(self) -> str:
        """Return JSON text with a schema number, and at its end a checksum.

        Raises BenchError for NaN, infinity, and what JSON cannot express.
        """
        document = {"schema": SCHEMA, **asdict(self)}
        try:
            text = json.dumps(document, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            name = next(name for name, value in document.items() if not _is_json(value))
            raise BenchError(f"A record must contain plain, finite values; its {name} does not: {error}.") from error
        return f'{text.removesuffix(_END)},\n "checksum": "{sha256(text.encode()).hexdigest()}"{_END}'

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Return the record that `to_json` wrote.

        Raises BenchError if the text is not a record of this schema with exactly its fields, or if a character of it
        has changed.
        """
        try:
            document = json.loads(text, parse_int=parse_integer, parse_float=parse_finite, parse_constant=parse_finite)
        except (ValueError, RecursionError) as error:
            raise BenchError(f"A record must be JSON with finite numbers ({error}).") from error
        schema = document.pop("schema", None) if isinstance(document, dict) else None
        if isinstance(schema, bool) or schema != SCHEMA:
            fix = "Update maskbench" if isinstance(schema, int) and schema > SCHEMA else "Rerun with --force"
            raise BenchError(f"A record must have schema {SCHEMA}, got {schema!r:.80}. {fix}.")
        document.pop("checksum", None)
        run = Run(**_check_fields("run", document.get("run"), Run))
        document = {"resumed_after": [], **document}  # records that were written before there were checkpoints
        record = cls(**{**_check_fields("record", document, cls), "run": run})
        _check_nested(record)
        checksum = _CHECKSUM.search(text)
        if not checksum or sha256(f"{text[: checksum.start()]}{_END}".encode()).hexdigest() != checksum[1]:
            raise BenchError("A record must be as it was written, but its checksum differs. Rerun with --force.")
        return record


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The predictions for the n test images of one category, and their ground truth.

    Attributes:
        files: the images' `Sample.id`s.
        defects: the defect type of each, "good" if it has none.
        scores: (n,) float64, higher is more anomalous.
        maps: (n, h, w) float32, or None if they were not stored.
        masks: (n, h, w), True for defect pixels.
        has_pixel_labels: (n,) False for a defective image without a mask: its pixels are unknown.
        soft_masks: (n, h, w) bilinearly resized masks, uint8 in 0..255; None if they were not stored.
    """

    files: tuple[str, ...]
    defects: tuple[str, ...]
    scores: NDArray[np.float64]
    maps: NDArray[np.float32] | None
    masks: NDArray[np.bool_]
    has_pixel_labels: NDArray[np.bool_]
    soft_masks: NDArray[np.uint8] | None = None

    @property
    def is_anomalous(self) -> NDArray[np.bool_]:
        """(n,) the label of each image, from its defect type."""
        return np.array([defect != GOOD for defect in self.defects], dtype=np.bool_)

    def rounded(self, map_precision: MapPrecision) -> "Predictions":
        """Return the predictions as the store will return them; recorded metrics are computed from these."""
        if map_precision != "float16" or self.maps is None:
            return self
        return replace(self, maps=to_float32(*to_float16(self.maps)))


def to_float16(maps: NDArray[np.float32]) -> tuple[NDArray[np.float16], int]:
    """Return the maps in float16 and the exponent of the power of two that they must be multiplied by.

    The power moves the largest rounded magnitude into [2^14, 2^15), far from the subnormal range of float16: a value
    keeps its 11 bits down to 2^-28 of the largest, and an absolute error of 2^-39 of the largest below that. The
    conversion is idempotent.
    """
    largest = max(float(maps.max(initial=0)), -float(maps.min(initial=0)))
    mantissa, exponent = np.frexp(largest)  # largest = mantissa * 2^exponent, mantissa in [0.5, 1)
    exponent = int(exponent) + int(np.float16(mantissa) == 1) - 15 if largest else 0
    return _scale(maps, -exponent, np.float16), exponent


def to_float32(maps: NDArray[np.float16], exponent: int) -> NDArray[np.float32]:
    """Return the float32 maps that `to_float16` converted."""
    return _scale(maps, exponent, np.float32)


def _scale(values: NDArray[Any], exponent: int, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Return the values times 2^exponent, rounded once to the type: the same as `ldexp`, four times as fast."""
    scaled: NDArray[Any] = np.empty(values.shape, dtype)
    np.multiply(values, 2.0**exponent, out=scaled, dtype=np.float64, casting="same_kind")
    return scaled


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _check_fields(name: str, values: Any, record_class: type[Run] | type[Record]) -> dict[str, Any]:
    """Return the fields of a Run or Record from JSON.

    Raises BenchError if one is missing, unknown or of a wrong type.
    """
    hints = get_type_hints(record_class)
    if not isinstance(values, dict):
        raise BenchError(f"The {name} must be a table of fields, got {values!r:.80}. Rerun with --force.")
    different = sorted(values.keys() ^ hints.keys())
    if different:
        raise BenchError(f"A {name} must have exactly the fields of its schema; these differ: {', '.join(different)}.")
    for field_name, value in values.items():
        hint = hints[field_name]
        if not matches_type(value, hint):
            expected = type_name(hint)
            raise BenchError(f"{field_name} of a {name} must be {expected}, got {value!r:.80}. Rerun with --force.")
    return values


def _check_nested(record: Record) -> None:
    """Raise BenchError if a value inside a table of any values, which reports use, has a wrong type or is missing."""
    values = [
        (f"{table}.{key}", getattr(record, table)[key], hint)
        for table, hints in _OPTIONAL_VALUES.items()
        for key, hint in hints.items()
        if key in getattr(record, table)
    ]
    values += [
        (f"options.{group}.{key}", record.run.options.get(group, {}).get(key), hint)
        for group, hints in _REQUIRED_OPTIONS.items()
        for key, hint in hints.items()
    ]
    for name, value, hint in values:
        if not matches_type(value, hint):
            raise BenchError(f"{name} of a record must be {type_name(hint)}, got {value!r:.80}. Rerun with --force.")
    outside = [name for name, value in record.metrics.items() if not -ROUNDING <= value <= 1 + ROUNDING]
    if outside:
        raise BenchError(
            f"metrics.{outside[0]} of a record must be from 0 to 1, got {record.metrics[outside[0]]:.6g}. "
            f"Rerun with --force."
        )
    if not 0 <= record.sequence <= _MAX_SEQUENCE:
        raise BenchError(f"sequence of a record must be from 0 to 2^62, got {record.sequence}. Rerun with --force.")
    unknown = [key for key in record.run.sweep_keys if key not in record.run.settings]
    if unknown:
        raise BenchError(f"sweep_keys of a run must be settings of it, got '{unknown[0]:.80}'. Rerun with --force.")
