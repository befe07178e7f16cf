"""Protocols: which images are fitted on, and which are judged."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.protocol import k_shot, one_for_one, split_calibration, subsample, unified
from bench.dataset import Sample
from bench.errors import BenchError


def samples(category: str, *, train: int = 10, good: int = 2, defects: dict[str, int] | None = None) -> list[Sample]:
    def some(split: str, defect: str, count: int) -> list[Sample]:
        folder = Path("/data") / category / split / defect
        return [Sample(folder / f"{i:03d}.png", category, split, defect) for i in range(count)]

    defects = {"crack": 2} if defects is None else defects
    tests = [each for defect, count in defects.items() for each in some("test", defect, count)]
    return [*some("train", "good", train), *some("test", "good", good), *tests]


def names(drawn: tuple[Sample, ...]) -> list[str]:
    return [sample.image.stem for sample in drawn]


def test_one_for_one_makes_a_task_of_each_category_in_sorted_order() -> None:
    tasks = one_for_one([*samples("tile", train=3), *samples("bolt", train=5)])
    assert [(task.name, len(task.train), [*task.tests]) for task in tasks] == [
        ("bolt", 5, ["bolt"]),
        ("tile", 3, ["tile"]),
    ]
    assert all(sample.category == "bolt" for sample in (*tasks[0].train, *tasks[0].tests["bolt"]))


def test_one_for_one_fits_on_no_defect_and_on_no_test_image() -> None:
    stray = Sample(Path("/data/bolt/train/crack/9.png"), "bolt", "train", "crack")
    (task,) = one_for_one([*samples("bolt"), stray])
    assert {(sample.split, sample.defect) for sample in task.train} == {("train", "good")}
    assert {sample.split for sample in task.tests["bolt"]} == {"test"}
    assert len(task.tests["bolt"]) == 4


@pytest.mark.parametrize(("counts", "part"), [({"train": 0}, "training"), ({"good": 0, "defects": {}}, "test")])
def test_a_category_without_training_or_test_images_is_named(counts: dict, part: str) -> None:
    with pytest.raises(BenchError, match=f"'bolt' has no {part} image"):
        one_for_one([*samples("bolt", **counts), *samples("tile")])


@pytest.mark.parametrize("draw", [one_for_one, unified, k_shot])
def test_no_images_at_all_are_an_error(draw) -> None:
    with pytest.raises(BenchError, match="there is none"):
        draw([], 4, 0)


def test_unified_fits_one_model_on_all_and_judges_each_category_alone() -> None:
    (task,) = unified([*samples("tile", train=3), *samples("bolt", train=5)])
    assert task.name == "all"
    assert [sample.category for sample in task.train] == ["bolt"] * 5 + ["tile"] * 3
    assert {category: len(tests) for category, tests in task.tests.items()} == {"bolt": 4, "tile": 4}
    assert all(sample.category == "tile" for sample in task.tests["tile"])


def test_k_shot_draws_k_good_training_images_and_keeps_all_tests() -> None:
    (task,) = k_shot(samples("bolt"), 4, 0)
    assert len(set(task.train)) == 4
    assert {(sample.split, sample.defect) for sample in task.train} == {("train", "good")}
    assert len(task.tests["bolt"]) == 4


def test_k_shot_draws_what_it_has_always_drawn() -> None:
    # sha256 of "0/bolt/008" begins with 3e43, of 009 with 40a4, of 004 with 4374, of 000 with 4414; others lie above
    drawn = [names(k_shot(samples("bolt"), k, 0)[0].train) for k in (1, 2, 4)]
    assert drawn == [["008"], ["008", "009"], ["000", "004", "008", "009"]]


@given(k=st.integers(1, 9), seed=st.integers(-5, 1000))
def test_a_draw_is_nested_in_k(k: int, seed: int) -> None:
    (fewer,), (more,) = k_shot(samples("bolt"), k, seed), k_shot(samples("bolt"), k + 1, seed)
    assert set(fewer.train) < set(more.train)


@given(order=st.integers(0, 1000), k=st.integers(1, 10))
def test_a_draw_does_not_depend_on_the_order_of_the_samples(order: int, k: int) -> None:
    listed = [*samples("bolt"), *samples("tile")]
    shuffled = Random(order).sample(listed, len(listed))
    assert k_shot(shuffled, k, 3) == k_shot(listed, k, 3)
    assert one_for_one(shuffled) == one_for_one(listed)
    assert unified(shuffled) == unified(listed)


def test_a_draw_does_not_move_when_a_category_is_added() -> None:
    alone, with_others = k_shot(samples("bolt"), 4, 0), k_shot([*samples("anvil"), *samples("bolt")], 4, 0)
    assert alone[0] == with_others[1]


def test_a_draw_does_not_move_with_the_folder_or_the_format() -> None:
    moved = [
        Sample(Path("/elsewhere") / f"{sample.image.stem}.jpg", sample.category, sample.split, sample.defect)
        for sample in samples("bolt")
    ]
    assert names(k_shot(moved, 4, 0)[0].train) == names(k_shot(samples("bolt"), 4, 0)[0].train)


def test_seeds_and_categories_draw_differently() -> None:
    draws = {tuple(names(k_shot(samples("bolt"), 4, seed)[0].train)) for seed in range(20)}
    assert len(draws) > 15
    both = k_shot([*samples("bolt"), *samples("tile")], 4, 0)
    assert names(both[0].train) != names(both[1].train)


def test_a_fifth_is_held_out_of_training_or_as_many_as_the_rate_needs() -> None:
    for images, rate, held in ((18, 0.1, 9), (44, 0.1, 9), (100, 0.1, 20), (100, 0.02, 49), (4, 0.34, 2)):
        task = split_calibration(one_for_one(samples("bolt", train=images))[0], rate, 0)
        assert len(task.calibration["bolt"]) == held
        assert len(task.train) == images - held
        assert not {*task.train} & {*task.calibration["bolt"]}
        assert task.tests == one_for_one(samples("bolt", train=images))[0].tests


def test_images_are_held_out_of_each_category_where_one_model_serves_all() -> None:
    both = split_calibration(unified([*samples("bolt", train=20), *samples("tile", train=60)])[0], 0.1, 0)
    assert {category: len(held) for category, held in both.calibration.items()} == {"bolt": 9, "tile": 12}
    assert len(both.train) == 11 + 48
    assert (
        both.calibration["bolt"]
        == split_calibration(one_for_one(samples("bolt", train=20))[0], 0.1, 0).calibration["bolt"]
    )


def test_the_held_out_images_are_others_with_another_seed_and_no_test_images() -> None:
    drawn = [
        split_calibration(one_for_one(samples("bolt", train=20))[0], 0.1, seed).calibration["bolt"] for seed in range(5)
    ]
    assert len(set(drawn)) == 5
    assert {sample.split for held in drawn for sample in held} == {"train"}


@pytest.mark.parametrize(
    ("images", "rate", "words"),
    [
        (17, 0.1, r"takes 9 good images .* 'bolt' has 17\. .* or allow a rate of 0\.12 or more"),
        (4, 0.1, r"'bolt' has 4\. .* or allow a rate of 0\.34 or more"),
        (1, 0.5, r"'bolt' has 1\. Train on more, leave --calibrate out\.$"),
    ],
)
def test_too_few_images_to_hold_any_out_are_refused_with_the_rate_that_they_allow(
    images: int, rate: float, words: str
) -> None:
    with pytest.raises(BenchError, match=words):
        split_calibration(one_for_one(samples("bolt", train=images))[0], rate, 0)


def test_every_image_is_drawn_about_equally_often() -> None:
    counts = dict.fromkeys(names(tuple(samples("bolt")[:10])), 0)
    for seed in range(1000):
        counts[names(k_shot(samples("bolt"), 1, seed)[0].train)[0]] += 1
    assert min(counts.values()) > 60  # 100 each on average; below 60 is more than four standard deviations away
    assert max(counts.values()) < 140


def test_a_name_that_is_no_utf_8_can_be_drawn() -> None:
    odd = Sample(Path("/data/bolt/train/good/sch\udcf6n.png"), "bolt", "train")
    (task,) = k_shot([odd, *samples("bolt", train=0)], 1, 0)
    assert task.train == (odd,)


def test_k_beyond_the_training_images_says_how_many_there_are() -> None:
    with pytest.raises(BenchError, match=r"asks for 11 images; 'bolt' has 10 .* Lower --k to 10"):
        k_shot(samples("bolt"), 11, 0)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(BenchError, match=f"--k is {k}"):
        k_shot(samples("bolt"), k, 0)


def test_limited_keeps_at_most_so_many_of_training_good_and_defect_images_a_category() -> None:
    kept = subsample([*samples("bolt", defects={"crack": 5, "dent": 5}), *samples("tile", train=1)], 2)
    counted: dict[tuple[str, str, bool], int] = {}
    for sample in kept:
        key = (sample.category, sample.split, sample.is_anomalous)
        counted[key] = counted.get(key, 0) + 1
    assert counted == {
        ("bolt", "train", False): 2,
        ("bolt", "test", False): 2,
        ("bolt", "test", True): 2,
        ("tile", "train", False): 1,
        ("tile", "test", False): 2,
        ("tile", "test", True): 2,
    }


def test_limited_spreads_over_the_sorted_names_and_so_over_the_kinds_of_defect() -> None:
    kept = subsample(samples("bolt", train=10, defects={"crack": 5, "dent": 5}), 2)
    assert [s.image.stem for s in kept if s.split == "train"] == ["000", "005"]
    assert [s.defect for s in kept if s.is_anomalous] == ["crack", "dent"]


@given(limit=st.integers(1, 30), order=st.integers(0, 100))
def test_limited_repeats_nothing_and_does_not_depend_on_order(limit: int, order: int) -> None:
    listed = samples("bolt", train=20)
    kept = subsample(Random(order).sample(listed, len(listed)), limit)
    assert kept == subsample(listed, limit)
    assert len(set(kept)) == len(kept)
    assert len([sample for sample in kept if sample.split == "train"]) == min(limit, 20)
