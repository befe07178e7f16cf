"""The options of a run. Each is defined once, here: name, type, default, help text and range.

The command line, the keyword arguments of the Python API, the checks of `bench.toml` and `docs/options.md` are derived
from these fields. Plan, Job and Fit receive the four groups whole. A new option is one field here plus the code that
uses it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from bench.errors import BenchError


def _option(
    default: Any,
    text: str,
    *,
    short: str = "",
    minimum: float | None = None,
    below: float | None = None,
    required: bool = False,
    affects_metrics: bool = True,
    only_with: tuple[str, ...] = (),
) -> Any:
    """Define an option.

    Args:
        default: the value if neither profile, campaign nor command line sets one.
        text: the help text: a phrase with unit and, if it is not obvious, the meaning of the default.
        short: a one-letter form on the command line, "m" for -m.
        minimum: the smallest value that is allowed.
        below: the value must be less than this.
        required: whether an empty value is an error.
        affects_metrics: whether another value may give other metrics; the option is then part of a run's identity.
            False for options that select runs, devices or files.
        only_with: name of another option, and the values of it with which this one has an effect.
    """
    details = {
        "help": text,
        "short": short,
        "minimum": minimum,
        "below": below,
        "required": required,
        "affects_metrics": affects_metrics,
        "only_with": only_with,
    }
    return field(default=default, metadata=details)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What to run."""

    TITLE: ClassVar[str] = "What to run"

    method: tuple[str, ...] = _option(
        ("aminet",),
        "Methods or aliases, separated by commas, or 'all'.",
        short="m",
        required=True,
        affects_metrics=False,
    )
    dataset: str = _option("demo", "Dataset; see `bench list datasets`.", short="d", affects_metrics=False)
    protocol: Literal["one-for-one", "unified", "kshot"] = _option(
        "one-for-one",
        "One model per category (one-for-one), one model for all (unified), or one per category from k images (kshot).",
        short="p",
        affects_metrics=False,
    )
    k: tuple[int, ...] = _option(
        (4,),
        "Training images per category with kshot; each number is a run.",
        short="k",
        required=True,
        affects_metrics=False,
        only_with=("protocol", "kshot"),
    )
    category: tuple[str, ...] = _option(
        (), "Only these categories, separated by commas; all if empty.", short="c", affects_metrics=False
    )
    layout: str = _option(
        "",
        "Layout of own images: a CSV file, or 'train=PATTERN; good=PATTERN; defect=PATTERN; mask=PATTERN'.",
        affects_metrics=False,
    )
    depth: int = _option(
        0,
        "Bits per channel of images with more than 8, as 12; 0 computes the range from the training images.",
        minimum=0,
        affects_metrics=False,
    )
    page: int = _option(
        0, "Page of image files with several, from 1; with 0 such files are errors.", minimum=0, affects_metrics=False
    )
    allow_large: bool = _option(
        False, "Read image files of more than 89 million pixels, up to 1 billion.", affects_metrics=False
    )
    seed: tuple[int, ...] = _option(
        (0,),
        "Seeds, separated by commas; each is a fit and, with kshot, a draw.",
        short="s",
        required=True,
        affects_metrics=False,
    )
    limit: int = _option(
        0, "Maximum number of training, of good and of defective test images per category; 0 is no limit.", minimum=0
    )
    one_at_a_time: bool = _option(
        False,
        "Vary one setting of a sweep at a time, from the defaults, instead of all combinations.",
        affects_metrics=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """How predictions are evaluated."""

    TITLE: ClassVar[str] = "Evaluation"

    selection: Literal["last", "oracle", "both"] = _option(
        "last",
        "Epoch to report: the last, the best on the test set (oracle, marked as such), or both.",
        affects_metrics=False,
    )
    eval_every: int = _option(
        10,
        "Epochs between two evaluations on the test set with oracle or both.",
        minimum=1,
        affects_metrics=False,
        only_with=("selection", "oracle", "both"),
    )
    calibrate: float = _option(
        0.0,
        "False positive rate of a decision threshold that is set on good images held out of training; 0 sets none.",
        minimum=0,
        below=1,
    )
    resolution: Literal["input", "original"] = _option(
        "input", "Pixel metrics at the size of the network's input, or at each image's original size."
    )
    map_precision: Literal["float16", "float32", "none"] = _option(
        "float16", "Precision of the stored anomaly maps.", affects_metrics=False
    )
    time: bool = _option(True, "Measure the latency of one image.", affects_metrics=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptions:
    """Device, precision and batch size of the computation."""

    TITLE: ClassVar[str] = "Compute"

    device: str = _option(
        "auto", "Device of torch: auto (the first GPU, else the CPU), cpu, cuda or cuda:1.", affects_metrics=False
    )
    precision: Literal["float32", "bfloat16", "float16"] = _option("float32", "Precision of the network.")
    compile: bool = _option(False, "Compile the networks with torch.compile for prediction.")
    threads: int = _option(
        0, "CPU threads of torch; 0 is torch's default.", minimum=0, below=1025, affects_metrics=False
    )
    preprocessing: Literal["shared", "paper"] = _option(
        "shared",
        "Preprocessing: the profile's, shared by all methods, or that of each method's paper.",
        affects_metrics=False,
    )
    batch_size: int = _option(8, "Images per call of predict.", minimum=1, affects_metrics=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionOptions:
    """Where fits run, and which files they store."""

    TITLE: ClassVar[str] = "Execution"

    keep_model: bool = _option(
        False, "Store the fitted methods, for bench predict, bench export and bench time.", affects_metrics=False
    )
    executor: Literal["local", "process", "ray"] = _option(
        "local", "Fit in this process, in a child process, or on a Ray cluster.", affects_metrics=False
    )
    timeout: float = _option(
        0.0,
        "Maximum seconds per fit, which then runs in a child process; 0 is no limit.",
        minimum=0,
        below=1e8,
        affects_metrics=False,
    )
    checkpoint_minutes: float = _option(
        5.0,
        "Minutes between two checkpoints of a fit, from which it continues after an interruption; 0 uses none.",
        minimum=0,
        affects_metrics=False,
    )
    max_memory: float = _option(
        0.0,
        "Memory in GB that a fit may need by its estimate; 0 is that of the device, or of the container.",
        minimum=0,
        affects_metrics=False,
    )
    address: str = _option(
        "",
        "Address of a running Ray cluster, as auto or ray://head:10001; empty starts one on this machine.",
        affects_metrics=False,
        only_with=("executor", "ray"),
    )
    gpus_per_task: float = _option(
        1.0,
        "GPUs per fit on Ray; below 1, several fits share a GPU and no latency is measured.",
        affects_metrics=False,
        only_with=("executor", "ray"),
    )
    ship_data: bool = _option(
        False,
        "Send the images to the Ray nodes, which otherwise read them at the same paths.",
        affects_metrics=False,
        only_with=("executor", "ray"),
    )


OptionGroup = TaskOptions | EvaluationOptions | ComputeOptions | ExecutionOptions

OPTION_GROUPS: Mapping[str, type[OptionGroup]] = MappingProxyType(
    {
        "tasks": TaskOptions,
        "evaluation": EvaluationOptions,
        "compute": ComputeOptions,
        "execution": ExecutionOptions,
    }
)
"""The groups by the name of their field in Plan."""


@dataclass(frozen=True, slots=True)
class Option:
    """The definition of one option, as the interfaces use it.

    Attributes:
        name: name in bench.toml and Python; the command line uses `--` and hyphens.
        group: name of its group in OPTION_GROUPS. title: the group's title.
        type: the declared type. choices: the allowed values of a Literal, else empty.
        default: the default. help: the help text. short: one-letter form or "".
        minimum, below: the range, None if unlimited. required: whether an empty value is an error.
        affects_metrics: whether it is part of a run's identity.
        only_with: name of another option, and the values of it with which this one has an effect; empty if it has one
            with all.
    """

    name: str
    group: str
    title: str
    type: Any
    choices: tuple[Any, ...]
    default: Any
    help: str
    short: str
    minimum: float | None
    below: float | None
    required: bool
    affects_metrics: bool
    only_with: tuple[str, ...]

    @property
    def flag(self) -> str:
        """Return the option as on the command line: "--eval-every"."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: Any, origin: str) -> None:
        """Raise BenchError if a value of the right type is out of range."""
        if self.required and not value:
            raise BenchError(f"{self.name} must not be empty; {origin} gives no value. Name at least one.")
        if self.minimum is not None and value < self.minimum:
            raise BenchError(f"{self.name} must be >= {self.minimum:g}; {origin} gives {value}. Raise it.")
        if self.below is not None and value >= self.below:
            raise BenchError(f"{self.name} must be < {self.below:g}; {origin} gives {value}. Lower it.")
        if self.name == "gpus_per_task" and (value <= 0 or (value > 1 and value % 1)):
            raise BenchError(
                f"gpus_per_task must be a fraction of one GPU or a whole number; {origin} gives {value:g}. "
                f"Pass 0.5 or 2, for example."
            )


def options() -> Iterator[Option]:
    """Yield all options, group by group, in the order of their definition."""
    for group, group_class in OPTION_GROUPS.items():
        hints = get_type_hints(group_class)
        for entry in fields(group_class):
            hint = hints[entry.name]
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            yield Option(entry.name, group, group_class.TITLE, hint, choices, _default(entry), **entry.metadata)


def _default(entry: Field[Any]) -> Any:
    assert entry.default is not MISSING
    return entry.default


OPTIONS: Mapping[str, Option] = MappingProxyType({option.name: option for option in options()})
"""All options by name."""


def options_that_affect_metrics(groups: Mapping[str, OptionGroup]) -> dict[str, dict[str, Any]]:
    """Return, by group, the values of the options that affect a run's metrics; groups without any are left out."""
    values = {
        group: {
            option.name: getattr(options_of_group, option.name)
            for option in OPTIONS.values()
            if option.group == group and option.affects_metrics
        }
        for group, options_of_group in groups.items()
    }
    return {group: names for group, names in values.items() if names}
