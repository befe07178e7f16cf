"""The statistics against numbers that can be checked by hand, Demsar's tables, slow resampling, and simulated truth."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from bench.errors import BenchError
from bench.evaluation.metrics import at_threshold, evaluate
from bench.evaluation.statistics import (
    Comparison,
    Interval,
    Ranking,
    bootstrap,
    compare,
    conclude,
    conclude_ranking,
    differences,
    holm,
    intervals,
    mean_over_categories,
    rank,
    summarize_seeds,
)


def category(seed, *, strength=1.5, images=12, size=24):
    """Scores, labels, maps and masks: the first third of the images is good, each other one has two defects."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) >= images // 3
    masks = np.zeros((images, size, size), dtype=bool)
    masks[labels, 3:9, 4:12] = masks[labels, 15:18, 15:18] = True
    maps = random.standard_normal(masks.shape) + masks * random.uniform(0, strength, size=(images, 1, 1))
    return random.standard_normal(images) + labels, labels, maps, masks


# --- Which images were tested ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 2])
def test_a_draw_is_what_judge_says_of_the_images_drawn(levels):
    scores, labels, maps, masks = category(0)
    maps, scores = (maps, scores) if levels is None else (np.round(maps * levels), np.round(scores * levels))
    drawn = bootstrap(scores, labels, maps, masks, fpr_limits=(0.05, 0.3), draws=20, seed=5)
    random = np.random.default_rng(5)
    good = random.multinomial(4, np.full(4, 1 / 4), size=20)
    defective = random.multinomial(8, np.full(8, 1 / 8), size=20)
    for number, weights in enumerate(np.concatenate((good, defective), axis=1)):
        again = np.repeat(np.arange(12), weights)
        exact = evaluate(scores[again], labels[again], list(maps[again]), list(masks[again]), fpr_limits=(0.05, 0.3))
        assert {name: values[number] for name, values in drawn.values.items()} == pytest.approx(exact.values, abs=1e-12)
    assert drawn.error == 0.0  # 456 distinct defect scores are few enough


def test_counting_in_groups_costs_no_more_than_is_told(monkeypatch):
    arguments = category(1, images=30)
    exact = bootstrap(*arguments, draws=50)
    monkeypatch.setattr("bench.evaluation.statistics.HOLD", 256)
    grouped = bootstrap(*arguments, draws=50)
    moved = max(np.max(np.abs(grouped.values[name] - values)) for name, values in exact.values.items())
    assert 0 < moved <= grouped.error < 0.05


def test_with_many_images_fewer_scores_are_counted_at_and_the_error_is_told(monkeypatch):
    arguments = category(1, images=30)
    exact = bootstrap(*arguments, draws=20)
    monkeypatch.setattr("bench.evaluation.statistics.CELLS", 30 * 100)
    grouped = bootstrap(*arguments, draws=20)
    moved = max(np.max(np.abs(grouped.values[name] - values)) for name, values in exact.values.items())
    assert 0 < moved <= grouped.error < 0.1


def test_without_masks_only_image_metrics_are_drawn():
    scores, labels, maps, _ = category(0)
    assert set(bootstrap(scores, labels, maps, None, draws=3).values) == {"image_auroc", "image_ap", "image_f1max"}


def test_an_image_of_unknown_truth_is_drawn_but_its_pixels_do_not_count():
    scores, labels, maps, masks = category(0)
    known = np.arange(12) != 11
    drawn = bootstrap(scores, labels, maps, masks, known=known, draws=10, seed=5)
    random = np.random.default_rng(5)
    good = random.multinomial(4, np.full(4, 1 / 4), size=10)
    again = np.repeat(np.arange(12), [*good[0], *random.multinomial(8, np.full(8, 1 / 8), size=10)[0]])
    exact = evaluate(scores[again], labels[again], None, None).values
    again = again[known[again]]
    pixel = evaluate(scores[again], labels[again], maps[again], masks[again]).values
    for name, values in drawn.values.items():
        assert values[0] == pytest.approx((exact if name in exact else pixel)[name], abs=1e-12)


