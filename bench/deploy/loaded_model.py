"""A saved model for Python: `bench.load(run).predict(images)`, `.explain(images)`, `.export(path)`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench import registry
from bench.config.bench_toml import expand_user
from bench.data.decoding import decode, decode_in_memory, file_errors
from bench.data.preprocessing import preprocess
from bench.deploy.saved_model import SavedModel, example_images, list_images
from bench.errors import BenchError
from bench.record import Record

if TYPE_CHECKING:
    from bench.deploy.export import ExportResult

ImageLike = str | Path | Image.Image | NDArray[Any]
"""A path, an image of Pillow, or an array (h, w), (h, w, 1), (h, w, 3) RGB or (h, w, 4) RGBA. An image or array gives
the predictions of the file with its pixels: orientation and more than 8 bits per channel are treated as those of files.
"""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for n images.

    Attributes:
        scores: (n,) anomaly scores, higher is more anomalous.
        maps: (n, h, w) anomaly maps at the size of the network's input.
        is_anomalous: (n,) whether the score exceeds the threshold of the run; None if the run was not calibrated.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    is_anomalous: NDArray[np.bool_] | None


class LoadedModel:
    """A fitted method of the store.

    Attributes:
        record: the record of its run.
    """

    def __init__(self, saved: SavedModel) -> None:
        self._saved = saved
        self.record: Record = saved.record

    def __repr__(self) -> str:
        """Return the method and the category."""
        return f"<{self.record.run.label(self.record.category)}>"

    def predict(self, images: ImageLike | Iterable[ImageLike]) -> Predictions:
        """Return the predictions for one image or several; an array (n, h, w, channels) is n images.

        Raises:
            BenchError: there is no image, or one cannot be read or has another type, shape or mode.
        """
        predictions = [self._saved.predict(image[None]) for image in self._tensors(images)]
        scores = torch.cat([prediction.scores for prediction in predictions]).float().cpu().numpy()
        maps = torch.cat([prediction.maps for prediction in predictions]).float().cpu().numpy()
        threshold = self.record.threshold  # compared in float64, as `bench predict` does
        return Predictions(scores, maps, None if threshold is None else scores.astype(np.float64) > threshold)

    @torch.no_grad()
    def explain(self, images: ImageLike | Iterable[ImageLike]) -> dict[str, NDArray[np.float32]]:
        """Return the pictures of the method by name: (n, h, w) maps or (n, 3, h, w) RGB in [0, 1].

        Raises BenchError as `predict`.
        """
        batch = torch.stack(self._tensors(images)).to(self._saved.method.setup.device)  # (n, 3, h, w)
        with registry.plugin_call("methods", self.record.run.method):
            pictures = self._saved.method.explain(batch)
        return {name: value.float().cpu().numpy() for name, value in pictures.items()}

    def export(self, path: str | Path, images: str | Path | Iterable[str | Path] = ()) -> "ExportResult":
        """Write the model as ONNX after a comparison on images.

        Args:
            path: file to write.
            images: images and folders of images; by default those stored with the record.

        Raises:
            BenchError: onnx is not installed, the model is not on the CPU, or as `bench export`.
        """
        try:
            from bench.deploy.export import export
        except ImportError as error:
            raise BenchError(f"export needs the package {error.name}: pip install 'maskbench[export]'") from error
        device = self._saved.method.setup.device
        if device.type != "cpu":
            raise BenchError(f"export needs a model on the CPU, got {device}. Load it with device='cpu'.")
        paths = [images] if isinstance(images, str | Path) else images
        compared = [image for image, _ in list_images([expand_user(each) for each in paths])]
        return export(self._saved, expand_user(path), compared or example_images(self._saved))

    def _tensors(self, images: Any) -> list[Tensor]:
        """Return the preprocessed images, each (3, h, w) in [0, 1] on the CPU; the types are checked here."""
        is_single = isinstance(images, str | Path | Image.Image) or not isinstance(images, Iterable)
        if is_single or (isinstance(images, np.ndarray) and images.ndim < 4):
            return [self._tensor(images, "the image")]
        tensors = [self._tensor(image, f"image {index}") for index, image in enumerate(images)]
        if not tensors:
            raise BenchError("At least one image is needed, got none. Pass a path, an image or an array.")
        return tensors

    def _tensor(self, value: Any, name: str) -> Tensor:
        preprocessing = self._saved.preprocessing
        if isinstance(value, str | Path):
            name = str(value)
            image = decode(expand_user(value), preprocessing)
        elif isinstance(value, Image.Image | np.ndarray):
            image = decode_in_memory(value, preprocessing, name)
        else:
            raise BenchError(
                f"An image must be a path, an image of Pillow or a NumPy array, got {type(value).__name__}. Convert it."
            )
        with file_errors(name, "An image"):
            pixels = np.array(preprocess(image, preprocessing))  # (h, w, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255  # (3, h, w)
