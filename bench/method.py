"""The contract of a method: fit on good images, predict an anomaly score and an anomaly map for each image.

A file `methods/<name>.py` defines `Settings`, a frozen dataclass with a default for every field, and `METHOD`, a
subclass of `Method`. The name of the file is the name of the method; there is nothing to register. Title, aliases and
the settings of each profile are literal constants in the same file: see `bench.config.method_metadata`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.preprocessing import Preprocessing as Preprocessing  # noqa: PLC0414  methods import it from here

if TYPE_CHECKING:
    from bench.weights import Weights

M = TypeVar("M", bound=nn.Module)

Precision = Literal["float32", "bfloat16", "float16"]

Progress = Callable[[int, int, float | None], None]
"""Called as `progress(done, total, loss)`; `loss` is None if nothing is minimized.

After epochs with a loss, a call with `loss` None reports work that changes no prediction; it does not count as an
epoch.
"""


class Stateful(Protocol):
    """An object with a state: an optimizer, a scheduler, a `bench.training.TrainingStep`."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Set the state."""


State = nn.Module | torch.Generator | dict[str, Any] | Stateful
"""What the epochs of a fit change, as `Method.epochs` takes it; a dict holds numbers, tensors and lists of them."""

EpochLoop = Callable[["Method", int, tuple[State, ...], bool], Iterator[int]]
"""Yields the numbers of the epochs and saves the state between them."""

NOT_FITTED = (
    "A method must be fitted or loaded before predict, explain and state_dict. Call fit or load_state_dict first."
)


class NotFittedError(BenchError):
    """A learned attribute was read before `fit` or `load_state_dict`."""

    def __init__(self) -> None:
        super().__init__(NOT_FITTED)


Info = dict[str, str | int | float | list[float]]
"""What a method states about itself in a record, by name."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a method gets in addition to its settings.

    Attributes:
        size: height and width of the images in pixels.
        device: device on which the method computes.
        seed: seed of all random numbers of the method; the global generators are seeded from it as well.
        weights: folder with backbone weights, searched first; None searches only packages and the hub.
        cache: folder for features of frozen backbones; None keeps them in memory.
        precision: precision of the network; maps and scores are computed in float32 in any case.
        compile: whether predictions use torch.compile, for methods with `supports_compile`.
    """

    size: tuple[int, int]
    device: torch.device
    seed: int
    weights: Path | None = None
    cache: Path | None = None
    precision: Precision = "float32"
    compile: bool = False


