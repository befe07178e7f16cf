"""Export of a saved model to ONNX: preprocessing and method in one graph, compared with the method itself.

The graph has the input `image`, (H, W, 3) uint8 RGB of any size, and the outputs `score`, (1,), and `map`, (1, h, w),
both float32, higher is more anomalous. It contains the resize, the crop, the scaling to [0, 1] and all of the method,
including normalization, smoothing and score. The caller decodes the file to 8-bit RGB (as Pillow's `convert("RGB")`
does, upright; more than 8 bits per channel are scaled from the values `black` and `white` of the metadata to 0 and 255)
and compares the score with the threshold, which is in the metadata of the file if the run was calibrated.
"""

import logging
import re
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
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

from bench.data.decoding import decode
from bench.data.images import FileImages
from bench.dataset import Sample
from bench.deploy.onnx_preprocessing import IMAGE, OPSET, PREPROCESSED, preprocessing_graph
from bench.deploy.saved_model import SavedModel
from bench.errors import BenchError, error_text
from bench.files import write_files
from bench.method import Method
from bench.process_state import restored_state

SCORE, MAP = "score", "map"

NETWORK_TOLERANCE = 1e-3
"""Largest difference between ONNX Runtime and the method on the same preprocessed image, relative to the maximum."""

END_TO_END_TOLERANCE = 2e-2
"""The same for the whole graph, in which the resize may round one pixel in a thousand to the adjacent 8-bit value."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The file and how much it differs from the method.

    Attributes:
        path: the ONNX file.
        network_difference: largest difference on preprocessed images, relative to the largest value.
        total_difference: the same for the whole graph, resize included.
        n_images: number of images that were compared.
    """

    path: Path
    network_difference: float
    total_difference: float
    n_images: int


def export(saved: SavedModel, path: Path, images: Sequence[Path]) -> ExportResult:
    """Write the model as ONNX after a comparison with the method on the images.

    Raises:
        BenchError: torch cannot export the method, its predictions differ, or `path` cannot be written.
    """
    if saved.method.setup.precision != "float32":
        raise BenchError(
            f"Export needs a run with precision float32, got {saved.method.setup.precision}. Rerun with "
            f"--precision float32 --keep-model."
        )
    if saved.method.export_obstacle:
        raise BenchError(
            f"Export needs a method that torch.onnx.export supports; {saved.record.run.method} is not one, because "
            f"{saved.method.export_obstacle}. Use bench predict instead."
        )
    network = _export_network(saved)
    model = compose.merge_models(preprocessing_graph(saved.preprocessing), network, [(PREPROCESSED, PREPROCESSED)])
    onnx.helper.set_model_props(model, _metadata(saved))
    onnx.checker.check_model(model)
    result = _compare(saved, network, model, images, path)
    try:
        write_files({path: model.SerializeToString()})
    except OSError as error:
        raise BenchError(f"--out must be a writable file; {path} is not ({error.strerror}). Choose another.") from error
    return result


