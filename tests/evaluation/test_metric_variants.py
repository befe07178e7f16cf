"""Dialects: each habit on answers small enough to work out by hand, and what must not move at all."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bench.evaluation import metric_variants
from bench.evaluation.metric_variants import METRIC_VARIANTS, VariantResult, audit, exact
from bench.record import Predictions


def answers(scores: list[float], labels: str, maps: object = None, masks: object = None) -> Predictions:
    """Labels: g for good, d for defective. Without masks, those of defect images are unknown."""
    count = len(scores)
    shape = np.shape(maps) if maps is not None else (count, 1, 2)
    defects = tuple("good" if label == "g" else "dent" for label in labels)
    known = np.array([masks is not None or label == "g" for label in labels])
    return Predictions(
        files=tuple(f"{i}.png" for i in range(count)),
        defects=defects,
        scores=np.array(scores, dtype=np.float64),
        maps=None if maps is None else np.array(maps, dtype=np.float32),
        masks=np.zeros(shape, dtype=bool) if masks is None else np.array(masks, dtype=bool),
        has_pixel_labels=known,
    )


def random_answers(seed: int = 0, count: int = 8, size: int = 24) -> Predictions:
    """Half good; each defective image has one square defect that is somewhat brighter."""
    random = np.random.default_rng(seed)
    maps, masks = random.normal(5, 1, (count, size, size)), np.zeros((count, size, size))
    for i in range(0, count, 2):
        top, left = random.integers(0, size - 6, 2)
        masks[i, top : top + 5, left : left + 5] = 1
    maps += masks * 1.5
    labels = "".join("d" if i % 2 == 0 else "g" for i in range(count))
    found = answers(list(random.normal(0, 1, count) + (np.arange(count) % 2 == 0)), labels, maps, masks)
    return replace(found, soft_masks=masks.astype(np.uint8) * 255)


def said(given_answers: Predictions, dialect: str) -> dict[str, float]:
    return {each.metric: each.theirs for each in audit(given_answers) if each.dialect == dialect}


# ---- what every dialect has


def test_every_dialect_has_a_name_a_meaning_and_a_place() -> None:
    names = [dialect.name for dialect in METRIC_VARIANTS]
    assert len(names) == len(set(names))
    for dialect in METRIC_VARIANTS:
        assert dialect.meaning.endswith("."), dialect.name
        assert dialect.used_by
        assert not {*dialect.requires} - {*metric_variants.AUDITED, "maps", "soft"}


def test_on_whole_answers_every_dialect_speaks_and_ours_is_the_exact_value() -> None:
    given_answers = random_answers()
    found = audit(given_answers)
    assert {each.dialect for each in found} == {dialect.name for dialect in METRIC_VARIANTS}
    ours = exact(given_answers)
    assert list(ours) == list(metric_variants.AUDITED)
    assert all(each.ours == ours[each.metric] for each in found)
    assert all(0 <= each.theirs <= 1 for each in found)


def test_without_maps_only_the_image_metrics_are_audited() -> None:
    found = audit(replace(random_answers(), maps=None))
    assert {each.metric for each in found} == {"image_auroc", "image_ap"}
    assert not {each.dialect for each in found} & {"image score max", "200 linear thresholds", "mean over images"}


def test_without_good_images_the_pixel_metrics_are_still_audited() -> None:
    found = audit(replace(random_answers(), defects=("dent",) * 8))
    assert {each.metric for each in found} == {"pixel_auroc", "pixel_ap", "aupro_30", "aupro_05"}
    assert "scikit-learn" in {each.dialect for each in found}


def test_a_defect_image_without_a_mask_counts_for_the_image_metrics_alone() -> None:
    maps, masks = [[[1, 2]], [[9, 8]], [[3, 7]]], [[[0, 0]], [[0, 0]], [[0, 1]]]
    given_answers = replace(answers([0, 1, 2], "gdd", maps, masks), has_pixel_labels=np.array([True, False, True]))
    ours = exact(given_answers)
    assert ours["image_auroc"] == 1
    assert ours["pixel_auroc"] == 1  # 7 lies above 1, 2 and 3; the 9 and 8 of unknown truth are no false alarms
    assert said(given_answers, "scikit-learn")["pixel_auroc"] == 1


# ---- one by one


def test_rounding_keeps_three_decimals() -> None:
    # three defective, three good: 8 of 9 pairs in order
    found = said(answers([1, 2, 4, 3, 5, 6], "gggddd"), "rounded before averaging")
    assert found == {"image_auroc": 0.889, "image_ap": 0.917}  # (1/1 + 2/2 + 3/4) / 3 = 0.91667


def test_a_flip_turns_a_third_into_two_thirds_and_leaves_what_lies_above_a_half() -> None:
    assert said(answers([1, 4, 2, 3], "gddg"), "flipped below 0.5") == {"image_auroc": 0.75}
    assert said(answers([2, 4, 3.5, 3], "gggd"), "flipped below 0.5") == {"image_auroc": pytest.approx(2 / 3)}
    assert said(answers([2, 3, 4, 1], "gggd"), "flipped below 0.5") == {"image_auroc": 1.0}


def test_a_sigmoid_in_float32_makes_large_scores_equal() -> None:
    # sigmoid(20) and sigmoid(30) are both 1 in float32: a perfect order becomes a tie
    assert said(answers([20, 30], "gd"), "sigmoid first") == {"image_auroc": 0.5, "image_ap": 0.5}
    assert said(answers([0.2, 0.3], "gd"), "sigmoid first")["image_auroc"] == 1
    assert said(answers([-1, 2], "gd"), "sigmoid first")["image_auroc"] == 1


def test_what_shares_one_of_fifty_bins_is_a_tie() -> None:
    # from 0 to 100 a bin is 2 wide: 10.5 and 11 share one, 50 and 53 do not; in it the defect lies above and ties
    found = said(answers([0, 10.5, 11, 100], "ggdd"), "50-bin histogram")
    assert found == {"image_auroc": (1 + 0.5 + 2) / 4}
    assert said(answers([0, 50, 53, 100], "ggdd"), "50-bin histogram") == {"image_auroc": 1.0}


def test_one_outlier_collapses_a_histogram() -> None:
    assert said(answers([1, 2, 3, 4, 1e6], "ggddg"), "50-bin histogram") == {"image_auroc": pytest.approx(1 / 3)}


def test_equal_scores_fall_into_one_bin() -> None:
    assert said(answers([3, 3], "gd"), "50-bin histogram") == {"image_auroc": 0.5}


PAIR = answers([0, 0, 0], "ddg", [[[1, 2]], [[11, 12]], [[30, 40]]], [[[0, 1]], [[0, 1]], [[0, 0]]])
"""Two defect images, each perfect on its own, on scales of their own, and a good one that outshines both."""


def test_image_by_image_hides_that_maps_are_not_comparable() -> None:
    # pooled: 2 lies above 1 of the four normal pixels 1, 11, 30, 40, and 12 above two of them
    assert exact(PAIR)["pixel_auroc"] == (1 + 2) / 8
    assert said(PAIR, "mean over images") == {"pixel_auroc": 1.0}


def test_without_the_good_images_their_false_alarms_are_gone() -> None:
    assert said(PAIR, "defect images only") == {"pixel_auroc": (1 + 2) / 4}


def test_an_image_that_is_all_defect_has_no_auroc_of_its_own() -> None:
    whole = answers([0, 0], "dg", [[[5, 6]], [[1, 2]]], [[[1, 1]], [[0, 0]]])
    assert exact(whole)["pixel_auroc"] == 1
    assert said(whole, "mean over images") == {}
    assert said(whole, "defect images only") == {}


def test_the_image_score_may_be_the_maximum_the_mean_or_the_spread_of_the_map() -> None:
    # maxima 9 and 5, means 3 and 4, spreads large and small, for the good and the defective image
    two = answers([0, 1], "gd", [[[0, 0, 9]], [[3, 4, 5]]], [[[0, 0, 0]], [[0, 0, 1]]])
    assert exact(two)["image_auroc"] == 1
    assert said(two, "image score max") == {"image_auroc": 0.0, "image_ap": 0.5}
    assert said(two, "image score mean") == {"image_auroc": 1.0, "image_ap": 1.0}
    assert said(two, "image score std") == {"image_auroc": 0.0, "image_ap": 0.5}


def test_a_softened_mask_may_be_cut_at_a_half_above_zero_or_at_one() -> None:
    # One defect of pixels 0 / 0.4 / 0.6 / 1, with falling scores 2, 1, 4, 3 there and a normal image at 2.5.
    two = answers([0, 1], "dg", [[[2, 1, 4, 3]], [[2.5, 2.5, 2.5, 2.5]]], [[[0, 0, 0, 1]], [[0, 0, 0, 0]]])
    two = replace(two, soft_masks=np.array([[[0, 102, 153, 255]], [[0, 0, 0, 0]]], np.uint8))
    assert said(two, "bilinear masks, cut at 0.5")["pixel_auroc"] == 1.0  # 4 and 3 lie above all
    assert said(two, "bilinear masks, cut above 0")["pixel_auroc"] == (5 + 5 + 0) / 15  # the 1 lies below all five
    assert said(two, "bilinear masks, cut at 1")["pixel_auroc"] == pytest.approx(6 / 7)  # the 4 is a false alarm
    assert said(replace(two, soft_masks=None), "bilinear masks, cut at 1") == {}


def test_where_masks_are_not_resized_their_filter_moves_nothing() -> None:
    found = [each for each in audit(random_answers()) if each.dialect.startswith("bilinear")]
    assert len(found) == 3 * 4
    assert all(each.theirs == each.ours for each in found)


def thresholds_one_by_one(given_answers: Predictions) -> float:
    """The slow oracle: a loop over thresholds, as the field writes it."""
    from scipy import ndimage

    maps, masks = given_answers.maps.astype(np.float64), given_answers.masks
    low, high = maps.min(), maps.max()
    rates, overlaps = [], []
    for number in range(200):
        above = maps > low + number * (high - low) / 200
        shares = []
        for flagged, mask in zip(above, masks, strict=True):
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            shares += [flagged[labels == region].mean() for region in range(1, count + 1)]
        rates.append(above[~masks].mean())
        overlaps.append(np.mean(shares))
    kept = [(rate, overlap) for rate, overlap in zip(rates, overlaps, strict=True) if rate < 0.3]
    lowest, highest = min(kept)[0], max(kept)[0]
    area = 0.0
    for (right, upper), (left, lower) in pairwise(kept):
        area += (right - left) / (highest - lowest) * (upper + lower) / 2
    return area


@given(some.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_two_hundred_thresholds_are_the_loop_that_the_field_writes(seed: int) -> None:
    given_answers = random_answers(seed)
    theirs = said(given_answers, "200 linear thresholds")["aupro_30"]
    assert theirs == pytest.approx(thresholds_one_by_one(given_answers), abs=1e-9)


def test_one_outlier_leaves_two_hundred_thresholds_nothing_to_integrate() -> None:
    given_answers = random_answers()
    maps = given_answers.maps.copy()
    assert maps is not None
    maps[1, 0, 0] = 1e6  # a normal pixel: all others lie below the second threshold
    assert exact(replace(given_answers, maps=maps))["aupro_30"] > 0.3
    assert said(replace(given_answers, maps=maps), "200 linear thresholds") == {}


def test_constant_maps_have_no_two_hundred_thresholds() -> None:
    assert said(replace(random_answers(), maps=np.ones((8, 24, 24), np.float32)), "200 linear thresholds") == {}


@given(some.integers(0, 10_000), some.sampled_from([0.25, 1.0, 1000.0]))
@settings(max_examples=20, deadline=None)
def test_scikit_learn_agrees_and_min_max_moves_nothing(seed: int, scale: float) -> None:
    given_answers = random_answers(seed, count=6, size=12)
    maps = np.round(given_answers.maps * 4) / 4 * np.float32(scale)  # many ties
    found = [each for each in audit(replace(given_answers, maps=maps)) if each.dialect in HARMLESS]
    assert len(found) == 8
    assert all(abs(each.theirs - each.ours) <= 1e-9 for each in found), found


HARMLESS = {"scikit-learn", "min-max over the test set"}


def test_min_max_of_equal_scores_stays_a_tie() -> None:
    assert said(answers([7, 7], "gd"), "min-max over the test set") == {"image_auroc": 0.5, "image_ap": 0.5}


def test_a_finding_says_who_computes_so() -> None:
    first = audit(answers([1, 2], "gd"))[0]
    assert first == VariantResult("rounded before averaging", METRIC_VARIANTS[0].used_by, "image_auroc", 1.0, 1.0)
