"""Metric variants: each one on predictions small enough to check by hand, and those that must change nothing."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bench.evaluation import metric_variants
from bench.evaluation.metric_variants import METRIC_VARIANTS, VariantResult, audit, exact_metrics
from bench.record import Predictions


def predictions_of(scores: list[float], labels: str, maps: object = None, masks: object = None) -> Predictions:
    """Build predictions; labels: g for good, d for defective. Without masks, defective images have no pixel labels."""
    count = len(scores)
    shape = np.shape(maps) if maps is not None else (count, 1, 2)
    defects = tuple("good" if label == "g" else "dent" for label in labels)
    has_pixel_labels = np.array([masks is not None or label == "g" for label in labels])
    return Predictions(
        files=tuple(f"{i}.png" for i in range(count)),
        defects=defects,
        scores=np.array(scores, dtype=np.float64),
        maps=None if maps is None else np.array(maps, dtype=np.float32),
        masks=np.zeros(shape, dtype=bool) if masks is None else np.array(masks, dtype=bool),
        has_pixel_labels=has_pixel_labels,
    )


def random_predictions(seed: int = 0, count: int = 8, size: int = 24) -> Predictions:
    """Build predictions, half of them good; each defective image has one brighter square defect."""
    random = np.random.default_rng(seed)
    maps, masks = random.normal(5, 1, (count, size, size)), np.zeros((count, size, size))
    for i in range(0, count, 2):
        top, left = random.integers(0, size - 6, 2)
        masks[i, top : top + 5, left : left + 5] = 1
    maps += masks * 1.5
    labels = "".join("d" if i % 2 == 0 else "g" for i in range(count))
    predictions = predictions_of(list(random.normal(0, 1, count) + (np.arange(count) % 2 == 0)), labels, maps, masks)
    return replace(predictions, soft_masks=masks.astype(np.uint8) * 255)


def values_of(predictions: Predictions, variant: str) -> dict[str, float]:
    return {result.metric: result.value for result in audit(predictions) if result.variant == variant}


# ---- all variants


def test_every_variant_has_a_unique_name_a_meaning_and_a_source() -> None:
    names = [variant.name for variant in METRIC_VARIANTS]
    assert len(names) == len(set(names))
    for variant in METRIC_VARIANTS:
        assert variant.meaning.endswith("."), variant.name
        assert variant.used_by
        assert not {*variant.requires} - {*metric_variants.AUDITED, "maps", "soft_masks"}


def test_complete_predictions_allow_every_variant_and_results_contain_the_exact_value() -> None:
    predictions = random_predictions()
    results = audit(predictions)
    assert {result.variant for result in results} == {variant.name for variant in METRIC_VARIANTS}
    exact_values = exact_metrics(predictions)
    assert list(exact_values) == list(metric_variants.AUDITED)
    assert all(result.exact == exact_values[result.metric] for result in results)
    assert all(0 <= result.value <= 1 for result in results)


def test_without_maps_only_the_image_metrics_are_audited() -> None:
    results = audit(replace(random_predictions(), maps=None))
    assert {result.metric for result in results} == {"image_auroc", "image_ap"}
    assert not {result.variant for result in results} & {"image score max", "200 linear thresholds", "mean over images"}


def test_without_good_images_the_pixel_metrics_are_still_audited() -> None:
    results = audit(replace(random_predictions(), defects=("dent",) * 8))
    assert {result.metric for result in results} == {"pixel_auroc", "pixel_ap", "aupro_30", "aupro_05"}
    assert "scikit-learn" in {result.variant for result in results}


def test_a_defective_image_without_a_mask_counts_for_the_image_metrics_only() -> None:
    maps, masks = [[[1, 2]], [[9, 8]], [[3, 7]]], [[[0, 0]], [[0, 0]], [[0, 1]]]
    predictions = replace(predictions_of([0, 1, 2], "gdd", maps, masks), has_pixel_labels=np.array([True, False, True]))
    exact_values = exact_metrics(predictions)
    assert exact_values["image_auroc"] == 1
    assert exact_values["pixel_auroc"] == 1  # 7 is above 1, 2 and 3; the unlabeled 9 and 8 are not false positives
    assert values_of(predictions, "scikit-learn")["pixel_auroc"] == 1


# ---- single variants


def test_rounding_keeps_three_decimals() -> None:
    # three defective, three good: 8 of 9 pairs in order
    values = values_of(predictions_of([1, 2, 4, 3, 5, 6], "gggddd"), "rounded before averaging")
    assert values == {"image_auroc": 0.889, "image_ap": 0.917}  # (1/1 + 2/2 + 3/4) / 3 = 0.91667


def test_a_flip_turns_a_third_into_two_thirds_and_keeps_values_above_a_half() -> None:
    assert values_of(predictions_of([1, 4, 2, 3], "gddg"), "AUROC flipped below 0.5") == {"image_auroc": 0.75}
    assert values_of(predictions_of([2, 4, 3.5, 3], "gggd"), "AUROC flipped below 0.5") == {
        "image_auroc": pytest.approx(2 / 3)
    }
    assert values_of(predictions_of([2, 3, 4, 1], "gggd"), "AUROC flipped below 0.5") == {"image_auroc": 1.0}


def test_a_sigmoid_in_float32_makes_large_scores_equal() -> None:
    # sigmoid(20) and sigmoid(30) are both 1 in float32: a perfect order becomes a tie
    assert values_of(predictions_of([20, 30], "gd"), "sigmoid applied first") == {"image_auroc": 0.5, "image_ap": 0.5}
    assert values_of(predictions_of([0.2, 0.3], "gd"), "sigmoid applied first")["image_auroc"] == 1
    assert values_of(predictions_of([-1, 2], "gd"), "sigmoid applied first")["image_auroc"] == 1


def test_scores_in_one_of_fifty_bins_are_ties() -> None:
    # from 0 to 100 a bin is 2 wide: 10.5 and 11 are in one bin and tie, 50 and 53 are not
    values = values_of(predictions_of([0, 10.5, 11, 100], "ggdd"), "50-bin histogram")
    assert values == {"image_auroc": (1 + 0.5 + 2) / 4}
    assert values_of(predictions_of([0, 50, 53, 100], "ggdd"), "50-bin histogram") == {"image_auroc": 1.0}


def test_one_outlier_collapses_a_histogram() -> None:
    assert values_of(predictions_of([1, 2, 3, 4, 1e6], "ggddg"), "50-bin histogram") == {
        "image_auroc": pytest.approx(1 / 3)
    }


def test_equal_scores_fall_into_one_bin() -> None:
    assert values_of(predictions_of([3, 3], "gd"), "50-bin histogram") == {"image_auroc": 0.5}


PAIR = predictions_of([0, 0, 0], "ddg", [[[1, 2]], [[11, 12]], [[30, 40]]], [[[0, 1]], [[0, 1]], [[0, 0]]])
"""Two defective images, each perfect by itself but on different scales, and a good one with higher values than both."""


def test_the_mean_over_images_hides_that_the_scales_of_the_maps_differ() -> None:
    # pooled: 2 is above one of the four normal pixels 1, 11, 30, 40, and 12 is above two of them
    assert exact_metrics(PAIR)["pixel_auroc"] == (1 + 2) / 8
    assert values_of(PAIR, "mean over images") == {"pixel_auroc": 1.0}


def test_without_the_good_images_their_false_positives_do_not_count() -> None:
    assert values_of(PAIR, "defective images only") == {"pixel_auroc": (1 + 2) / 4}


def test_an_image_without_normal_pixels_has_no_auroc() -> None:
    whole = predictions_of([0, 0], "dg", [[[5, 6]], [[1, 2]]], [[[1, 1]], [[0, 0]]])
    assert exact_metrics(whole)["pixel_auroc"] == 1
    assert values_of(whole, "mean over images") == {}
    assert values_of(whole, "defective images only") == {}


def test_the_image_score_is_the_maximum_the_mean_or_the_standard_deviation_of_the_map() -> None:
    # maxima 9 and 5, means 3 and 4, large and small standard deviation, for the good and the defective image
    two = predictions_of([0, 1], "gd", [[[0, 0, 9]], [[3, 4, 5]]], [[[0, 0, 0]], [[0, 0, 1]]])
    assert exact_metrics(two)["image_auroc"] == 1
    assert values_of(two, "image score max") == {"image_auroc": 0.0, "image_ap": 0.5}
    assert values_of(two, "image score mean") == {"image_auroc": 1.0, "image_ap": 1.0}
    assert values_of(two, "image score std") == {"image_auroc": 0.0, "image_ap": 0.5}


def test_a_soft_mask_has_a_threshold_of_a_half_zero_or_one() -> None:
    # One defect of pixels 0 / 0.4 / 0.6 / 1, with falling scores 2, 1, 4, 3 there and a normal image at 2.5.
    two = predictions_of([0, 1], "dg", [[[2, 1, 4, 3]], [[2.5, 2.5, 2.5, 2.5]]], [[[0, 0, 0, 1]], [[0, 0, 0, 0]]])
    two = replace(two, soft_masks=np.array([[[0, 102, 153, 255]], [[0, 0, 0, 0]]], np.uint8))
    assert values_of(two, "bilinear masks, threshold 0.5")["pixel_auroc"] == 1.0  # 4 and 3 are above all
    assert values_of(two, "bilinear masks, threshold 0")["pixel_auroc"] == (5 + 5 + 0) / 15  # the 1 is below all five
    assert values_of(two, "bilinear masks, threshold 1")["pixel_auroc"] == pytest.approx(
        6 / 7
    )  # the 4 is a false positive
    assert values_of(replace(two, soft_masks=None), "bilinear masks, threshold 1") == {}


def test_the_filter_changes_nothing_if_masks_are_not_resized() -> None:
    results = [result for result in audit(random_predictions()) if result.variant.startswith("bilinear")]
    assert len(results) == 3 * 4
    assert all(result.value == result.exact for result in results)


def loop_over_thresholds(predictions: Predictions) -> float:
    """Return AUPRO by a slow loop over thresholds, as common implementations compute it."""
    from scipy import ndimage

    maps, masks = predictions.maps.astype(np.float64), predictions.masks
    low, high = maps.min(), maps.max()
    rates, overlaps = [], []
    for number in range(200):
        above = maps > low + number * (high - low) / 200
        fractions = []
        for flagged, mask in zip(above, masks, strict=True):
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            fractions += [flagged[labels == region].mean() for region in range(1, count + 1)]
        rates.append(above[~masks].mean())
        overlaps.append(np.mean(fractions))
    below_limit = [(rate, overlap) for rate, overlap in zip(rates, overlaps, strict=True) if rate < 0.3]
    lowest, highest = min(below_limit)[0], max(below_limit)[0]
    area = 0.0
    for (right, upper), (left, lower) in pairwise(below_limit):
        area += (right - left) / (highest - lowest) * (upper + lower) / 2
    return area


@given(some.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_two_hundred_thresholds_equal_a_loop_over_thresholds(seed: int) -> None:
    predictions = random_predictions(seed)
    value = values_of(predictions, "200 linear thresholds")["aupro_30"]
    assert value == pytest.approx(loop_over_thresholds(predictions), abs=1e-9)


def test_with_one_outlier_two_hundred_thresholds_give_no_value() -> None:
    predictions = random_predictions()
    maps = predictions.maps.copy()
    assert maps is not None
    maps[1, 0, 0] = 1e6  # a normal pixel: all others are below the second threshold
    assert exact_metrics(replace(predictions, maps=maps))["aupro_30"] > 0.3
    assert values_of(replace(predictions, maps=maps), "200 linear thresholds") == {}


def test_constant_maps_have_no_value_at_two_hundred_thresholds() -> None:
    assert (
        values_of(replace(random_predictions(), maps=np.ones((8, 24, 24), np.float32)), "200 linear thresholds") == {}
    )


@given(some.integers(0, 10_000), some.sampled_from([0.25, 1.0, 1000.0]))
@settings(max_examples=20, deadline=None)
def test_scikit_learn_agrees_and_min_max_changes_nothing(seed: int, scale: float) -> None:
    predictions = random_predictions(seed, count=6, size=12)
    maps = np.round(predictions.maps * 4) / 4 * np.float32(scale)  # many ties
    results = [result for result in audit(replace(predictions, maps=maps)) if result.variant in UNCHANGED]
    assert len(results) == 8
    assert all(abs(result.value - result.exact) <= 1e-9 for result in results), results


UNCHANGED = {"scikit-learn", "min-max over the test set"}


def test_equal_scores_remain_ties_after_min_max() -> None:
    assert values_of(predictions_of([7, 7], "gd"), "min-max over the test set") == {"image_auroc": 0.5, "image_ap": 0.5}


def test_a_result_names_the_implementations_that_use_the_variant() -> None:
    first = audit(predictions_of([1, 2], "gd"))[0]
    assert first == VariantResult("rounded before averaging", METRIC_VARIANTS[0].used_by, "image_auroc", 1.0, 1.0)
