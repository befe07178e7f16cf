"""The contract of a method: fit on good images, predict a score and a map for each image.

A `methods/<name>.py` defines `Settings`, a frozen dataclass with a default for every field, and `METHOD`, a subclass
of `Method`. Nothing registers it: the file's name is the method's name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from bench.errors import BenchError

Resample = Literal["bilinear", "bicubic", "lanczos", "nearest"]
Precision = Literal["float32", "bfloat16", "float16"]

Progress = Callable[[int, int, float | None], None]
"""Called as `progress(done, total, loss)`; `loss` is None where nothing is minimised.

After epochs with a loss, a call without one tells of work that changes no prediction: it counts as no epoch.
"""

NOT_FITTED = "A method predicts only after fit or restore; this one has had neither. Call one of them first."


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a file becomes an input; its mask goes the same way by nearest neighbour.

    Attributes:
        height: pixels.
        width: pixels.
        resample: the filter of the resize.
        keep_aspect: True resizes the shorter side and cuts out the centre; False squeezes both sides.
        crop: side in pixels of a square cut from the centre after the resize, or None. PatchCore: 256, then 224.
    """

    height: int = 256
    width: int = 256
    resample: Resample = "bilinear"
    keep_aspect: bool = False
    crop: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of what comes out."""
        return (self.crop, self.crop) if self.crop else (self.height, self.width)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a method is given besides its own settings.

    Attributes:
        size: height and width in pixels of the images that will come.
        device: where it computes.
        seed: of everything that it draws; the global generators are seeded from it as well.
        weights: a folder with backbone weights, looked in first.
        cache: a folder for frozen features, or None to keep them in memory.
        precision: of the network; maps and scores are formed in float32 in any case.
        compile: whether predictions go through networks as torch.compile makes them, where `Method.compiles`.
    """

    size: tuple[int, int]
    device: torch.device
    seed: int
    weights: Path | None = None
    cache: Path | None = None
    precision: Precision = "float32"
    compile: bool = False


class Images(Protocol):
    """Good images to fit on, walkable as often as wished."""

    @property
    def digest(self) -> str:
        """Of the files' contents and their preparation: the key of any cache."""

    def __len__(self) -> int:
        """How many images there are."""

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """(b, 3, h, w) RGB in [0, 1] on the CPU, b <= size; `order` (n,) holds indices, None walks in file order."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a method answers for b images. Higher is more anomalous; no scale is promised; every value is finite.

    Attributes:
        scores: (b,) one number an image.
        maps: (b, h, w) one number a pixel, at the size of the images given.

    Both lie on the method's device, in float32, and stay valid after the next predict.
    """

    scores: Tensor
    maps: Tensor


class Method(ABC):
    """An anomaly detector: made, fitted once on good images, then asked.

    It normalises inside itself and never sees a label or a test image. An image scores the same alone as in a batch.
    Its generators are drawn from `setup.seed`, so two fits with one seed answer alike.
    """

    native: ClassVar[Preparation] = Preparation()
    """The paper's own input, used with `--preparation native`."""

    iterative: ClassVar[bool] = False
    """True where progress counts epochs and predict works inside progress, so a selection rule can choose an epoch."""

    compiles: ClassVar[bool] = False
    """True where `setup.compile` has an effect; elsewhere a run with --compile is refused."""

    checkpoint: ClassVar[str] = ""
    """The file that the authors release for each category, as "AMAE.pth"; "" where `from_checkpoint` can't read one."""

    def __init__(self, settings: Any, setup: Setup) -> None:
        self.settings = settings
        self.setup = setup

    @abstractmethod
    def fit(self, train: Images, progress: Progress) -> None:
        """Learns what is normal. Leaves itself ready to predict. Raises BenchError where a loss stops being finite."""

    @abstractmethod
    def predict(self, images: Tensor) -> Prediction:
        """Judges (b, 3, h, w) RGB in [0, 1] on the method's device. Raises BenchError(NOT_FITTED) before fit."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that a fitted method is, without its frozen backbone: what `restore` needs to answer the same."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Makes this method the one that `state` was taken from."""

    def explain(self, images: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Pictures for a person, by name: (b, h, w) maps or (b, 3, h, w) RGB in [0, 1]. None by default."""
        return {}

    def facts(self) -> dict[str, str | int | float]:
        """What the record tells of this method: trainable parameters, backbone with source and hash, bank rows."""
        return {}

    @classmethod
    def from_checkpoint(cls, path: Path, settings: Any, setup: Setup) -> "Method":  # noqa: ARG003
        """A fitted method from a file that its authors released; nothing in the file is ever run.

        Raises BenchError where the file has another form or other sizes than the settings say.
        """
        raise BenchError(f"{cls.__name__} reads no released checkpoint ({path.name}). Fit it: leave out --checkpoint.")

    @classmethod
    def inputs(cls, settings: Any, weights: Path | None) -> dict[str, str]:  # noqa: ARG003
        """Hashes of the files besides the images that decide the answer, found without loading them: the backbone's."""
        return {}

    @classmethod
    def memory(cls, settings: Any, size: tuple[int, int], images: int) -> int | None:  # noqa: ARG003
        """Estimated peak bytes of a fit on so many images, or None where nobody worked it out."""
        return None
