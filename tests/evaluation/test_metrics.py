"""The metrics against cases computed by hand, scikit-learn, and a loop over every distinct threshold."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from bench.errors import BenchError
from bench.evaluation import curves
from bench.evaluation.metrics import at_threshold, auroc, evaluate, threshold_at

PIXEL_NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_05", "aupro_30")
SCORES, LABELS = np.array([0.0, 1.0]), np.array([False, True])


def best_f1(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


def brute_aupro(maps, masks, limit):
    """Compute AUPRO with a threshold at every distinct pixel value, and trapezoids between them up to the limit."""
    regions = []
    for mask, score_map in zip(masks, maps, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [score_map[labels == number] for number in range(1, count + 1)]
    normals = np.concatenate([score_map[~mask] for mask, score_map in zip(masks, maps, strict=True)])
    area, last = 0.0, (0.0, 0.0)
    for threshold in np.unique(np.concatenate([score_map.ravel() for score_map in maps]))[::-1]:
        x, y = np.mean(normals >= threshold), np.mean([np.mean(region >= threshold) for region in regions])
        if x > limit:
            cut = last[1] + (y - last[1]) * (limit - last[0]) / (x - last[0])
            return (area + (limit - last[0]) * (last[1] + cut) / 2) / limit
        area, last = area + (x - last[0]) * (y + last[1]) / 2, (x, y)
    return (area + limit - last[0]) / limit


def expected(maps, masks, limits=(0.05, 0.3)):
    """Return the pixel metrics by scikit-learn and brute force."""
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([score_map.ravel() for score_map in maps]).astype(np.float64)
    values = {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1max": best_f1(labels, scores),
    }
    return values | {f"aupro_{round(100 * limit):02d}": brute_aupro(maps, masks, limit) for limit in limits}


def pixels(maps, masks, **options):
    """Return the pixel metrics of `evaluate`; the image scores do not matter."""
    evaluation = evaluate(np.arange(len(maps)), np.arange(len(maps)) > 0, maps, masks, **options)
    return {name: value for name, value in evaluation.values.items() if not name.startswith("image")}


# --- By hand --------------------------------------------------------------------------------------------------------


def test_auroc_counts_a_tie_as_half():
    assert auroc(np.array([1.0, 2.0, 2.0]), np.array([False, False, True])) == 0.75


def test_average_precision_adds_the_precision_at_each_step_of_recall():
    # By decreasing score: defect (1/1), good, defect (2/3), so (1 + 2/3) / 2.
    values = evaluate(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), None, None).values
    assert values["image_ap"] == pytest.approx(5 / 6, abs=1e-15)


def test_f1_max_takes_the_best_threshold():
    # Thresholds 3, 2, 1 have (precision, recall) of (1, 1/2), (1/2, 1/2), (2/3, 1): F1 of 2/3, 1/2, 4/5.
    values = evaluate(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), None, None).values
    assert values["image_f1max"] == pytest.approx(0.8, abs=1e-15)


def test_aupro_counts_a_small_region_as_much_as_a_large_one():
    # The region of one pixel is above all 5 normal pixels, the region of four below them: 0.5 at any limit.
    score_map = np.array([[9.0, 5.0, 5.0, 5.0, 5.0], [5.0, 0.0, 0.0, 0.0, 0.0]])
    mask = np.array([[True, False, False, False, False], [False, True, True, True, True]])
    mask[1, 1] = False  # otherwise the corner would connect both
    mask[0, 4] = True
    score_map[0, 4] = 0.0
    score_map[1, 1] = 5.0
    values = pixels([score_map, score_map], [mask, mask])
    assert values["aupro_30"] == pytest.approx(0.5, abs=1e-15)
    assert values["pixel_auroc"] == pytest.approx(0.2, abs=1e-15)


def test_regions_that_touch_at_a_corner_are_one():
    # A region of two pixels and one of one pixel; detected: the single pixel and one of the two, (1 + 1/2) / 2.
    mask = np.array([[True, False, False, False], [False, True, False, True]])
    score_map = np.array([[9.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 9.0]])
    assert pixels([score_map, score_map], [mask, mask])["aupro_30"] == pytest.approx(0.75, abs=1e-15)


def test_the_limit_divides_a_segment_of_ties():
    # All scores tie, so the curve is the diagonal, whose mean height up to the limit is half of the limit.
    mask = np.array([[True, False], [False, False]])
    values = pixels([np.zeros((2, 2))] * 2, [mask] * 2, fpr_limits=(0.05, 0.3, 1.0))
    assert values["aupro_05"] == pytest.approx(0.025, abs=1e-15)
    assert values["aupro_30"] == pytest.approx(0.15, abs=1e-15)
    assert values["aupro_100"] == pytest.approx(0.5, abs=1e-15)


def test_a_perfect_map_gives_one_and_its_negative_gives_zero():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4, 2:5] = True
    assert list(pixels([mask * 1.0] * 2, [mask] * 2).values()) == [1.0] * 5
    worst = pixels([mask * -1.0] * 2, [mask] * 2)
    assert worst["pixel_auroc"] == worst["aupro_30"] == 0.0


# --- Against slow references ----------------------------------------------------------------------------------------


@st.composite
def categories(draw):
    """Draw a few maps of different sizes with masks: continuous, with many ties or constant, of each float dtype.

    The defects are random pixels, which form regions, or a single pixel in the whole category.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 50, None]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    scale = draw(st.sampled_from([1.0, 1e-3, 300.0]))
    share = draw(st.sampled_from([0.0, 0.05, 0.3]))
    maps, masks = [], []
    for number in range(draw(st.integers(2, 4))):
        shape = draw(st.integers(3, 12)), draw(st.integers(3, 12))
        mask = random.random(shape) < share
        mask &= number > 0  # the first image is good
        mask[-1, -1], mask[0, 0] = number == 1, False
        values = random.standard_normal(shape) + mask * draw(st.sampled_from([0.0, 1.0, -1.0]))
        values = values if levels is None else np.round(values * levels / 6)
        maps.append((values * scale).astype(dtype))
        masks.append(mask)
    return maps, masks