class Images(Protocol):
    """Good images to fit on; they can be iterated any number of times."""

    @property
    def content_hash(self) -> str:
        """Hash of the files' contents and their preprocessing: the key of a cache."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """Yield (b, 3, h, w) RGB in [0, 1] on the CPU, b <= size; `order` (n,) contains indices, None is file order."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Scores and maps of b images. Higher is more anomalous; the scale is arbitrary; all values are finite.

    Attributes:
        scores: (b,) one value per image.
        maps: (b, h, w) one value per pixel, at the size of the input images.

    Both are float32 on the method's device, and later calls of predict do not overwrite them.
    """

    scores: Tensor
    maps: Tensor


class Method(ABC):
    """An anomaly detector: constructed, fitted once on good images, then used to predict.

    A method normalizes images itself and never gets labels or test images. An image gets the same score alone and in a
    batch. All random numbers come from `setup.seed`, so two fits with one seed give the same predictions.

    The learned state: `learned` names the attributes that contain it, tensors or modules. `fit` sets them, at the
    latest before its last call to `progress`; an iterative method sets them before each call. The base class implements
    `state_dict`, `load_state_dict` and the check that the method is fitted; a subclass overrides none of them:

    - Reading a learned attribute before it is set raises NotFittedError.
    - A learned module `x` is constructed by a method `build_x() -> nn.Module` of the subclass. `fit` calls
      `self.initialize(self.build_x)`, and `load_state_dict` loads the stored tensors into such a module, in eval mode.
    - A learned attribute with a default in the class (`decoder: Decoder | None = None`) is optional.
    - Setting a learned attribute discards all values of `functools.cached_property`. What is derived from the learned
      state (a compiled copy for predictions, an index) is therefore a cached property, and is never out of date.
    """

    learned: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that `fit` sets: tensors and modules."""

    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing()
    """The preprocessing of the paper, used with `--preprocessing paper`."""

    iterative: ClassVar[bool] = False
    """True if progress counts epochs and predict works inside progress: a selection rule can then choose an epoch."""

    max_instability: ClassVar[float] = 1e-3
    """Largest change of a prediction, relative to the largest value, with the number of threads, the batch size and
    rounding of the images; `bench check` measures it. A method with a larger one states why."""

    supports_compile: ClassVar[bool] = False
    """True if `setup.compile` has an effect; a run of another method with --compile is an error."""

    export_obstacle: ClassVar[str] = ""
    """Why `bench export` cannot export the method, as a clause; "" if it can."""

    pretrains: ClassVar[bool] = False
    """True if `pretrain` is to be called before `fit`."""

    checkpoint: ClassVar[str] = ""
    """Name of the file that the authors release per category, for example "AMAE.pth"; "" without `from_checkpoint`."""

    backbone_settings: ClassVar[tuple[str, ...]] = ("backbone",)
    """Settings that contain the tag of a frozen backbone; `file_hashes` and `info` cover the weights of each."""

    epoch_loop: EpochLoop | None = None
    """Set by a fit that writes checkpoints; see `epochs`."""

    def __init__(self, settings: Any, setup: Setup) -> None:
        self.settings = settings
        self.setup = setup

    @abstractmethod
    def fit(self, train: Images, progress: Progress) -> None:
        """Learn from good images and set the learned attributes.

        Raises:
            BenchError: if a loss is not finite.
        """

    @abstractmethod
    def predict(self, images: Tensor) -> Prediction:
        """Return scores and maps of (b, 3, h, w) RGB in [0, 1] on the method's device.

        Raises:
            NotFittedError: before `fit` or `load_state_dict`.
        """

    def pretrain(self, others: Mapping[str, Images], progress: Progress) -> None:
        """Learn from the other categories, before `fit`. Only called if `pretrains_with` returns True.

        It is not called if there are no other categories (one category, or one model for all of them), so `fit` must
        work without it. What it learns for predict belongs in `learned`. Its calls to `progress` are separate from
        those of `fit`: no epoch of it is evaluated.

        Args:
            others: good training images by category, without the category that `fit` gets. They are grouped because
                some methods form pairs within one category.
            progress: as in `fit`.
        """
        raise NotImplementedError(f"{type(self).__name__} sets pretrains = True, so it must define pretrain.")

    def explain(self, images: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return pictures by name: (b, h, w) maps or (b, 3, h, w) RGB in [0, 1]. Default: none.

        A mask-based method names a typical mask "mask", 1 where it masks: the figure "masks" of reports compares these.
        """
        return {}

    def info(self) -> Info:
        """Return what the record states about a fitted method, as values for JSON.

        By default the number of trainable parameters, and tag, source and sha256 of each backbone's weights.
        """
        modules = [module for name in self.learned if isinstance(module := vars(self).get(name), nn.Module)]
        parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
        values: Info = {"trainable_parameters": sum(p.numel() for p in parameters)}
        for name, weights in self._backbone_weights(self.settings, self.setup.weights).items():
            values |= {name: weights.tag, f"{name}_source": weights.source, f"{name}_sha256": weights.sha256}
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """Return the learned tensors as contiguous copies on the CPU, by name: all that `load_state_dict` needs.

        A tensor has the name of its attribute; the tensors of a module have the name of its attribute as prefix.

        Raises:
            NotFittedError: before `fit` or `load_state_dict`.
        """
        tensors: dict[str, Tensor] = {}
        for name in self.learned:
            value = getattr(self, name)
            if isinstance(value, nn.Module):
                tensors |= {f"{name}.{key}": tensor for key, tensor in value.state_dict().items()}
            elif value is not None:
                tensors[name] = value
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the learned attributes from what `state_dict` returned; the tensors are copied.

        Raises:
            BenchError: if the tensors do not fit the settings.
        """
        unused = dict(state)
        for name in self.learned:
            prefix = f"{name}."
            tensors = {key.removeprefix(prefix): unused.pop(key) for key in state if key.startswith(prefix)}
            if tensors:
                module = self.initialize(getattr(self, f"build_{name}"))
                try:
                    module.load_state_dict(tensors)
                except RuntimeError as error:
                    lines = str(error).split("\n\t")  # torch puts a heading before the list of differences
                    raise _state_mismatch(self, lines[min(1, len(lines) - 1)]) from error
                setattr(self, name, module.eval())
            elif name in unused:
                setattr(self, name, unused.pop(name).to(self.setup.device, copy=True))
            elif hasattr(type(self), name):
                setattr(self, name, getattr(type(self), name))
            else:
                raise _state_mismatch(self, f"It has no tensors for '{name}'.")
        if unused:
            raise _state_mismatch(self, f"It has unknown tensors, for example '{next(iter(unused))}'.")

    def initialize(self, build: Callable[[], M], seed: int | None = None) -> M:
        """Return the module that `build` constructs, on the method's device.

        Initial weights are drawn on the CPU from `seed` (default: `setup.seed`), so they are the same on every device;
        the global random generator is left unchanged.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.setup.seed if seed is None else seed)
            return build().to(self.setup.device)

    def epochs(self, total: int, *state: State, is_last: bool = True) -> Iterator[int]:
        """Yield 1 to `total`; in a fit that was interrupted, the epochs after its last checkpoint.

        >>> for epoch in self.epochs(settings.epochs, network, training, generator):

        A checkpoint contains the state of these objects, the learned attributes and the global random generators, as
        they are after an epoch. With a loop over `range`, an interrupted fit starts again from the beginning.

        Args:
            total: number of epochs.
            state: all objects that are constructed before the loop and changed in it.
            is_last: whether this is the last such loop of `pretrain` and `fit` together.
        """
        if self.epoch_loop is None:
            return iter(range(1, total + 1))
        return self.epoch_loop(self, total, state, is_last)

    @classmethod
    def from_checkpoint(cls, path: Path, settings: Any, setup: Setup) -> "Method":  # noqa: ARG003
        """Return a fitted method from a file that its authors released; no code in the file is executed.

        Raises:
            BenchError: if the file has another format, or other sizes than the settings.
        """
        raise BenchError(f"{cls.__name__} cannot read a released checkpoint ({path.name}). Leave out --checkpoint.")

    @classmethod
    def file_hashes(cls, settings: Any, weights: Path | None) -> dict[str, str]:
        """Return hashes of the files, except images, that determine the predictions, without loading them.

        By default the sha256 of each backbone's weights, by the name of the setting. The hashes are part of the run's
        identity.

        Args:
            settings: settings of the method.
            weights: folder with backbone weights, searched first; or None.
        """
        return {name: backbone.sha256 for name, backbone in cls._backbone_weights(settings, weights).items()}

    @classmethod
    def pretrains_with(cls, settings: Any) -> bool:  # noqa: ARG003
        """Return whether a fit with these settings calls `pretrain`."""
        return cls.pretrains

    @classmethod
    def estimate_memory(cls, settings: Any, size: tuple[int, int], n_images: int) -> int | None:  # noqa: ARG003
        """Return the estimated peak memory in bytes of a fit on `n_images` images of (h, w) pixels, or None."""
        return None

    @classmethod
    def _backbone_weights(cls, settings: Any, folder: Path | None) -> "dict[str, Weights]":
        """Return the weights of each backbone by the name of its setting."""
        tags = {name: tag for name in cls.backbone_settings if (tag := getattr(settings, name, ""))}
        if not tags:
            return {}
        from bench.weights import find_weights  # timm takes seconds to import

        return {name: find_weights(tag, folder) for name, tag in tags.items()}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.learned:
            for key in [key for key in vars(self) if isinstance(getattr(type(self), key, None), cached_property)]:
                del self.__dict__[key]
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # for a type checker, the attributes have the types that the subclass declares

        def __getattr__(self, name: str) -> Any:
            """Raise NotFittedError for a learned attribute that is not set yet."""
            if name in type(self).learned:
                raise NotFittedError
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")


def _state_mismatch(method: Method, reason: str) -> BenchError:
    return BenchError(
        f"The saved state of {type(method).__name__} must fit its settings. {reason} "
        "Use the settings that it was fitted with."
    )
