"""The bootstrap against explicit resampling and simulated data with known AUROC."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.errors import BenchError
from bench.evaluation.bootstrap import bootstrap, differences, intervals, mean_over_categories
from bench.evaluation.metrics import at_threshold, evaluate


def category(seed, *, strength=1.5, images=12, size=24):
    """Return scores, labels, maps and masks: the first third of the images is good, the others have two defects."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) >= images // 3
    masks = np.zeros((images, size, size), dtype=bool)
    masks[labels, 3:9, 4:12] = masks[labels, 15:18, 15:18] = True
    maps = random.standard_normal(masks.shape) + masks * random.uniform(0, strength, size=(images, 1, 1))
    return random.standard_normal(images) + labels, labels, maps, masks


@pytest.mark.parametrize("levels", [None, 2])
def test_a_sample_has_the_metrics_of_its_images(levels):
    scores, labels, maps, masks = category(0)
    maps, scores = (maps, scores) if levels is None else (np.round(maps * levels), np.round(scores * levels))
    samples = bootstrap(scores, labels, maps, masks, fpr_limits=(0.05, 0.3), n_samples=20, seed=5)
    random = np.random.default_rng(5)
    good = random.multinomial(4, np.full(4, 1 / 4), size=20)
    defective = random.multinomial(8, np.full(8, 1 / 8), size=20)
    for number, weights in enumerate(np.concatenate((good, defective), axis=1)):
        images = np.repeat(np.arange(12), weights)
        exact_metrics = evaluate(
            scores[images], labels[images], list(maps[images]), list(masks[images]), fpr_limits=(0.05, 0.3)
        )
        assert {name: values[number] for name, values in samples.values.items()} == pytest.approx(
            exact_metrics.values, abs=1e-12
        )
    assert samples.error_bound == 0.0  # 456 distinct defect scores are below the limit


def test_counting_in_groups_stays_within_the_error_bound(monkeypatch):
    arguments = category(1, images=30)
    exact_metrics = bootstrap(*arguments, n_samples=50)
    monkeypatch.setattr("bench.evaluation.bootstrap.N_THRESHOLDS", 256)
    grouped = bootstrap(*arguments, n_samples=50)
    error = max(np.max(np.abs(grouped.values[name] - values)) for name, values in exact_metrics.values.items())
    assert 0 < error <= grouped.error_bound < 0.05


def test_many_images_have_fewer_thresholds_within_the_error_bound(monkeypatch):
    arguments = category(1, images=30)
    exact_metrics = bootstrap(*arguments, n_samples=20)
    monkeypatch.setattr("bench.evaluation.bootstrap.MAX_COUNTS", 30 * 100)
    grouped = bootstrap(*arguments, n_samples=20)
    error = max(np.max(np.abs(grouped.values[name] - values)) for name, values in exact_metrics.values.items())
    assert 0 < error <= grouped.error_bound < 0.1


def test_without_masks_there_are_image_metrics_only():
    scores, labels, maps, _ = category(0)
    assert set(bootstrap(scores, labels, maps, None, n_samples=3).values) == {"image_auroc", "image_ap", "image_f1max"}


def test_an_image_without_pixel_labels_is_sampled_but_its_pixels_do_not_count():
    scores, labels, maps, masks = category(0)
    labeled = np.arange(12) != 11
    samples = bootstrap(scores, labels, maps, masks, has_pixel_labels=labeled, n_samples=10, seed=5)
    random = np.random.default_rng(5)
    good = random.multinomial(4, np.full(4, 1 / 4), size=10)
    images = np.repeat(np.arange(12), [*good[0], *random.multinomial(8, np.full(8, 1 / 8), size=10)[0]])
    exact_metrics = evaluate(scores[images], labels[images], None, None).values
    images = images[labeled[images]]
    pixel = evaluate(scores[images], labels[images], maps[images], masks[images]).values
    for name, values in samples.values.items():
        assert values[0] == pytest.approx((exact_metrics if name in exact_metrics else pixel)[name], abs=1e-12)