class _ExportWrapper(nn.Module):
    """A method as the module that torch.onnx.export needs."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.method.predict(images)
        return prediction.scores, prediction.maps


def _export_network(saved: SavedModel) -> onnx.ModelProto:
    rows, columns = saved.preprocessing.size
    example = torch.rand(1, 3, rows, columns)
    try:
        with (
            restored_state(saved.record.run.title),
            torch.no_grad(),
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
        ):
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            saved.method.predict(example)  # fills caches of the method before it is traced
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                _ExportWrapper(saved.method),
                (example,),
                input_names=[PREPROCESSED],
                output_names=[SCORE, MAP],
                opset_version=OPSET,
                dynamo=True,
                custom_translation_table={torch.ops.aten._cdist_forward.default: _cdist},  # noqa: SLF001  its only name
                verbose=False,
            )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BenchError(
            f"torch.onnx.export must support all operations of predict; for {saved.record.run.method} it fails: "
            f"{_root_cause(error)}. Use bench predict instead."
        ) from error
    assert program is not None
    model = program.model_proto
    for element in (*model.graph.node, *model.graph.value_info, *(n for f in model.functions for n in f.node)):
        del element.metadata_props[:]  # the exporter's stack traces name the folders of this machine
        element.doc_string = ""
    return model


def _cdist(left: Any, right: Any, p: float, compute_mode: int | None = None) -> Any:  # noqa: ARG001  torch's signature
    """Translate torch.cdist, which the exporter lacks: (..., n, d) and (..., m, d) -> (..., n, m) Euclidean."""
    if p != 2:
        raise ValueError(f"only Euclidean distances can be exported, got p = {p}")
    op: Any = opset18  # its type annotations do not cover constants
    difference = op.Sub(op.Unsqueeze(left, [-2]), op.Unsqueeze(right, [-3]))
    return op.Sqrt(op.ReduceSum(op.Mul(difference, difference), [-1], keepdims=0))


def _root_cause(error: BaseException) -> str:
    """Return the first line of the innermost error, without terminal colors."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", error_text(error)).strip() or type(error).__name__
    return text.splitlines()[0]


def _compare(
    saved: SavedModel, network: onnx.ModelProto, model: onnx.ModelProto, images: Sequence[Path], path: Path
) -> ExportResult:
    """Return the differences on the images. Raises BenchError if one exceeds its tolerance."""
    network_session, model_session = (
        onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        for graph in (network, model)
    )
    differences = np.zeros(2)  # network, whole graph
    for image in images:
        is_stored = image.resolve().is_relative_to(saved.path.parent)  # a picture of the record, which has one page
        preprocessing = replace(saved.preprocessing, page=0 if is_stored else saved.preprocessing.page)
        (batch,) = FileImages([Sample(image, saved.record.category, "test")], preprocessing).batches(1)
        prediction = saved.predict(batch)
        expected = [prediction.scores.numpy(), prediction.maps.numpy()]
        network_outputs = network_session.run([SCORE, MAP], {PREPROCESSED: batch.numpy()})
        model_outputs = model_session.run([SCORE, MAP], {IMAGE: np.asarray(decode(image, preprocessing))})
        differences = np.maximum(
            differences,
            [_max_relative_difference(network_outputs, expected), _max_relative_difference(model_outputs, expected)],
        )
    if not (differences[0] <= NETWORK_TOLERANCE and differences[1] <= END_TO_END_TOLERANCE):  # also excludes NaN
        raise BenchError(
            f"The exported model must equal the method within {NETWORK_TOLERANCE:.1%} ({END_TO_END_TOLERANCE:.0%} with "
            f"the resize); {saved.record.run.name} differs by {differences[0]:.2%} ({differences[1]:.2%}). "
            f"Nothing was written; use bench predict instead."
        )
    return ExportResult(path, float(differences[0]), float(differences[1]), len(images))


def _max_relative_difference(outputs: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> float:
    pairs = zip(outputs, expected, strict=True)
    return max(float(np.abs(output - target).max() / max(np.abs(target).max(), 1e-12)) for output, target in pairs)


def _metadata(saved: SavedModel) -> dict[str, str]:
    """Return the metadata of the ONNX file: thresholds if the run was calibrated, black and white if it has them."""
    record = saved.record
    metadata = {
        "maskbench": version("maskbench"),
        "method": record.run.title,
        "dataset": record.run.dataset,
        "category": record.category,
        "run": saved.path.parent.parent.name,
        "input": "image: (height, width, 3) uint8 RGB, any size",
    }
    numbers = {"threshold": record.threshold, "pixel_threshold": record.pixel_threshold}
    numbers |= {"black": saved.preprocessing.black, "white": saved.preprocessing.white}
    return metadata | {name: repr(value) for name, value in numbers.items() if value is not None}
