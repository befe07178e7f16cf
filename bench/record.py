"""The contract of a result: what was run, the record of one category, and the predictions behind it."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from bench.dataset import GOOD
from bench.errors import BenchError

SCHEMA = 1

Selection = Literal["last", "oracle"]
"""Which epoch is reported: the last, or the best on the test set, as several authors do."""

Resolution = Literal["input", "original"]
"""Size at which pixel metrics are computed: that of the network's input, or that of each image file."""

Maps = Literal["float16", "float32", "none"]
"""How maps are stored: float16 with one power-of-two exponent per category, float32, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What all records of one method under one protocol share.

    `bench.identity` says which fields make two runs the same.

    Attributes:
        dataset: name of the data set: "mvtec".
        synthetic: whether its images are generated; every table states it.
        data_fingerprints: short hash of each category of the data set, also of those that were not run. They
            distinguish data sets of the same name.
        protocol: "one-for-one", "unified" or "kshot".
        k: training images per category with kshot, else 0.
        seed: of the call; the seeds of k-shot draws and fits are derived from it.
        name: the method as the user names it, an alias or a file: "aminet_jitter".
        method: the file in methods/: "aminet".
        title: as tables print it: "AMI-Net‡".
        settings: every value of the method's Settings.
        preprocessing: how files become inputs, as keyword arguments of `bench.method.Preprocessing`.
        file_hashes: hashes of other files that decide the numbers: the backbone's weights, "checkpoint" of a released
            model.
        options: values of the options that decide the numbers, by group: {"compute": {"precision": "float32"}}.
        profile: the profile of bench.toml.
        profile_note: its caveat for readers of the numbers: "reduced width, depth and epochs"; "" if it has none.
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
        """Return the name of one fit or record for people: "AMI-Net bottle k=4, seed 0"."""
        k = f" k={self.k}" if self.k else ""
        sweep = f", {self.sweep_label}" if self.sweep_label else ""
        return f"{self.title} {task}{k}, seed {self.seed}{sweep}"

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
        data_digest: hash of the images and masks that decide the numbers: the category's; all categories' if one model
            serves all; those of the other categories too if the method pretrains on them.
        selection: "last", or "oracle" if the epoch was chosen on the test set.
        eval_every: epochs between two evaluations of the oracle; 0 for "last".
        epoch: the epoch reported; 0 if the method has none.
        failure: why there are no metrics, with the end of the traceback; "" if the run succeeded.
        metrics: fractions in [0, 1], by name.
        undefined_metrics: the metrics that are undefined for this category, with the reason.
        threshold: an image with a higher score is called defective; None unless the run was calibrated.
        pixel_threshold: the same for a pixel of the map, set so that a good image's highest pixel exceeds it as rarely.
        metric_error_bound: bound on the error of the pixel metrics; 0 if they are exact, as they are except on very
            large test sets.
        losses: the mean loss of each epoch.
        metrics_by_epoch: the metrics at each evaluation of the oracle, with "epoch".
        seconds: by phase: "pretrain", "fit", "predict" (the whole test set), "evaluate".
        latency: of one image in milliseconds: median, p5, p95 and all samples; empty if not measured. After
            `bench time` also "network" (the same), "loader", "end_to_end", "throughput", "memory" in bytes, "flops",
            "parameters", "state" and "environment".
        memory: peak bytes, "host" and "device".
        method_info: what the method reports about itself.
        data_report: about the images and masks: "image_sizes" of training, smallest and largest; "value_range" of
            training images with more than 8 bits per channel, with the "black" and "white" that scaled all images;
            "masks", see `bench.data.data_report.mask_report`; "good_scores", the number of good test images and the
            quantiles of their scores.
        environment: device, versions, numeric switches.
        artifacts: the other files of the record: "maps" ("float16" | "float32" | "none"), "sha256" of the predictions'
            file, "model" (whether the fitted method is stored), "views": the image that each picture shows.
        pretrain_files: the images of other categories that the method pretrained on.
        train_files: the training images. calibration_files: the good images held out to set the thresholds.
        test_files: the test images, in the order of the predictions. All are `Sample.id`s.
        origin: where each value of the plan was set.
        command: the command line.
        source_hash: hash of the method's source file. commit: of the checkout.
        started: UTC, ISO 8601.
        warnings: the warnings of the run.
    """

    run: Run
    category: str
    data_digest: str
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
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return JSON text with a schema number. Raises BenchError for NaN, infinity, and what JSON cannot express."""
        document = {"schema": SCHEMA, **asdict(self)}
        try:
            return json.dumps(document, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            name = next(name for name, value in document.items() if not _is_json(value))
            raise BenchError(f"A record must hold plain, finite values; its {name} does not: {error}.") from error

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Return the record that `to_json` wrote.

        Raises BenchError if the text is not a record of this schema with exactly its fields.
        """
        try:
            document = json.loads(text, parse_float=_parse_finite, parse_constant=_parse_finite)
        except (ValueError, RecursionError) as error:
            raise BenchError(f"A record must be JSON with finite numbers ({error}).") from error
        schema = document.pop("schema", None) if isinstance(document, dict) else None
        if isinstance(schema, bool) or schema != SCHEMA:
            fix = "Update maskbench" if isinstance(schema, int) and schema > SCHEMA else "Rerun with --force"
            raise BenchError(f"A record must have schema {SCHEMA}, got {schema!r}. {fix}.")
        run = Run(**_check_fields("run", document.get("run"), Run))
        return cls(**{**_check_fields("record", document, cls), "run": run})


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The predictions for the n test images of one category, and their ground truth.

    Attributes:
        files: the images' `Sample.id`s.
        defects: the defect type of each, "good" if it has none.
        scores: (n,) float64, higher is more anomalous.
        maps: (n, h, w) float32, or None if they were not stored.
        masks: (n, h, w), True on defect pixels.
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

    def rounded(self, maps: Maps) -> "Predictions":
        """Return the predictions as the store will return them; recorded metrics are computed from these."""
        if maps != "float16" or self.maps is None:
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
    """Return the values times 2^exponent, rounded once to the type: as `ldexp`, in a quarter of its time."""
    scaled: NDArray[Any] = np.empty(values.shape, dtype)
    np.multiply(values, 2.0**exponent, out=scaled, dtype=np.float64, casting="same_kind")
    return scaled


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _check_fields(name: str, values: Any, kind: type[Run] | type[Record]) -> dict[str, Any]:
    """Return the fields of a Run or Record from JSON.

    Raises BenchError if one is missing, unknown or of a wrong type.
    """
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise BenchError(f"The {name} must be a table of fields, got {values!r:.80}. Rerun with --force.")
    different = sorted(values.keys() ^ hints.keys())
    if different:
        raise BenchError(f"A {name} must have exactly the fields of its schema; these differ: {', '.join(different)}.")
    for field_name, value in values.items():
        hint = hints[field_name]
        if not _matches_type(value, hint):
            expected = hint if get_args(hint) else hint.__name__
            raise BenchError(f"{field_name} of a {name} must be {expected}, got {value!r:.80}. Rerun with --force.")
    return values


def _matches_type(value: Any, hint: Any) -> bool:
    """Return whether a value from JSON has the declared type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(_matches_type(value, argument) for argument in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(_matches_type(part, arguments[1]) for part in value.values())
    if origin is list:
        return isinstance(value, list) and all(_matches_type(part, arguments[0]) for part in value)
    types = {float: (int, float), Run: (dict,)}.get(hint, (hint,))
    return isinstance(value, types) and (hint is bool or not isinstance(value, bool))
