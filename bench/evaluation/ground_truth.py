"""Checks of labels and masks before they are evaluated: a soft mask or a text label must not become a number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

Bools = NDArray[np.bool_]


def as_labels(values: Any) -> Bools:
    """Return labels as booleans.

    Args:
        values: (n,) booleans, or numbers that are 0 (good) or 1 (anomalous).

    Raises:
        BenchError: a label is a text, NaN or another number.
    """
    labels = np.asarray(values)
    if labels.dtype == np.bool_:
        return labels
    if labels.dtype.kind not in "iuf" or not np.isin(labels, (0, 1)).all():
        invalid = next((value for value in labels.ravel().tolist() if value not in {0, 1}), labels.dtype)
        raise BenchError(
            f"Labels must be boolean, or 0 for good and 1 for defective, got {invalid!r}. Compare them first, as "
            f"labels != 'good'."
        )
    return labels.astype(np.bool_)


class BinaryMasks(Sequence[Bools]):
    """The masks of images as booleans, checked at each access, so that large ones are in memory one at a time.

    Args:
        masks: n of (h, w), boolean or of two values, 0 and any other.
        threshold: pixels above it are defects; None accepts only two values.
    """

    def __init__(self, masks: Sequence[Any], threshold: float | None = None) -> None:
        self._masks = masks
        self._threshold = threshold

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self._masks)

    def __getitem__(self, index: int) -> Bools:  # type: ignore[override]  # slices are not needed
        """Return one mask. Raises BenchError if it has more than two values, or values that are no numbers."""
        mask = np.asarray(self._masks[index])
        if mask.dtype == np.bool_:
            return mask
        if mask.dtype.kind not in "iuf" or not np.isfinite(mask).all():
            raise BenchError(f"Masks must be boolean or finite numbers; that of image {index} is not. Fix its values.")
        if self._threshold is not None:
            above: Bools = mask > self._threshold
            return above
        levels = np.unique(mask[mask != 0])
        if len(levels) > 1:
            raise BenchError(
                f"Masks must have two values, 0 and one other; that of image {index} has {len(levels) + 1}, from "
                f"{mask.min():g} to {mask.max():g}. Pass mask_threshold, for example half of the maximum."
            )
        defects: Bools = mask != 0
        return defects