def test_decisions_at_a_threshold_are_drawn_with_the_images():
    scores, labels, *_ = category(0)
    drawn = bootstrap(scores, labels, None, None, threshold=0.5, draws=10, seed=5).values
    random = np.random.default_rng(5)
    good = random.multinomial(4, np.full(4, 1 / 4), size=10)
    again = np.repeat(np.arange(12), [*good[0], *random.multinomial(8, np.full(8, 1 / 8), size=10)[0]])
    for name, value in at_threshold(scores[again], labels[again], 0.5).items():
        assert drawn[name][0] == value


def test_a_draw_without_any_defect_pixel_is_left_out():
    scores, labels, maps, masks = category(0)
    masks[5:] = False  # of the eight defective images one has a mask: (7/8) ** 8 = 34 % of the draws miss it
    drawn = bootstrap(scores, labels, maps, masks, draws=300)
    missed = np.mean(np.isnan(drawn.values["pixel_auroc"]))
    assert missed == pytest.approx((7 / 8) ** 8, abs=0.1)
    assert np.isfinite(intervals(drawn)["aupro_30"].low)


def test_an_interval_leaves_out_the_same_share_on_either_side():
    drawn = bootstrap(*category(2)[:2], None, None, draws=400)
    for name, interval in intervals(drawn, confidence=0.9).items():
        assert np.mean(drawn.values[name] < interval.low) <= 0.05
        assert np.mean(drawn.values[name] > interval.high) <= 0.05
        assert interval.low <= interval.estimate <= interval.high


def test_a_method_does_not_differ_from_itself_on_any_draw():
    drawn = bootstrap(*category(3), draws=30)
    assert all((found.low, found.high) == (0.0, 0.0) for found in differences(drawn, drawn).values())


def test_a_paired_difference_is_narrower_than_two_intervals():
    scores, labels, *_ = category(4, images=90)
    slightly = scores + 0.1 * labels
    first, second = (bootstrap(values, labels, None, None) for values in (slightly, scores))
    alone, paired = intervals(first)["image_auroc"], differences(first, second)["image_auroc"]
    assert paired.high - paired.low < (alone.high - alone.low) / 4
    assert paired.low > 0


def test_methods_judged_on_different_images_are_not_paired():
    scores, labels, *_ = category(0)
    with pytest.raises(BenchError, match="4 good and 8 defective, the other on 4 and 7"):
        differences(bootstrap(scores, labels, None, None), bootstrap(scores[:-1], labels[:-1], None, None))
    with pytest.raises(BenchError, match="numbers of draws differ"):
        differences(bootstrap(scores, labels, None, None, draws=5), bootstrap(scores, labels, None, None, draws=6))


def test_an_image_without_its_map_is_refused():
    scores, labels, maps, masks = category(0)
    with pytest.raises(BenchError, match="there are 12, 11 and 12"):
        bootstrap(scores, labels, maps[:-1], masks)


def test_the_mean_over_categories_is_drawn_from_all_of_them():
    first, second = (bootstrap(*category(seed)[:2], None, None, draws=50, seed=seed) for seed in (0, 1))
    mean = mean_over_categories([first, second]).values["image_ap"]
    assert mean == pytest.approx((first.values["image_ap"] + second.values["image_ap"]) / 2)


def test_nineteen_of_twenty_intervals_hold_the_true_auroc():
    # Scores of unit variance whose means lie 1 apart have an AUROC of Phi(1 / sqrt 2) = 0.760.
    random = np.random.default_rng(0)
    labels = np.arange(80) >= 40
    truth = stats.norm.cdf(1 / math.sqrt(2))
    held = 0
    for seed in range(200):
        drawn = bootstrap(random.standard_normal(80) + labels, labels, None, None, draws=300, seed=seed)
        found = intervals(drawn)["image_auroc"]
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 200 <= 0.985


# --- Which seed -----------------------------------------------------------------------------------------------------


