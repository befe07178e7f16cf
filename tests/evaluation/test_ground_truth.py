"""Labels and masks: only what has one meaning is evaluated."""

import numpy as np
import pytest

from bench.errors import BenchError
from bench.evaluation.ground_truth import BinaryMasks, as_labels
from bench.evaluation.metrics import auroc, evaluate

SCORES = np.array([0.1, 0.9])
LABELS = np.array([False, True])
MAPS = [np.zeros((2, 2)), np.array([[0.0, 1.0], [0.0, 0.0]])]
MASKS = [np.zeros((2, 2)), np.array([[0, 255], [0, 0]])]


@pytest.mark.parametrize("labels", [[False, True], [0, 1], [0.0, 1.0], np.array([0, 1], np.uint8)])
def test_labels_are_booleans_or_zero_and_one(labels: object) -> None:
    assert as_labels(labels).tolist() == [False, True]
    assert auroc(SCORES, labels) == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [["good", "crack"], ["0", "1"], [0, 2], [0.0, np.nan], [0.0, 0.7], [None, True]])
def test_other_labels_are_errors(labels: list[object]) -> None:
    with pytest.raises(BenchError, match="Labels must be boolean, or 0 for good and 1 for defective, got"):
        evaluate(SCORES, labels, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [1, 255, 0.5])
def test_masks_of_two_values_count_as_booleans(factor: float) -> None:
    expected = evaluate(SCORES, LABELS, MAPS, [mask != 0 for mask in MASKS]).values
    scaled = [(mask != 0) * factor for mask in MASKS]
    assert evaluate(SCORES, LABELS, MAPS, scaled).values == expected
    assert expected["pixel_auroc"] == 1.0


def test_soft_masks_need_a_threshold() -> None:
    soft = [np.zeros((2, 2)), np.array([[0.2, 0.9], [0.0, 0.0]])]
    with pytest.raises(BenchError, match=r"that of image 1 has 3, from 0 to 0\.9\. Pass mask_threshold"):
        evaluate(SCORES, LABELS, MAPS, soft)
    values = evaluate(SCORES, LABELS, MAPS, soft, mask_threshold=0.5).values
    assert values["pixel_auroc"] == 1.0
    assert BinaryMasks(soft, 0.1)[1].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("mask", [np.array([[0.0, np.nan], [0, 0]]), np.array([["0", "1"], ["0", "0"]])])
def test_masks_without_finite_numbers_are_errors(mask: np.ndarray) -> None:
    with pytest.raises(BenchError, match="Masks must be boolean or finite numbers; that of image 1 is not"):
        evaluate(SCORES, LABELS, MAPS, [MASKS[0], mask], mask_threshold=0.5)