@settings(max_examples=150, deadline=None)
@given(categories())
def test_pixel_metrics_equal_scikit_learn_and_brute_force(category):
    limits = (0.05, 0.3, 1.0)
    assert pixels(*category, fpr_limits=limits) == pytest.approx(expected(*category, limits), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_image_metrics_equal_scikit_learn(pairs):
    scores, labels = np.array([pair[0] for pair in pairs]) / 3, np.array([pair[1] for pair in pairs])
    labels[:2] = False, True
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    values = evaluate(scores, labels, None, None).values
    assert values["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert values["image_f1max"] == pytest.approx(best_f1(labels, scores), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("outlier", [None, 1e6, -1e6])
def test_many_pixels_with_an_outlier_stay_exact(dtype, outlier, monkeypatch):
    monkeypatch.setattr(curves, "SORT_BUFFER", 1000)  # so that the pixels are sorted in several steps
    random = np.random.default_rng(3)
    masks = np.zeros((6, 40, 30), dtype=bool)
    masks[2:, 5:15, 5:12] = masks[4:, 25:30, 20:28] = True
    maps = (random.standard_normal(masks.shape) + masks).astype(dtype)
    if outlier is not None and dtype != np.float16:
        maps[3, 6, 6] = outlier
        maps[0, 6, 6] = outlier
    elif outlier is not None:
        maps[3, 6, 6] = np.copysign(6e4, outlier)
    assert pixels(maps, masks) == pytest.approx(expected(maps, masks), abs=1e-9)


def test_both_zeros_are_one_score():
    mask = np.array([[True, False], [False, False]])
    for dtype in (np.float16, np.float32, np.float64):
        score_map = np.array([[0.0, -0.0], [-0.0, 0.0]], dtype=dtype)
        assert pixels([score_map] * 2, [mask] * 2)["pixel_auroc"] == 0.5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_and_the_smallest_numbers_of_a_dtype_are_distinguished(dtype):
    limits = np.finfo(dtype)
    values = [limits.max, limits.max / 2, limits.tiny, limits.smallest_subnormal, 0.0, -limits.tiny, limits.min]
    score_map = np.array([values], dtype=dtype)
    mask = np.array([[False, True, False, True, False, True, False]])
    assert pixels([score_map] * 2, [mask] * 2) == pytest.approx(expected([score_map] * 2, [mask] * 2), abs=1e-12)


# --- Invariances ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(categories(), st.sampled_from([lambda x: 3 * x - 7, np.arctan, lambda x: np.sign(x) * np.sqrt(np.abs(x))]))
def test_a_strictly_increasing_function_of_the_scores_changes_nothing(category, rising):
    maps, masks = category
    # The function is applied to ranks, because rounding may make two neighboring floats equal.
    values = np.unique(np.concatenate([score_map.ravel() for score_map in maps]))
    ranks = [np.searchsorted(values, score_map).astype(np.float64) for score_map in maps]
    assert pixels([rising(rank) for rank in ranks], masks) == pytest.approx(pixels(maps, masks), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(categories(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(category, random):
    order = list(range(len(category[0])))
    random.shuffle(order)
    shuffled = pixels([category[0][i] for i in order], [category[1][i] for i in order])
    assert shuffled == pytest.approx(pixels(*category), abs=1e-12)


# --- Large sets -----------------------------------------------------------------------------------------------------


class GeneratedImages(Sequence):
    """Maps or masks that are generated on access and not stored; 3 % of the pixels are defects."""

    def __init__(self, images, *, masks, levels=None):
        self.images, self.masks, self.levels = images, masks, levels

    def __len__(self):
        return self.images

    def __getitem__(self, number):
        if not 0 <= number < self.images:
            raise IndexError(number)
        mask = np.zeros((128, 128), dtype=bool)
        mask[10:25, 20:40] = mask[60, 60] = mask[100:110, 90:110] = number > 0
        if self.masks:
            return mask
        random = np.random.default_rng(number)
        score_map = random.standard_normal(mask.shape) + mask * random.uniform(0, 3)
        return (score_map if self.levels is None else np.round(score_map * self.levels) / self.levels).astype(
            np.float32
        )


def approximate_and_error(maps, masks, max_scores, monkeypatch):
    """Evaluate with at most `max_scores` defect scores; also return the largest difference from the exact values."""
    labels = np.arange(len(maps)) > 0
    monkeypatch.setattr(curves, "MAX_EXACT_SCORES", 1 << 40)
    exact_metrics = evaluate(labels, labels, maps, masks, fpr_limits=(0.05, 0.3))
    assert exact_metrics.error_bound == 0.0
    monkeypatch.setattr(curves, "MAX_EXACT_SCORES", max_scores)
    approximate = evaluate(labels, labels, maps, masks, fpr_limits=(0.05, 0.3))
    return approximate, max(abs(approximate.values[name] - value) for name, value in exact_metrics.values.items())


@pytest.mark.parametrize("levels", [None, 3, 300])
@pytest.mark.parametrize("max_scores", [100, 1000])
def test_with_too_many_defect_scores_the_error_is_bounded_and_reported(levels, max_scores, monkeypatch):
    maps, masks = GeneratedImages(30, masks=False, levels=levels), GeneratedImages(30, masks=True)
    approximate, error = approximate_and_error(maps, masks, max_scores, monkeypatch)
    assert error <= approximate.error_bound + 1e-12
    assert approximate.error_bound < 10 / max_scores
    assert (approximate.error_bound > 0) == (levels != 3)  # exact with a few distinct scores


def test_the_error_of_a_large_set_is_below_a_hundred_thousandth(monkeypatch):
    random = np.random.default_rng(0)
    masks = np.zeros((40, 512, 512), dtype=bool)
    masks[1:, 100:300, 100:400] = masks[1:, 400:403, 50] = True  # 2.34 million defect pixels of 10 million
    maps = (random.standard_normal(masks.shape) + masks * random.uniform(0, 3, size=(40, 1, 1))).astype(np.float32)
    approximate, error = approximate_and_error(maps, masks, curves.MAX_EXACT_SCORES, monkeypatch)
    assert 0 < error <= approximate.error_bound < 1e-5


def test_a_score_that_many_pixels_share_stays_a_threshold(monkeypatch):
    # Half of all pixels tie at zero: in one group with other scores they would change the AUROC a lot.
    monkeypatch.setattr(curves, "MAX_EXACT_SCORES", 500)
    maps = [np.maximum(score_map, 0) for score_map in GeneratedImages(30, masks=False)]
    masks, labels = GeneratedImages(30, masks=True), np.arange(30) > 0
    assert 0 < evaluate(labels, labels, maps, masks).error_bound < 0.01


def test_memory_does_not_grow_with_the_number_of_maps(monkeypatch):
    monkeypatch.setattr(curves, "MAX_EXACT_SCORES", 2000)
    monkeypatch.setattr(curves, "SORT_BUFFER", 20000)

    def peak(images):
        labels = np.arange(images) > 0
        tracemalloc.start()
        evaluate(labels, labels, GeneratedImages(images, masks=False), GeneratedImages(images, masks=True))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory

    assert peak(120) < 1.3 * peak(30)  # the maps alone would need four times as much


# --- A decision threshold -------------------------------------------------------------------------------------------


def test_one_of_ten_good_images_is_above_a_threshold_for_a_rate_of_a_tenth():
    # The threshold is the highest of nine calibration images; a tenth image exceeds it with probability 1/10.
    assert threshold_at(np.arange(9.0), 0.1) == 8.0
    assert threshold_at(np.arange(19.0), 0.1) == 17.0
    assert threshold_at(np.arange(99.0), 0.01) == 98.0


def test_the_false_positive_rate_is_as_requested():
    random = np.random.default_rng(0)
    for images, rate in ((9, 0.1), (25, 0.1), (40, 0.25)):
        draws = random.exponential(size=(4000, images + 1))
        flagged = np.mean([draw[-1] > threshold_at(draw[:-1], rate) for draw in draws])
        # The exact probability is 1 - ceil((n + 1)(1 - rate)) / (n + 1); four standard errors of 4000 draws.
        exact_metrics = 1 - np.ceil((images + 1) * (1 - rate)) / (images + 1)
        assert abs(flagged - exact_metrics) < 4 * np.sqrt(exact_metrics * (1 - exact_metrics) / 4000)
        assert exact_metrics <= rate + 1e-12


@pytest.mark.parametrize(("images", "rate", "needed"), [(8, 0.1, 9), (1, 0.3, 3), (15, 0.05, 19), (98, 0.01, 99)])
def test_too_few_good_images_for_a_rate_are_errors(images, rate, needed):
    with pytest.raises(BenchError, match=f"needs {needed} good images .* got {images}") as error:
        threshold_at(np.arange(images), rate)
    threshold_at(np.arange(needed), rate)
    threshold_at(np.arange(images), float(str(error.value).removesuffix(".").rpartition(" ")[2]))  # the proposed rate


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, np.nan])
def test_a_rate_outside_zero_to_one_is_an_error(rate):
    with pytest.raises(BenchError, match="must be >= 1e-09 and < 1"):
        threshold_at(np.arange(9), rate)


def test_precision_recall_and_f1_at_a_threshold_by_hand():
    scores, labels = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([False, True, False, True, True])
    # Above 2: good 3, defective 4 and 5. A score equal to the threshold is not above it.
    values = at_threshold(scores, labels, 2.0)
    assert values == {"image_precision": 2 / 3, "image_recall": 2 / 3, "image_f1": 2 / 3, "image_fpr": 1 / 2}
    assert set(at_threshold(scores, labels, 9.0).values()) == {0.0}


# --- Undefined metrics and invalid arguments ------------------------------------------------------------------------


def test_a_category_without_masks_has_image_metrics_and_a_reason():
    evaluation = evaluate(SCORES, LABELS, [np.zeros((2, 2))] * 2, None)
    assert evaluation.values == {"image_auroc": 1.0, "image_ap": 1.0, "image_f1max": 1.0}
    assert evaluation.undefined == dict.fromkeys(PIXEL_NAMES, "no masks")


def test_a_category_without_maps_has_a_reason():
    assert evaluate(SCORES, LABELS, None, None).undefined == dict.fromkeys(PIXEL_NAMES, "no maps")


def test_a_category_without_defects_has_no_metric_and_a_reason():
    evaluation = evaluate(SCORES, LABELS & False, [np.zeros((2, 2))] * 2, [np.zeros((2, 2), dtype=bool)] * 2)
    assert evaluation.values == {}
    assert evaluation.undefined["image_auroc"] == "no defective images"
    assert evaluation.undefined["aupro_30"] == "no defect pixels"


def test_a_category_without_good_images_still_has_pixel_metrics():
    mask = np.array([[True, False]])
    evaluation = evaluate(SCORES, LABELS | True, [np.array([[2.0, 1.0]])] * 2, [mask] * 2, fpr_limits=(0.05,))
    assert evaluation.values == dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_05"), 1.0)
    assert evaluation.undefined == dict.fromkeys(("image_auroc", "image_ap", "image_f1max"), "no good images")


def test_masks_that_cover_everything_leave_no_pixel_metrics():
    evaluation = evaluate(SCORES, LABELS, [np.zeros((2, 2))] * 2, [np.ones((2, 2), dtype=bool)] * 2)
    assert evaluation.undefined["pixel_ap"] == "no normal pixels"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error(bad):
    mask = np.zeros((2, 2), dtype=bool)
    with pytest.raises(BenchError, match="the score of image 1"):
        evaluate(np.array([0.0, bad]), LABELS, None, None)
    with pytest.raises(BenchError, match="the map of image 1"):
        evaluate(SCORES, LABELS, [np.zeros((2, 2)), np.full((2, 2), bad)], [mask, mask])


def test_different_lengths_and_shapes_are_errors():
    mask = np.zeros((2, 2), dtype=bool)
    with pytest.raises(BenchError, match="one shape"):
        auroc(np.zeros(3), LABELS)
    with pytest.raises(BenchError, match="got 2, 1 and 2"):
        evaluate(SCORES, LABELS, [np.zeros((2, 2))], [mask, mask])
    with pytest.raises(BenchError, match="for image 0"):
        evaluate(SCORES, LABELS, [np.zeros((3, 2))] * 2, [mask, mask])
    with pytest.raises(BenchError, match="one class only"):
        auroc(SCORES, LABELS & False)
    with pytest.raises(BenchError, match="whole percents"):
        evaluate(SCORES, LABELS, None, None, fpr_limits=(0.125,))