def test_the_spread_of_three_seeds_by_hand():
    # Deviations -1, 0, 1: variance 2 / (3 - 1) = 1. Student's t for 2 degrees of freedom and 95 % is 4.303.
    found = summarize_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.std, found.runs) == (2.0, 1.0, 3)
    assert found.interval.high - 2 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-5)
    assert found.interval.low == pytest.approx(4 - found.interval.high)


def test_a_single_seed_has_no_spread_and_none_at_all_is_refused():
    assert (summarize_seeds([0.5]).std, summarize_seeds([0.5]).interval) == (None, None)
    with pytest.raises(BenchError, match="one run at least"):
        summarize_seeds([])


# --- Which categories -----------------------------------------------------------------------------------------------


def test_holms_correction_by_hand():
    # Rising: 0.01 x 3, 0.03 x 2, 0.04 x 1, the last raised to the one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_signed_rank_test_by_hand():
    # Better in all of 6 categories by different amounts: one of 2 ** 6 signs is as extreme on either side, 2 / 64.
    better = [0.9 + 0.01 * number for number in range(6)]
    found = compare({"a": better, "b": [0.8] * 6})[0]
    assert found.p == found.p_holm == pytest.approx(2 / 64)
    assert (found.wins, found.losses, found.categories, found.tests) == (6, 0, 6, 1)
    assert found.difference == pytest.approx(0.125)


def test_ties_and_zeros_keep_the_signed_rank_test_exact():
    # Differences 0, 1, 1, 1: by Pratt the zero takes rank 1 and no side, the ones rank 3 each. 2 of 2 ** 3 signs.
    assert compare({"a": [0.0, 1.0, 1.0, 1.0], "b": [0.0] * 4})[0].p == pytest.approx(2 / 8)
    assert compare({"a": [0.3] * 5, "b": [0.1 + 0.2] * 5})[0].p == 1.0


@pytest.mark.parametrize("categories", [1, 2, 7, 15, 30])
def test_the_signed_rank_test_equals_scipys_where_nothing_ties(categories):
    random = np.random.default_rng(categories)
    for _ in range(20):
        first, second = random.random((2, categories))
        expected = stats.wilcoxon(first, second, method="exact").pvalue
        assert compare({"a": first, "b": second})[0].p == pytest.approx(expected, abs=1e-9)


def test_the_signed_rank_test_with_ties_equals_trying_all_signs():
    random = np.random.default_rng(0)
    for _ in range(20):
        difference = random.integers(-2, 4, size=8) / 10
        ranks = stats.rankdata(np.abs(difference)) * (difference != 0)
        signs = np.array(list(product((0, 1), repeat=8)))
        sums, seen = signs @ ranks, ranks[difference > 0].sum()
        expected = min(2 * min(np.mean(sums <= seen), np.mean(sums >= seen)), 1)
        assert compare({"a": difference, "b": np.zeros(8)})[0].p == pytest.approx(expected, abs=1e-12)


def test_every_pair_is_compared_and_corrected_for_all():
    random = np.random.default_rng(0)
    found = compare({name: random.random(15) for name in "abc"})
    assert [(each.first, each.second, each.tests) for each in found] == [("a", "b", 3), ("a", "c", 3), ("b", "c", 3)]
    assert [each.p_holm for each in found] == holm([each.p for each in found])


