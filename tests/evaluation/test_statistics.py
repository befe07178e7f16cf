"""The statistics against values computed by hand, scipy, and the tables of Demsar (JMLR 2006)."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from bench.errors import BenchError
from bench.evaluation.bootstrap import Interval
from bench.evaluation.statistics import (
    Comparison,
    Ranking,
    compare,
    conclude,
    conclude_ranking,
    holm,
    rank,
    summarize_seeds,
)

# --- Seeds ----------------------------------------------------------------------------------------------------------


def test_the_summary_of_three_seeds_by_hand():
    # Deviations -1, 0, 1: variance 2 / (3 - 1) = 1. Student's t for 2 degrees of freedom and 95 % is 4.303.
    result = summarize_seeds([1.0, 2.0, 3.0])
    assert (result.mean, result.std, result.n_seeds) == (2.0, 1.0, 3)
    assert result.interval.high - 2 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-5)
    assert result.interval.low == pytest.approx(4 - result.interval.high)


def test_a_single_seed_has_no_standard_deviation_and_no_seed_is_an_error():
    assert (summarize_seeds([0.5]).std, summarize_seeds([0.5]).interval) == (None, None)
    with pytest.raises(BenchError, match="at least one run"):
        summarize_seeds([])


# --- Categories -----------------------------------------------------------------------------------------------------


def test_holms_correction_by_hand():
    # By increasing p: 0.01 x 3, 0.03 x 2, 0.04 x 1; the last is raised to the one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_signed_rank_test_by_hand():
    # Better in all of 6 categories by different amounts: one of 2 ** 6 sign patterns per side, 2 / 64.
    better = [0.9 + 0.01 * number for number in range(6)]
    result = compare({"a": better, "b": [0.8] * 6})[0]
    assert result.p == result.p_holm == pytest.approx(2 / 64)
    assert (result.wins, result.losses, result.categories, result.tests) == (6, 0, 6, 1)
    assert result.difference == pytest.approx(0.125)


def test_ties_and_zeros_keep_the_signed_rank_test_exact():
    # Differences 0, 1, 1, 1: by Pratt the zero has rank 1 and no sign, the ones rank 3. 2 of 2 ** 3 sign patterns.
    assert compare({"a": [0.0, 1.0, 1.0, 1.0], "b": [0.0] * 4})[0].p == pytest.approx(2 / 8)
    assert compare({"a": [0.3] * 5, "b": [0.1 + 0.2] * 5})[0].p == 1.0


@pytest.mark.parametrize("categories", [1, 2, 7, 15, 30])
def test_the_signed_rank_test_equals_scipys_without_ties(categories):
    random = np.random.default_rng(categories)
    for _ in range(20):
        first, second = random.random((2, categories))
        expected = stats.wilcoxon(first, second, method="exact").pvalue
        assert compare({"a": first, "b": second})[0].p == pytest.approx(expected, abs=1e-9)


def test_the_signed_rank_test_with_ties_equals_enumerating_all_signs():
    random = np.random.default_rng(0)
    for _ in range(20):
        difference = random.integers(-2, 4, size=8) / 10
        ranks = stats.rankdata(np.abs(difference)) * (difference != 0)
        signs = np.array(list(product((0, 1), repeat=8)))
        sums, observed = signs @ ranks, ranks[difference > 0].sum()
        expected = min(2 * min(np.mean(sums <= observed), np.mean(sums >= observed)), 1)
        assert compare({"a": difference, "b": np.zeros(8)})[0].p == pytest.approx(expected, abs=1e-12)


def test_every_pair_is_compared_and_corrected_for_all():
    random = np.random.default_rng(0)
    result = compare({name: random.random(15) for name in "abc"})
    assert [(pair.first, pair.second, pair.tests) for pair in result] == [("a", "b", 3), ("a", "c", 3), ("b", "c", 3)]
    assert [pair.p_holm for pair in result] == holm([pair.p for pair in result])


@pytest.mark.parametrize(
    ("methods", "quantile"),  # Demsar 2006, table 5 (a)
    [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_the_critical_difference_is_that_of_demsars_table(methods, quantile):
    values = {str(number): [float(number)] * 14 for number in range(methods)}
    expected = quantile * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert rank(values).critical_difference == pytest.approx(expected, abs=1e-3)


def test_the_critical_difference_of_four_methods_on_fourteen_datasets_is_1_25():
    values = {str(number): [float(number)] * 14 for number in range(4)}
    assert rank(values).critical_difference == pytest.approx(1.25, abs=0.005)


def test_mean_ranks_by_hand():
    # a is best three times and ties once with b: ranks 1, 1, 1, 1.5. c is always last.
    result = rank({"c": [0.1, 0.1, 0.1, 0.1], "b": [0.5, 0.6, 0.7, 0.9], "a": [0.8, 0.8, 0.8, 0.9]})
    assert result.methods == ("a", "b", "c")
    assert result.mean_ranks == (1.125, 1.875, 3.0)
    # With a critical difference of 2.343 x sqrt(3 x 4 / (6 x 4)) = 1.657 only a and c differ.
    assert result.groups == (("a", "b"), ("b", "c"))
    # Friedman: 12 x 4 / (3 x 4) x (1.125^2 + 1.875^2 + 3^2 - 12) = 7.125, over 1 - 6 / (4 x 24) for the tie: 7.6.
    assert result.p == pytest.approx(math.exp(-7.6 / 2))


def test_equal_methods_are_one_group():
    result = rank({name: [0.5] * 5 for name in "abc"})
    assert (result.p, result.groups) == (1.0, (("a", "b", "c"),))


def test_too_few_methods_or_categories_are_errors():
    with pytest.raises(BenchError, match="at least 2 methods, got 1"):
        compare({"a": [1.0]})
    with pytest.raises(BenchError, match="at least 3 methods, got 2"):
        rank({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    with pytest.raises(BenchError, match="at least 2 categories, got 1"):
        rank({"a": [1.0], "b": [1.0], "c": [1.0]})
    with pytest.raises(BenchError, match="2 for a, 1 for b"):
        compare({"a": [1.0, 2.0], "b": [1.0]})


# --- Conclusions ----------------------------------------------------------------------------------------------------


def test_a_significant_difference_is_stated():
    text = conclude(
        Comparison("PatchCore", "RIAD", 0.0123, 14, 1, 15, 0.0004, 0.0012, 3),
        images=Interval(0.012, 0.004, 0.02, 0.95),
        seeds=3,
    )
    assert "PatchCore is on average 1.2 points above RIAD: higher in 14, lower in 1 of 15 categories" in text
    assert "over categories is significant" in text
    assert "between +0.4 and +2.0 points" in text
    assert "excludes zero" in text
    assert "seed" not in text


def test_a_difference_without_significance_is_not_called_equality():
    text = conclude(
        Comparison("a", "b", -0.002, 7, 8, 15, 0.6, 0.6, 1), images=Interval(-0.002, -0.01, 0.006, 0.95), seeds=1
    )
    assert "does not show that they are equal" in text
    assert "includes zero" in text
    assert "0.2 points below b" in text
    assert "Only one seed per method" in text


def test_too_few_categories_for_significance_are_stated():
    # 2 / 2 ** 5 = 0.0625: five wins in five categories do not reach 5 %; for ten comparisons eight wins do not either.
    assert "no difference can be significant" in conclude(
        Comparison("a", "b", 0.1, 5, 0, 5, 0.0625, 0.0625, 1), seeds=2
    )
    assert "no difference can be significant" in conclude(
        Comparison("a", "b", 0.1, 8, 0, 8, 0.0078, 0.078, 10), seeds=2
    )
    assert "no difference can be significant" not in conclude(
        Comparison("a", "b", 0.1, 6, 0, 6, 0.03, 0.03, 1), seeds=2
    )


def test_the_conclusion_of_a_ranking_names_methods_without_significant_difference():
    ranking = Ranking(("a", "b", "c"), (1.1, 1.9, 3.0), 15, 0.001, 0.86, (("a", "b"),), 0.05)
    assert conclude_ranking(ranking).endswith("(Nemenyi). Without significant difference: a, b.")
    distinct = Ranking(("a", "b", "c"), (1.0, 2.0, 3.0), 15, 0.001, 0.86, (), 0.05)
    assert conclude_ranking(distinct).endswith("All methods differ from one another.")
    similar = Ranking(("a", "b", "c"), (1.9, 2.0, 2.1), 15, 0.7, 0.86, (("a", "b", "c"),), 0.05)
    assert "No difference is significant" in conclude_ranking(similar)
