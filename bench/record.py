"""What is known of one result: the run that was asked for, the record of a category, the raw answers behind it."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from bench.dataset import GOOD
from bench.errors import BenchError

SCHEMA = 2

_FIRST = {
    "run": "dataset synthetic protocol k seed limit name method title settings preprocessing precision inputs profile "
    "note variant",
    "record": "run category data selection every epoch failure metrics missing error losses curve seconds latency "
    "memory facts machine stored train tests origin command source commit started warnings",
}
"""The fields of schema 1: a record has all of them, and what came later takes its default where a record lacks it."""

Selection = Literal["last", "oracle"]
"""Which epoch is reported: the last, or the best on the test set, as several authors do."""

Resolution = Literal["input", "original"]
"""At which pixels are judged: those of the prepared images, or those of each image's own file."""

Maps = Literal["float16", "float32", "none"]
"""How maps are kept: half precision with one power-of-two exponent a category, in full, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was asked: all that the records of one method under one protocol share.

    Attributes:
        dataset: name of the data set, as "mvtec".
        synthetic: whether its images are drawn; every table says so.
        protocol: as "kshot".
        k: training images a category, or 0 where the protocol takes all.
        seed: as the user gave it; draws and fits follow from it.
        limit: the cap of a quick look, or 0.
        calibrate: the false positive rate for which good training images were held out to set a threshold, or 0.
        resolution: at which pixels were judged.
        compile: whether the networks were compiled for predictions.
        name: what the user calls the method, an alias or a file: "aminet_jitter".
        method: the file in methods/ that it is: "aminet".
        title: as tables print it: "AMI-Net‡".
        settings: every value of the method's Settings, resolved.
        preprocessing: how files became inputs, resolved.
        precision: of the network.
        inputs: hashes of other files that decide the answer: the backbone's weights; "checkpoint" of a released model.
        profile: the profile of bench.toml that the values began with.
        note: what a reader must know of that profile, as "reduced width, depth and epochs"; "" where nothing.
        variant: short hash of what the categories of a table share: `key` before the settings of single categories.
        swept: the settings whose value tells this run from the others of its sweep; it decides no answer.
    """

    dataset: str
    synthetic: bool
    protocol: str
    k: int
    seed: int
    limit: int
    name: str
    method: str
    title: str
    settings: dict[str, Any]
    preprocessing: dict[str, Any]
    precision: str
    file_hashes: dict[str, str]
    profile: str
    profile_note: str
    group_hash: str = ""
    calibrate: float = 0.0
    resolution: Resolution = "input"
    compile: bool = False
    sweep_keys: list[str] = field(default_factory=list)

    @property
    def sweep_label(self) -> str:
        """The swept settings and their values, as tables print them: "clusters=4, depth=2"; "" outside a sweep."""
        return ", ".join(f"{name}={self.settings.get(name)}" for name in self.sweep_keys)

    @property
    def is_released_checkpoint(self) -> bool:
        """Whether the model is its authors' checkpoint, and was not trained here."""
        return "checkpoint" in self.file_hashes

    def key(self, data: str) -> str:
        """Short hash of what decides the numbers besides the seed; `data` is the digest of the images."""
        decisive = [self.method, self.settings, self.preprocessing, self.precision, self.file_hashes, self.limit, data]
        if self.calibrate:
            decisive.append({"calibrate": self.calibrate})
        if self.resolution != "input":
            decisive.append({"resolution": self.resolution})
        if self.compile:
            decisive.append({"compile": True})
        return sha256(json.dumps(decisive, sort_keys=True, default=list).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One fit judged on one category, with everything needed to say how the numbers were made.

    Attributes:
        run: what was asked.
        category: whose test images were judged.
        data: digest of the category's images and masks (of all categories where one model serves all).
        selection: "last", or "oracle" where the epoch was chosen on the test set.
        every: the oracle's interval in epochs; 0 for "last".
        epoch: the epoch reported; 0 where the method has none.
        failure: why there are no metrics, with the last lines of the traceback; "" where all went well.
        metrics: fractions in [0, 1], by name.
        missing: the metrics that do not exist here, with the reason.
        threshold: an image whose score lies above it is called defective, with `run.calibrate`; else None.
        pixel_threshold: the same for a pixel of the map: of a good image the highest pixel lies above it that rarely.
        error: bound on the error of the pixel metrics; 0 where they are exact, as they are but for huge sets.
        losses: the mean loss of each epoch.
        curve: the metrics of each epoch at which the oracle looked, with its "epoch".
        seconds: by phase: "fit", "predict" (whole test set), "judge".
        latency: of one image in milliseconds: median, p5, p95 and all samples; empty where it was not measured. After
            `bench time` also "network" (the same), "loader", "end_to_end", "throughput", "memory" in bytes, "flops",
            "parameters", "state" and "machine".
        memory: peak bytes, "host" and "device".
        facts: what the method tells of itself.
        machine: device, versions, numeric switches.
        stored: what lies beside the record: "maps" ("float16" | "float32" | "none"), "sha256" of the answers' file,
            "model" (whether the fitted method is there), "views": the image that each picture shows.
        train: the training files. held: the good ones held out of them, by which the thresholds were set.
        tests: the test files, as stored.
        origin: where each value of the plan came from.
        command: the command line.
        source: hash of the method's source file. commit: of the checkout.
        started: UTC, ISO 8601.
        warnings: what was said on the way.
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
    environment: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
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
        """JSON text with a schema number. Raises BenchError for NaN, infinity, and what JSON can't hold."""
        found = {"schema": SCHEMA, **asdict(self)}
        try:
            return json.dumps(found, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            odd = next(name for name, value in found.items() if not _plain(value))
            raise BenchError(f"A record holds plain, finite values; its {odd} are not: {error}.") from error

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """The record that `to_json` wrote, now or under an older schema, whose missing fields take their defaults.

        Raises BenchError where the text is none, or of a schema that is not known.
        """
        try:
            found = json.loads(text, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError) as error:
            raise BenchError(f"A record is JSON with finite numbers; this is not ({error}).") from error
        schema = found.pop("schema", None) if isinstance(found, dict) else None
        if isinstance(schema, bool) or schema not in range(1, SCHEMA + 1):
            mend = "Update maskbench" if isinstance(schema, int) and schema > SCHEMA else "Run it again with --force"
            raise BenchError(f"A record has schema 1 to {SCHEMA}; this has {schema!r}. {mend}.")
        run = Run(**_checked("run", found.get("run"), Run))
        return cls(**{**_checked("record", found, cls), "run": run})


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The raw answers for the n test images of one category, and the truth beside them.

    Attributes:
        files: names of the images.
        defects: the kind of each, "good" where there is none.
        scores: (n,) float64, higher is more anomalous.
        maps: (n, h, w) float32, or None where they were not kept.
        masks: (n, h, w), True on defect pixels.
        known: (n,) whether the pixel truth is known: False for a defect image without a mask.
        soft: (n, h, w) the masks in 255ths, as a bilinear resize would have made them; None where they were not kept.
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
        """(n,) the label of each image, from its kind of defect."""
        return np.array([defect != GOOD for defect in self.defects], dtype=np.bool_)

    def rounded(self, maps: Maps) -> "Predictions":
        """As they will be read back from the store; recorded metrics are computed from these."""
        if maps != "float16" or self.maps is None:
            return self
        return replace(self, maps=to_float32(*to_float16(self.maps)))


def to_float16(maps: NDArray[np.float32]) -> tuple[NDArray[np.float16], int]:
    """The maps in half precision, and the power of two by which they are to be multiplied.

    The power brings the largest magnitude, as rounded, into [2^14, 2^15), far from half precision's subnormal end: a
    value keeps its 11 bits down to 2^-28 of the largest, and below that an absolute error of 2^-39 of it. Halving what
    was halved changes nothing.
    """
    largest = max(float(maps.max(initial=0)), -float(maps.min(initial=0)))
    mantissa, power = np.frexp(largest)  # largest = mantissa * 2^power, mantissa in [0.5, 1)
    power = int(power) + int(np.float16(mantissa) == 1) - 15 if largest else 0
    return _scaled(maps, -power, np.float16), power


def to_float32(halves: NDArray[np.float16], power: int) -> NDArray[np.float32]:
    """The maps that `halved` made small, in single precision."""
    return _scaled(halves, power, np.float32)


def _scaled(values: NDArray[Any], power: int, kind: type[np.floating[Any]]) -> NDArray[Any]:
    """The values times two to that power, rounded once to a kind: what `ldexp` gives in four times the time."""
    found: NDArray[Any] = np.empty(values.shape, kind)
    np.multiply(values, 2.0**power, out=found, dtype=np.float64, casting="same_kind")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _checked(what: str, given: Any, kind: type[Run] | type[Record]) -> dict[str, Any]:
    """The fields of a Run or a Record as JSON gave them. Raises BenchError where one lacks, is unknown or misshapen."""
    hints = get_type_hints(kind)
    if not isinstance(given, dict):
        raise BenchError(f"A record's {what} is a table of fields; {given!r:.80} is none. Run it again with --force.")
    odd = sorted((given.keys() - hints.keys()) | (set(_FIRST[what].split()) - given.keys()))
    if odd:
        raise BenchError(f"A {what} has exactly the fields of its schema; these differ: {', '.join(odd)}.")
    for name, value in given.items():
        if not _fits(value, hints[name]):
            told = hints[name] if get_args(hints[name]) else hints[name].__name__
            raise BenchError(f"In a {what}, {name} is {told}; {value!r:.80} is not. Run it again with --force.")
    return given


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is what a field is declared as."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin is UnionType:
        return any(_fits(value, each) for each in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    kinds = {float: (int, float), Run: (dict,)}.get(hint, (hint,))
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