@pytest.mark.parametrize(
    ("methods", "quantile"),  # Demsar 2006, table 5 (a)
    [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_the_critical_difference_is_that_of_demsars_table(methods, quantile):
    values = {str(number): [float(number)] * 14 for number in range(methods)}
    expected = quantile * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert rank(values).critical_difference == pytest.approx(expected, abs=1e-3)


def test_demsars_four_methods_on_fourteen_data_sets_lie_1_25_apart():
    values = {str(number): [float(number)] * 14 for number in range(4)}
    assert rank(values).critical_difference == pytest.approx(1.25, abs=0.005)


def test_mean_ranks_by_hand():
    # a is best three times and ties once with b: ranks 1, 1, 1, 1.5. c is always last.
    found = rank({"c": [0.1, 0.1, 0.1, 0.1], "b": [0.5, 0.6, 0.7, 0.9], "a": [0.8, 0.8, 0.8, 0.9]})
    assert found.methods == ("a", "b", "c")
    assert found.mean_ranks == (1.125, 1.875, 3.0)
    # A critical difference of 2.343 x sqrt(3 x 4 / (6 x 4)) = 1.657 parts a from c only.
    assert found.groups == (("a", "b"), ("b", "c"))
    # Friedman: 12 x 4 / (3 x 4) x (1.125^2 + 1.875^2 + 3^2 - 12) = 7.125, over 1 - 6 / (4 x 24) for the tie: 7.6.
    assert found.p == pytest.approx(math.exp(-7.6 / 2))


def test_methods_that_never_differ_are_one_group():
    found = rank({name: [0.5] * 5 for name in "abc"})
    assert (found.p, found.groups) == (1.0, (("a", "b", "c"),))


def test_too_little_to_compare_is_refused():
    with pytest.raises(BenchError, match="2 methods at least; there are 1"):
        compare({"a": [1.0]})
    with pytest.raises(BenchError, match="3 methods at least; there are 2"):
        rank({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    with pytest.raises(BenchError, match="two categories at least; there is 1"):
        rank({"a": [1.0], "b": [1.0], "c": [1.0]})
    with pytest.raises(BenchError, match="they have a 2, b 1"):
        compare({"a": [1.0, 2.0], "b": [1.0]})


# --- In words -------------------------------------------------------------------------------------------------------


def test_a_clear_difference_is_told_as_one():
    told = conclude(
        Comparison("PatchCore", "RIAD", 0.0123, 14, 1, 15, 0.0004, 0.0012, 3),
        images=Interval(0.012, 0.004, 0.02, 0.95),
        seeds=3,
    )
    assert "PatchCore lies +1.2 points from RIAD on average: higher in 14, lower in 1 of 15 categories" in told
    assert "more than chance among categories explains" in told
    assert "+0.4 to +2.0 points" in told
    assert "would not turn it round" in told
    assert "seed" not in told


def test_a_difference_that_is_not_shown_is_not_called_equality():
    told = conclude(
        Comparison("a", "b", -0.002, 7, 8, 15, 0.6, 0.6, 1), images=Interval(-0.002, -0.01, 0.006, 0.95), seeds=1
    )
    assert "does not show that they are equal" in told
    assert "could turn it round" in told
    assert "One seed each" in told


def test_few_categories_are_said_to_show_nothing():
    # 2 / 2 ** 5 = 0.0625: even five wins in five categories don't reach 5 %; for ten comparisons eight don't either.
    assert "can't show any difference" in conclude(Comparison("a", "b", 0.1, 5, 0, 5, 0.0625, 0.0625, 1), seeds=2)
    assert "can't show any difference" in conclude(Comparison("a", "b", 0.1, 8, 0, 8, 0.0078, 0.078, 10), seeds=2)
    assert "can't show any difference" not in conclude(Comparison("a", "b", 0.1, 6, 0, 6, 0.03, 0.03, 1), seeds=2)


def test_a_ranking_names_who_can_not_be_told_apart():
    ranking = Ranking(("a", "b", "c"), (1.1, 1.9, 3.0), 15, 0.001, 0.86, (("a", "b"),), 0.05)
    assert conclude_ranking(ranking).endswith("0.86 or more apart differ (Nemenyi). Not told apart: a, b.")
    apart = Ranking(("a", "b", "c"), (1.0, 2.0, 3.0), 15, 0.001, 0.86, (), 0.05)
    assert conclude_ranking(apart).endswith("All of them differ from one another.")
    alike = Ranking(("a", "b", "c"), (1.9, 2.0, 2.1), 15, 0.7, 0.86, (("a", "b", "c"),), 0.05)
    assert "does not show that any of them differ" in conclude_ranking(alike)
