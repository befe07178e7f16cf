"""A kept run as an ONNX file: preprocessing and method in one graph, checked against the method itself.

The graph takes `image`, (H, W, 3) uint8 RGB of any size, and answers `score`, (1,), and `map`, (1, h, w), both float32,
higher being more anomalous. Inside are the resize, the cut, the scaling to [0, 1], and all that the method does,
normalisation, smoothing and score included. Left to the caller: to decode the file to 8-bit RGB (as Pillow's
`convert("RGB")` does; 16-bit files scaled by 255 / 65535), and to compare the score with the threshold, which stands in
the file's metadata where the run was calibrated.
"""

import logging
import re
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import compose
from onnxscript import opset18
from torch import Tensor, nn

from bench.data.images import FileImages, decode
from bench.dataset import Sample
from bench.deploy.onnx_preprocessing import IMAGE, OPSET, PREPARED, preprocessing_graph
from bench.deploy.saved_model import SavedModel
from bench.errors import BenchError
from bench.method import Method

SCORE, MAP = "score", "map"

NETWORK_TOLERANCE = 1e-3
"""By so much, of the largest value, may the method's answers in ONNX Runtime differ on the same prepared image."""

END_TO_END_TOLERANCE = 2e-2
"""The same for the whole graph, where a pixel in a thousand may be resized to the next of 256 values."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The file that was written, and the largest differences on so many images, as shares of the largest value."""

    path: Path
    network: float
    whole: float
    images: int


def export(kept: SavedModel, to: Path, images: Sequence[Path]) -> Exported:
    """Writes the run as ONNX and compares it with the method on the images.

    Raises BenchError where the method can't be written so, answers otherwise, or `to` can't be written to.
    """
    if kept.method.setup.precision != "float32":
        raise BenchError(f"A run in float32 can be exported; this is in {kept.method.setup.precision}. Make another.")
    network = _network(kept)
    whole = compose.merge_models(preprocessing_graph(kept.preprocessing), network, [(PREPARED, PREPARED)])
    onnx.helper.set_model_props(whole, _told(kept))
    onnx.checker.check_model(whole)
    found = _compared(kept, network, whole, images, to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(whole.SerializeToString())
    except OSError as error:
        raise BenchError(f"--out names a file that can be written; {to} is none ({error.strerror}).") from error
    return found


class _Asked(nn.Module):
    """A method as torch's exporter wants it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        found = self.method.predict(prepared)
        return found.scores, found.maps


def _network(kept: SavedModel) -> onnx.ModelProto:
    rows, columns = kept.preprocessing.size
    example = torch.rand(1, 3, rows, columns)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")  # the exporter's own, about itself
            kept.method.predict(example)  # what a method works out once is there before it is traced
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                _Asked(kept.method),
                (example,),
                input_names=[PREPARED],
                output_names=[SCORE, MAP],
                opset_version=OPSET,
                dynamo=True,
                custom_translation_table={torch.ops.aten._cdist_forward.default: _distances},  # noqa: SLF001  its only name
                verbose=False,
            )
    except Exception as error:
        name = kept.record.run.method
        raise BenchError(
            f"A method can be exported where torch can write its predict as ONNX; that of {name} it can't: "
            f"{_reason(error)}. bench predict uses the run as it is."
        ) from error
    assert program is not None
    return program.model_proto


def _distances(one: Any, other: Any, p: float, compute_mode: int | None = None) -> Any:  # noqa: ARG001  torch gives it
    """(..., n, d) and (..., m, d) -> (..., n, m) Euclidean distances, which the exporter can't write by itself."""
    if p != 2:
        raise ValueError(f"only Euclidean distances can be written; p is {p}")
    op: Any = opset18  # its types know no constants
    apart = op.Sub(op.Unsqueeze(one, [-2]), op.Unsqueeze(other, [-3]))
    return op.Sqrt(op.ReduceSum(op.Mul(apart, apart), [-1], keepdims=0))


def _reason(error: Exception) -> str:
    """What stopped torch's exporter, from the innermost error, without colours and in one line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    told = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return told.splitlines()[0]


def _compared(
    kept: SavedModel, network: onnx.ModelProto, whole: onnx.ModelProto, images: Sequence[Path], to: Path
) -> Exported:
    """The differences on the images; BenchError where they are too large."""
    alone, together = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for model in (network, whole)
    )
    apart = np.zeros(2)
    for path in images:
        (prepared,) = FileImages([Sample(path, kept.record.category, "test")], kept.preprocessing).batches(1)
        with torch.no_grad():
            wanted = kept.method.predict(prepared)
        expected = [wanted.scores.numpy(), wanted.maps.numpy()]
        told = alone.run([SCORE, MAP], {PREPARED: prepared.numpy()})
        seen = together.run([SCORE, MAP], {IMAGE: np.asarray(decode(path))})
        apart = np.maximum(apart, [_apart(told, expected), _apart(seen, expected)])
    if not (apart[0] <= NETWORK_TOLERANCE and apart[1] <= END_TO_END_TOLERANCE):  # NaN is neither
        raise BenchError(
            f"An exported run answers as the method does, but for {NETWORK_TOLERANCE:.1%} ({END_TO_END_TOLERANCE:.0%} with the resize); "
            f"{kept.record.run.name} differs by {apart[0]:.2%} ({apart[1]:.2%}). Nothing was written."
        )
    return Exported(to, float(apart[0]), float(apart[1]), len(images))


def _apart(found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-12)) for one, other in pairs)


def _told(kept: SavedModel) -> dict[str, str]:
    """What the file tells of itself."""
    record = kept.record
    told = {
        "maskbench": version("maskbench"),
        "method": record.run.title,
        "dataset": record.run.dataset,
        "category": record.category,
        "run": kept.path.parent.parent.name,
        "input": "image: (height, width, 3) uint8 RGB, any size",
    }
    limits = {"threshold": record.threshold, "pixel_threshold": record.pixel_threshold}
    return told | {name: repr(value) for name, value in limits.items() if value is not None}