def test_metrics_at_a_threshold_are_sampled_with_the_images():
    scores, labels, *_ = category(0)
    samples = bootstrap(scores, labels, None, None, threshold=0.5, n_samples=10, seed=5).values
    random = np.random.default_rng(5)
    good = random.multinomial(4, np.full(4, 1 / 4), size=10)
    images = np.repeat(np.arange(12), [*good[0], *random.multinomial(8, np.full(8, 1 / 8), size=10)[0]])
    for name, value in at_threshold(scores[images], labels[images], 0.5).items():
        assert samples[name][0] == value


def test_a_sample_without_a_defect_pixel_is_ignored():
    scores, labels, maps, masks = category(0)
    masks[5:] = False  # of the eight defective images one has a mask: (7/8) ** 8 = 34 % of the draws miss it
    samples = bootstrap(scores, labels, maps, masks, n_samples=300)
    missed = np.mean(np.isnan(samples.values["pixel_auroc"]))
    assert missed == pytest.approx((7 / 8) ** 8, abs=0.1)
    assert np.isfinite(intervals(samples)["aupro_30"].low)


def test_an_interval_excludes_the_same_share_on_each_side():
    samples = bootstrap(*category(2)[:2], None, None, n_samples=400)
    for name, interval in intervals(samples, confidence=0.9).items():
        assert np.mean(samples.values[name] < interval.low) <= 0.05
        assert np.mean(samples.values[name] > interval.high) <= 0.05
        assert interval.low <= interval.estimate <= interval.high


def test_a_method_does_not_differ_from_itself_in_any_sample():
    samples = bootstrap(*category(3), n_samples=30)
    assert all((interval.low, interval.high) == (0.0, 0.0) for interval in differences(samples, samples).values())


def test_a_paired_difference_is_narrower_than_two_intervals():
    scores, labels, *_ = category(4, images=90)
    slightly = scores + 0.1 * labels
    first, second = (bootstrap(values, labels, None, None) for values in (slightly, scores))
    alone, paired = intervals(first)["image_auroc"], differences(first, second)["image_auroc"]
    assert paired.high - paired.low < (alone.high - alone.low) / 4
    assert paired.low > 0


def test_methods_evaluated_on_different_images_are_not_paired():
    scores, labels, *_ = category(0)
    with pytest.raises(BenchError, match="4 good and 8 defective against 4 and 7"):
        differences(bootstrap(scores, labels, None, None), bootstrap(scores[:-1], labels[:-1], None, None))
    with pytest.raises(BenchError, match="equally many"):
        differences(
            bootstrap(scores, labels, None, None, n_samples=5), bootstrap(scores, labels, None, None, n_samples=6)
        )


def test_an_image_without_its_map_is_an_error():
    scores, labels, maps, masks = category(0)
    with pytest.raises(BenchError, match="got 12, 11 and 12"):
        bootstrap(scores, labels, maps[:-1], masks)


def test_the_mean_over_categories_is_the_mean_of_their_samples():
    first, second = (bootstrap(*category(seed)[:2], None, None, n_samples=50, seed=seed) for seed in (0, 1))
    mean = mean_over_categories([first, second]).values["image_ap"]
    assert mean == pytest.approx((first.values["image_ap"] + second.values["image_ap"]) / 2)


def test_nineteen_of_twenty_intervals_contain_the_true_auroc():
    # Scores of unit variance with means that differ by 1 have an AUROC of Phi(1 / sqrt 2) = 0.760.
    random = np.random.default_rng(0)
    labels = np.arange(80) >= 40
    truth = stats.norm.cdf(1 / math.sqrt(2))
    n_inside = 0
    for seed in range(200):
        samples = bootstrap(random.standard_normal(80) + labels, labels, None, None, n_samples=300, seed=seed)
        interval = intervals(samples)["image_auroc"]
        n_inside += interval.low <= truth <= interval.high
    assert 0.90 <= n_inside / 200 <= 0.985
