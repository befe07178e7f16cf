"""Predictions as the bytes of an npz file, and back; a file from elsewhere may contain anything."""

import io
import math
from collections.abc import Mapping
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from bench.record import MapPrecision, Predictions, to_float16, to_float32


def pack(predictions: Predictions, map_precision: MapPrecision) -> bytes:
    """Return the predictions as an npz file; equal predictions give equal bytes."""
    arrays: dict[str, Any] = {
        "files": np.array(predictions.files),
        "defects": np.array(predictions.defects),
        "scores": predictions.scores,
        "has_pixel_labels": predictions.has_pixel_labels,
        "shape": np.array(predictions.masks.shape),
        "masks": np.packbits(predictions.masks),
    }
    if predictions.maps is not None and map_precision == "float32":
        arrays["maps"] = predictions.maps
    elif predictions.maps is not None and map_precision == "float16":
        arrays["maps"], arrays["exponent"] = to_float16(predictions.maps)
    soft = predictions.soft_masks
    if soft is not None:  # they equal the masks except at their edges
        edge_indices = np.flatnonzero(soft != predictions.masks * np.uint8(255))
        arrays["soft_values"], arrays["soft_indices"] = (
            soft.ravel()[edge_indices],
            edge_indices.astype(np.min_scalar_type(soft.size)),
        )
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def unpack(packed: bytes, *, maps: bool) -> Predictions:
    """Return the predictions of an npz file. Raises an exception of any type if they are not valid."""
    with ZipFile(io.BytesIO(packed)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(packed):
            raise ValueError("it declares more data than it has")
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        shape = tuple(arrays["shape"].tolist())
        if len(shape) != 3 or min(shape) < 0 or math.prod(shape) > 8 * arrays["masks"].size:
            raise ValueError(f"its masks do not have the declared shape {shape}")
        bits = np.unpackbits(arrays["masks"], count=math.prod(shape)).reshape(shape)
        stored_maps = None
        if maps and "maps" in arrays:
            stored_maps = arrays["maps"]
            if "exponent" in arrays:
                stored_maps = to_float32(stored_maps, int(arrays["exponent"]))
        predictions = Predictions(
            files=tuple(arrays["files"].tolist()),
            defects=tuple(arrays["defects"].tolist()),
            scores=arrays["scores"],
            maps=stored_maps,
            masks=bits.view(np.bool_),
            has_pixel_labels=arrays["has_pixel_labels"],
            soft_masks=_unpack_soft_masks(arrays, bits) if "soft_values" in arrays else None,
        )
    _check(predictions)
    return predictions


def _check(predictions: Predictions) -> None:
    """Raise ValueError if the arrays do not have the types and shapes of predictions, or a value is not finite."""
    shape, scores, maps = predictions.masks.shape, predictions.scores, predictions.maps
    if len(predictions.files) != shape[0] or len(predictions.defects) != shape[0]:
        raise ValueError("it does not have a name and a defect type per image")
    if scores.dtype != np.float64 or scores.shape != shape[:1] or not np.isfinite(scores).all():
        raise ValueError("its scores must be one finite number per image")
    if maps is not None and (maps.dtype != np.float32 or maps.shape != shape or not np.isfinite(maps).all()):
        raise ValueError("its maps must be finite and have the shape of its masks")
    if predictions.has_pixel_labels.dtype != np.bool_ or predictions.has_pixel_labels.shape != shape[:1]:
        raise ValueError("it must state for each image whether its pixels are labeled")


def _unpack_soft_masks(arrays: Mapping[str, NDArray[Any]], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (n, h, w) soft masks in 0..255: the masks of (n, h, w) bits, with other values at the stored indices."""
    soft = bits * np.uint8(255)
    soft.put(arrays["soft_indices"].astype(np.intp), arrays["soft_values"])
    return soft
