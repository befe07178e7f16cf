"""The preprocessing of an image as an ONNX graph: Pillow's resize, step by step, for an image of any size.

Pillow resizes by a pass along the rows and one down the columns, each a weighted sum whose result is rounded to 8 bits.
Both are matrix products here, by weights that the graph works out from an image's size: the same pixels but where a sum
lies on the edge between two values. Newer Pillows go down the columns of tall images first; here rows are always first,
which moves some pixels of a photograph by one of 255. Filters are those of Pillow, Resample.c.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bench.errors import BenchError
from bench.method import Preprocessing, Resample

OPSET = 18
IMAGE, PREPARED = "image", "prepared"


class _Graph:
    """Nodes of a graph under construction: each method adds what it needs and answers the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: float | NDArray[np.generic], kind: type[np.generic] = np.float64) -> str:
        name = f"preprocessing_c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def add(self, operator: str, *given: str | float, name: str = "", **attributes: Any) -> str:
        """A node; a number among its inputs is a constant in double precision."""
        name = name or f"preprocessing_{len(self.nodes)}"
        inputs = [one if isinstance(one, str) else self.constant(one) for one in given]
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name


def preprocessing_graph(preprocessing: Preprocessing) -> onnx.ModelProto:
    """`image` (H, W, 3) uint8 RGB of any size -> `prepared` (1, 3, h, w) float32 in [0, 1], as `images.prepare`.

    Raises BenchError for nearest neighbours, whose choice hangs on how Pillow sums up its steps.
    """
    if preprocessing.resample == "nearest":
        raise BenchError("A resize by weights can be exported: bilinear, bicubic or lanczos; this run's is nearest.")
    graph = _Graph()
    rows, columns = preprocessing.size
    shape = graph.add("Cast", graph.add("Shape", IMAGE), to=onnx.TensorProto.DOUBLE)
    high, wide = (graph.add("Gather", shape, graph.constant(axis, np.int64), axis=0) for axis in (0, 1))
    height: str | float = float(preprocessing.height)
    width: str | float = float(preprocessing.width)
    if preprocessing.keep_aspect:
        scale = graph.add("Max", graph.add("Div", width, wide), graph.add("Div", height, high))
        height, width = (
            graph.add("Max", side, graph.add("Round", graph.add("Mul", own, scale)))
            for side, own in ((height, high), (width, wide))
        )
    filled = graph.add("Cast", IMAGE, to=onnx.TensorProto.FLOAT)  # (H, W, 3)
    across = _weights(graph, wide, width, columns, preprocessing.resample)  # (w, W)
    filled = _rounded(graph, graph.add("MatMul", across, filled))  # (H, w, 3)
    down = _weights(graph, high, height, rows, preprocessing.resample)  # (h, H)
    flat = graph.add("Reshape", filled, graph.constant(np.array([0, columns * 3]), np.int64))  # (H, w * 3)
    flat = _rounded(graph, graph.add("MatMul", down, flat))
    pixels = graph.add("Reshape", flat, graph.constant(np.array([1, rows, columns, 3]), np.int64))
    channels = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    graph.add("Div", channels, graph.constant(255, np.float32), name=PREPARED)
    given = helper.make_tensor_value_info(IMAGE, onnx.TensorProto.UINT8, ["height", "width", 3])
    found = helper.make_tensor_value_info(PREPARED, onnx.TensorProto.FLOAT, [1, 3, rows, columns])
    whole = helper.make_graph(graph.nodes, "preprocessing", [given], [found], graph.constants)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _weights(graph: _Graph, own: str, target: str | float, kept: int, resample: Resample) -> str:
    """(kept, own): what each pixel along an axis of `own` pixels gives to each that is kept of `target` ones."""
    first = graph.add("Floor", graph.add("Div", graph.add("Sub", target, float(kept)), 2.0))
    place = graph.add("Add", graph.constant(np.arange(kept)[:, None] + 0.5), first)  # (kept, 1)
    step = graph.add("Div", own, target)
    centre = graph.add("Mul", place, step)
    reach = graph.add("Range", 0.0, own, 1.0)  # (own,)
    apart = graph.add("Sub", graph.add("Add", reach, 0.5), centre)  # (kept, own)
    distance = graph.add("Abs", graph.add("Div", apart, graph.add("Max", step, 1.0)))
    raw = {"bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos}[resample](graph, distance)
    total = graph.add("ReduceSum", raw, graph.constant(np.array([1]), np.int64), keepdims=1)
    return graph.add("Cast", graph.add("Div", raw, total), to=onnx.TensorProto.FLOAT)


def _bilinear(graph: _Graph, distance: str) -> str:
    return graph.add("Max", graph.add("Sub", 1.0, distance), 0.0)


def _bicubic(graph: _Graph, distance: str) -> str:
    """Keys' cubic with a = -0.5."""
    near = _polynomial(graph, distance, (1.5, -2.5, 0.0, 1.0))
    far = _polynomial(graph, distance, (-0.5, 2.5, -4.0, 2.0))
    beyond = graph.add("Where", graph.add("Less", distance, 2.0), far, 0.0)
    return graph.add("Where", graph.add("Less", distance, 1.0), near, beyond)


def _lanczos(graph: _Graph, distance: str) -> str:
    """sinc(x) sinc(x / 3) within three widths."""
    found = graph.add("Mul", _sinc(graph, distance), _sinc(graph, graph.add("Div", distance, 3.0)))
    return graph.add("Where", graph.add("Less", distance, 3.0), found, 0.0)


def _sinc(graph: _Graph, distance: str) -> str:
    angle = graph.add("Mul", graph.add("Max", distance, 1e-9), np.pi)
    return graph.add("Div", graph.add("Sin", angle), angle)


def _polynomial(graph: _Graph, x: str, coefficients: tuple[float, ...]) -> str:
    found: str | float = coefficients[0]
    for coefficient in coefficients[1:]:
        found = graph.add("Add", graph.add("Mul", found, x), coefficient)
    return str(found)


def _rounded(graph: _Graph, values: str) -> str:
    """To the nearest of 0 ... 255, halves upwards, as Pillow stores 8 bits between its passes."""
    up = graph.add("Floor", graph.add("Add", values, graph.constant(0.5, np.float32)))
    return graph.add("Clip", up, graph.constant(0, np.float32), graph.constant(255, np.float32))
