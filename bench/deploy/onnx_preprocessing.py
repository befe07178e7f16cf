"""Preprocessing of an image as an ONNX graph that reproduces Pillow's resize for images of any size.

Pillow resizes in two passes, along the rows and along the columns. Each is a weighted sum that is rounded to 8 bits. In
the graph both are matrix products with weights that are computed from the size of the image. The pixels are the same,
except if a sum lies at the boundary between two values. Newer versions of Pillow resize the columns of tall images
first, the graph always the rows, which changes some pixels of such an image by one level. The filters follow Pillow's
Resample.c.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bench.errors import BenchError
from bench.preprocessing import Preprocessing, Resample

OPSET = 18
IMAGE, PREPROCESSED = "image", "preprocessed"


class _Graph:
    """A graph under construction. Methods add nodes and return the name of the result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: float | NDArray[np.generic], dtype: type[np.generic] = np.float64) -> str:
        name = f"preprocessing_c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str | float, name: str = "", **attributes: Any) -> str:
        """Add a node. A number among the inputs becomes a constant in double precision."""
        name = name or f"preprocessing_{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name


def preprocessing_graph(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the graph `image` (H, W, 3) uint8 RGB of any size -> `preprocessed` (1, 3, h, w) float32 in [0, 1].

    It equals `bench.data.images.preprocess`.

    Raises:
        BenchError: the filter is "nearest", whose result depends on rounding inside Pillow.
    """
    if preprocessing.resample == "nearest":
        raise BenchError(
            "Export needs a resize with resample bilinear, bicubic or lanczos; this run has nearest. "
            "Change resample in the profile and rerun with --keep-model."
        )
    graph = _Graph()
    rows, columns = preprocessing.size
    shape = graph.add("Cast", graph.add("Shape", IMAGE), to=onnx.TensorProto.DOUBLE)
    image_height, image_width = (graph.add("Gather", shape, graph.constant(axis, np.int64), axis=0) for axis in (0, 1))
    height: str | float = float(preprocessing.height)
    width: str | float = float(preprocessing.width)
    if preprocessing.keep_aspect:
        scale = graph.add("Max", graph.add("Div", width, image_width), graph.add("Div", height, image_height))
        height, width = (
            graph.add("Max", side, graph.add("Round", graph.add("Mul", original, scale)))
            for side, original in ((height, image_height), (width, image_width))
        )
    pixels = graph.add("Cast", IMAGE, to=onnx.TensorProto.FLOAT)  # (H, W, 3)
    row_weights = _weights(graph, image_width, width, columns, preprocessing.resample)  # (w, W)
    pixels = _round(graph, graph.add("MatMul", row_weights, pixels))  # (H, w, 3)
    column_weights = _weights(graph, image_height, height, rows, preprocessing.resample)  # (h, H)
    pixels = graph.add("Reshape", pixels, graph.constant(np.array([0, columns * 3]), np.int64))  # (H, w * 3)
    pixels = _round(graph, graph.add("MatMul", column_weights, pixels))  # (h, w * 3)
    pixels = graph.add("Reshape", pixels, graph.constant(np.array([1, rows, columns, 3]), np.int64))  # (1, h, w, 3)
    pixels = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])  # (1, 3, h, w)
    graph.add("Div", pixels, graph.constant(255, np.float32), name=PREPROCESSED)
    image = helper.make_tensor_value_info(IMAGE, onnx.TensorProto.UINT8, ["height", "width", 3])
    output = helper.make_tensor_value_info(PREPROCESSED, onnx.TensorProto.FLOAT, [1, 3, rows, columns])
    proto = helper.make_graph(graph.nodes, "preprocessing", [image], [output], graph.constants)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _weights(graph: _Graph, size: str, target: str | float, cropped: int, resample: Resample) -> str:
    """Return the resize weights along one axis, (cropped, size).

    Args:
        graph: the graph.
        size: number of pixels of the image.
        target: number of pixels after the resize.
        cropped: number of pixels after the center crop.
        resample: the filter.
    """
    first = graph.add("Floor", graph.add("Div", graph.add("Sub", target, float(cropped)), 2.0))
    position = graph.add("Add", graph.constant(np.arange(cropped)[:, None] + 0.5), first)  # (cropped, 1)
    step = graph.add("Div", size, target)
    center = graph.add("Mul", position, step)
    indices = graph.add("Range", 0.0, size, 1.0)  # (size,)
    difference = graph.add("Sub", graph.add("Add", indices, 0.5), center)  # (cropped, size)
    distance = graph.add("Abs", graph.add("Div", difference, graph.add("Max", step, 1.0)))
    raw = {"bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}[resample](graph, distance)
    total = graph.add("ReduceSum", raw, graph.constant(np.array([1]), np.int64), keepdims=1)
    return graph.add("Cast", graph.add("Div", raw, total), to=onnx.TensorProto.FLOAT)


def _bilinear(graph: _Graph, distance: str) -> str:
    return graph.add("Max", graph.add("Sub", 1.0, distance), 0.0)


def _bicubic(graph: _Graph, distance: str) -> str:
    """Keys' cubic kernel with a = -0.5."""
    inner = _polynomial(graph, distance, (1.5, -2.5, 0.0, 1.0))
    outer = _polynomial(graph, distance, (-0.5, 2.5, -4.0, 2.0))
    outer = graph.add("Where", graph.add("Less", distance, 2.0), outer, 0.0)
    return graph.add("Where", graph.add("Less", distance, 1.0), inner, outer)


def _lanczos(graph: _Graph, distance: str) -> str:
    """sinc(x) sinc(x / 3) for |x| < 3."""
    kernel = graph.add("Mul", _sinc(graph, distance), _sinc(graph, graph.add("Div", distance, 3.0)))
    return graph.add("Where", graph.add("Less", distance, 3.0), kernel, 0.0)


def _sinc(graph: _Graph, distance: str) -> str:
    angle = graph.add("Mul", graph.add("Max", distance, 1e-9), np.pi)
    return graph.add("Div", graph.add("Sin", angle), angle)


def _polynomial(graph: _Graph, x: str, coefficients: tuple[float, ...]) -> str:
    """Evaluate a polynomial by Horner's rule, the highest power first."""
    value: str | float = coefficients[0]
    for coefficient in coefficients[1:]:
        value = graph.add("Add", graph.add("Mul", value, x), coefficient)
    return str(value)


def _round(graph: _Graph, values: str) -> str:
    """Round to the nearest of 0..255, halves up, as Pillow does between its passes."""
    rounded = graph.add("Floor", graph.add("Add", values, graph.constant(0.5, np.float32)))
    return graph.add("Clip", rounded, graph.constant(0, np.float32), graph.constant(255, np.float32))
