"""A method whose code outside of fit and predict raises errors; its setting chooses where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.method import Images, Method, Prediction, Progress

TITLE = "Hostile"


class UnprintableError(Exception):
    """An error whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS = {
    "ValueError": lambda: ValueError("raised by the plug-in"),
    "SystemExit": lambda: SystemExit("raised by the plug-in"),
    "GeneratorExit": lambda: GeneratorExit("raised by the plug-in"),
    "BaseException": lambda: BaseException("raised by the plug-in"),
    "UnprintableError": UnprintableError,
    "a long text": lambda: ValueError("x" * 50_000_000),
}


@dataclass(frozen=True, slots=True)
class Settings:
    location: str = ""
    error: str = "ValueError"

    def __post_init__(self) -> None:
        fail("Settings", self)


def fail(location: str, settings: Settings) -> None:
    """Raise the chosen error if this is the chosen location."""
    if settings.location == location:
        error = ERRORS[settings.error]()
        raise error


class Hostile(Method):
    """The mean of the training images; distances from it are the maps."""

    learned = ("mean",)
    mean: Tensor  # (3, h, w)

    def __init__(self, settings: Any, setup: Any) -> None:
        super().__init__(settings, setup)
        fail("__init__", settings)

    def fit(self, train: Images, progress: Progress) -> None:
        fail("fit", self.settings)
        self.mean = torch.stack([batch.mean(dim=0) for batch in train.batches(1)]).mean(dim=0)
        progress(1, 1, True if self.settings.location == "a loss of another type" else None)

    def predict(self, images: Tensor) -> Prediction:
        fail("predict", self.settings)
        maps = (images - self.mean).square().mean(dim=1)  # (b, h, w)
        scores = maps.amax(dim=(1, 2))
        if self.settings.location == "complex predictions":
            return Prediction(scores.to(torch.complex64), maps.to(torch.complex64))
        if self.settings.location == "integer predictions":
            return Prediction(scores.int(), maps.int())
        return Prediction(scores, maps)

    def explain(self, images: Tensor) -> dict[str, Tensor]:
        fail("explain", self.settings)
        match self.settings.location:
            case "a path as name":
                return {"a/b": images[:, 0]}
            case "a name with NUL":
                return {"a\0b": images[:, 0]}
            case "a long name":
                return {"x" * 300: images[:, 0]}
            case "a number as name":
                return {3: images[:, 0]}  # type: ignore[dict-item]
            case "pictures of two channels":
                return {"map": images[:, :2]}
            case "pictures without a size":
                return {"map": images[:, 0, :0]}
            case "too few pictures":
                return {"map": images[:1, 0]}
            case "no dictionary":
                return None  # type: ignore[return-value]
            case "NaN pictures":
                return {"map": images[:, 0] * torch.nan}
        return {}

    def info(self) -> dict[str, Any]:
        fail("info", self.settings)
        return {"object": object()} if self.settings.location == "info is not JSON" else {}

    def state_dict(self) -> dict[str, Tensor]:
        fail("state_dict", self.settings)
        return super().state_dict()

    @classmethod
    def file_hashes(cls, settings: Any, weights: Path | None) -> dict[str, str]:
        fail("file_hashes", settings)
        return {}

    @classmethod
    def estimate_memory(cls, settings: Any, size: tuple[int, int], n_images: int) -> Any:
        fail("estimate_memory", settings)
        return "many" if settings.location == "memory as text" else 0


METHOD = Hostile
