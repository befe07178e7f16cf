"""Protocols: which images train a model and which evaluate it."""

from dataclasses import replace
from pathlib import Path
from random import Random
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.protocol import k_shot, one_for_one, split_calibration, split_without_defects, subsample, unified
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation.metrics import min_calibration_images


def samples(category: str, *, train: int = 10, good: int = 2, defects: dict[str, int] | None = None) -> list[Sample]:
    def of_defect(split: str, defect: str, count: int) -> list[Sample]:
        folder = Path("/data") / category / split / defect
        return [Sample(folder / f"{i:03d}.png", category, split, defect) for i in range(count)]

    defects = {"crack": 2} if defects is None else defects
    tests = [each for defect, count in defects.items() for each in of_defect("test", defect, count)]
    return [*of_defect("train", "good", train), *of_defect("test", "good", good), *tests]


def names(images: tuple[Sample, ...]) -> list[str]:
    return [sample.image.stem for sample in images]


def test_one_for_one_gives_a_task_per_category_in_sorted_order() -> None:
    tasks = one_for_one([*samples("tile", train=3), *samples("bolt", train=5)])
    assert [(task.name, len(task.train), [*task.tests]) for task in tasks] == [
        ("bolt", 5, ["bolt"]),
        ("tile", 3, ["tile"]),
    ]
    assert all(sample.category == "bolt" for sample in (*tasks[0].train, *tasks[0].tests["bolt"]))


def test_one_for_one_trains_on_no_defective_and_no_test_image() -> None:
    defective = Sample(Path("/data/bolt/train/crack/9.png"), "bolt", "train", "crack")
    (task,) = one_for_one([*samples("bolt"), defective])
    assert {(sample.split, sample.defect) for sample in task.train} == {("train", "good")}
    assert {sample.split for sample in task.tests["bolt"]} == {"test"}
    assert len(task.tests["bolt"]) == 4


def test_a_category_without_training_images_is_named() -> None:
    with pytest.raises(BenchError, match="needs good training images; 'bolt' has none"):
        one_for_one([*samples("bolt", train=0), *samples("tile")])


def test_a_category_without_test_images_is_trained_on_and_not_evaluated() -> None:
    all_samples = [*samples("bolt", good=0, defects={}), *samples("tile")]
    assert one_for_one(all_samples)[0].tests == {"bolt": ()}
    (task,) = unified(all_samples)
    assert [*task.tests] == ["tile"]
    assert len(task.train) == 20
    (task,) = unified(samples("bolt", good=0, defects={}))
    assert task.tests == {"bolt": ()}


@pytest.mark.parametrize(
    ("train", "held_out", "rate"), [(3, 1, 0.5), (8, 2, 0.34), (30, 10, 0.1), (60, 19, 0.05), (200, 40, 0.05)]
)
def test_without_defects_good_images_are_held_out_for_a_threshold(train: int, held_out: int, rate: float) -> None:
    (task,) = one_for_one(samples("bolt", train=train, good=2, defects={}))
    split, calibrate = split_without_defects(task, 0)
    assert (len(split.calibration["bolt"]), calibrate) == (held_out, rate)
    assert min_calibration_images(calibrate) <= held_out
    assert {*split.train} | {*split.calibration["bolt"]} == {*task.train}
    assert len(split.train) == train - held_out
    assert split.tests == task.tests


def test_without_any_test_images_the_held_out_images_are_scored() -> None:
    (task,) = one_for_one(samples("bolt", good=0, defects={}))
    split, _ = split_without_defects(task, 0)
    assert split.tests == split.calibration
    assert split_without_defects(task, 0)[0] == split
    with pytest.raises(BenchError, match="at least 3 good training images to fit and to set a threshold; 'bolt' has 2"):
        split_without_defects(one_for_one(samples("bolt", train=2, good=0, defects={}))[0], 0)


def test_a_draw_distinguishes_subfolders_and_ignores_the_unicode_form() -> None:
    plain = [Sample(Path(f"/data/ö{i}.png"), "bolt", "train") for i in range(9)]
    decomposed = [replace(sample, image=Path(normalize("NFD", sample.image.as_posix()))) for sample in plain]
    samples_nfc, samples_nfd = (k_shot(all_samples, 3, 0)[0].train for all_samples in (plain, decomposed))
    assert [sample.id for sample in samples_nfc] == [sample.id for sample in samples_nfd]
    nested = [replace(plain[0], folder=f"line{i}") for i in range(9)]
    assert len({sample.folder for sample in k_shot(nested, 3, 0)[0].train}) == 3


@pytest.mark.parametrize("draw", [one_for_one, unified, k_shot])
def test_no_images_at_all_are_an_error(draw) -> None:
    with pytest.raises(BenchError, match="got none"):
        draw([], 4, 0)


def test_unified_fits_one_model_and_evaluates_each_category() -> None:
    (task,) = unified([*samples("tile", train=3), *samples("bolt", train=5)])
    assert task.name == "all"
    assert [sample.category for sample in task.train] == ["bolt"] * 5 + ["tile"] * 3
    assert {category: len(tests) for category, tests in task.tests.items()} == {"bolt": 4, "tile": 4}
    assert all(sample.category == "tile" for sample in task.tests["tile"])


def test_k_shot_draws_k_good_training_images_and_uses_all_test_images() -> None:
    (task,) = k_shot(samples("bolt"), 4, 0)
    assert len(set(task.train)) == 4
    assert {(sample.split, sample.defect) for sample in task.train} == {("train", "good")}
    assert len(task.tests["bolt"]) == 4


def test_the_draw_of_k_shot_has_not_changed() -> None:
    # sha256 of "0/bolt/008" starts with 3e43, of 009 with 40a4, of 004 with 4374, of 000 with 4414; others are larger
    draws = [names(k_shot(samples("bolt"), k, 0)[0].train) for k in (1, 2, 4)]
    assert draws == [["008"], ["008", "009"], ["000", "004", "008", "009"]]


@given(k=st.integers(1, 9), seed=st.integers(-5, 1000))
def test_a_draw_is_nested_in_k(k: int, seed: int) -> None:
    (fewer,), (more,) = k_shot(samples("bolt"), k, seed), k_shot(samples("bolt"), k + 1, seed)
    assert set(fewer.train) < set(more.train)


@given(order=st.integers(0, 1000), k=st.integers(1, 10))
def test_a_draw_does_not_depend_on_the_order_of_the_samples(order: int, k: int) -> None:
    all_samples = [*samples("bolt"), *samples("tile")]
    shuffled = Random(order).sample(all_samples, len(all_samples))
    assert k_shot(shuffled, k, 3) == k_shot(all_samples, k, 3)
    assert one_for_one(shuffled) == one_for_one(all_samples)
    assert unified(shuffled) == unified(all_samples)


def test_a_draw_does_not_change_when_a_category_is_added() -> None:
    single, several = k_shot(samples("bolt"), 4, 0), k_shot([*samples("anvil"), *samples("bolt")], 4, 0)
    assert single[0] == several[1]


def test_a_draw_does_not_depend_on_the_folder_or_the_format() -> None:
    moved = [
        Sample(Path("/moved") / f"{sample.image.stem}.jpg", sample.category, sample.split, sample.defect)
        for sample in samples("bolt")
    ]
    assert names(k_shot(moved, 4, 0)[0].train) == names(k_shot(samples("bolt"), 4, 0)[0].train)


def test_draws_differ_by_seed_and_category() -> None:
    draws = {tuple(names(k_shot(samples("bolt"), 4, seed)[0].train)) for seed in range(20)}
    assert len(draws) > 15
    both = k_shot([*samples("bolt"), *samples("tile")], 4, 0)
    assert names(both[0].train) != names(both[1].train)


def test_calibration_uses_a_fifth_of_the_images_or_as_many_as_the_rate_needs() -> None:
    for images, rate, count in ((18, 0.1, 9), (44, 0.1, 9), (100, 0.1, 20), (100, 0.02, 49), (4, 0.34, 2)):
        task = split_calibration(one_for_one(samples("bolt", train=images))[0], rate, 0)
        assert len(task.calibration["bolt"]) == count
        assert len(task.train) == images - count
        assert not {*task.train} & {*task.calibration["bolt"]}
        assert task.tests == one_for_one(samples("bolt", train=images))[0].tests


def test_calibration_images_come_from_each_category_of_a_unified_model() -> None:
    both = split_calibration(unified([*samples("bolt", train=20), *samples("tile", train=60)])[0], 0.1, 0)
    assert {category: len(images) for category, images in both.calibration.items()} == {"bolt": 9, "tile": 12}
    assert len(both.train) == 11 + 48
    assert (
        both.calibration["bolt"]
        == split_calibration(one_for_one(samples("bolt", train=20))[0], 0.1, 0).calibration["bolt"]
    )


def test_calibration_images_depend_on_the_seed_and_are_training_images() -> None:
    draws = [
        split_calibration(one_for_one(samples("bolt", train=20))[0], 0.1, seed).calibration["bolt"] for seed in range(5)
    ]
    assert len(set(draws)) == 5
    assert {sample.split for images in draws for sample in images} == {"train"}


@pytest.mark.parametrize(
    ("images", "rate", "message"),
    [
        (17, 0.1, r"needs 9 good images.* 'bolt' has 17\. .* --calibrate 0\.12 or more"),
        (4, 0.1, r"'bolt' has 4\. .* --calibrate 0\.34 or more"),
        (1, 0.5, r"'bolt' has 1\. Train on more images or remove --calibrate\.$"),
    ],
)
def test_too_few_images_for_calibration_are_an_error_with_the_possible_rate(
    images: int, rate: float, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        split_calibration(one_for_one(samples("bolt", train=images))[0], rate, 0)


def test_every_image_is_drawn_about_equally_often() -> None:
    counts = dict.fromkeys(names(tuple(samples("bolt")[:10])), 0)
    for seed in range(1000):
        counts[names(k_shot(samples("bolt"), 1, seed)[0].train)[0]] += 1
    assert min(counts.values()) > 60  # 100 each on average; 60 is more than four standard deviations below
    assert max(counts.values()) < 140


def test_a_file_name_need_not_be_utf_8() -> None:
    sample = Sample(Path("/data/bolt/train/good/sch\udcf6n.png"), "bolt", "train")
    (task,) = k_shot([sample, *samples("bolt", train=0)], 1, 0)
    assert task.train == (sample,)


def test_k_above_the_number_of_training_images_is_an_error() -> None:
    with pytest.raises(BenchError, match=r"k is 11 and 'bolt' has 10\. Pass --k 10 or less"):
        k_shot(samples("bolt"), 11, 0)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error(k: int) -> None:
    with pytest.raises(BenchError, match=f"k must be >= 1, got {k}"):
        k_shot(samples("bolt"), k, 0)


def test_subsample_limits_training_good_and_defective_images_per_category() -> None:
    subset = subsample([*samples("bolt", defects={"crack": 5, "dent": 5}), *samples("tile", train=1)], 2)
    counts: dict[tuple[str, str, bool], int] = {}
    for sample in subset:
        key = (sample.category, sample.split, sample.is_anomalous)
        counts[key] = counts.get(key, 0) + 1
    assert counts == {
        ("bolt", "train", False): 2,
        ("bolt", "test", False): 2,
        ("bolt", "test", True): 2,
        ("tile", "train", False): 1,
        ("tile", "test", False): 2,
        ("tile", "test", True): 2,
    }


def test_subsample_is_spread_over_the_sorted_names_and_the_defects() -> None:
    subset = subsample(samples("bolt", train=10, defects={"crack": 5, "dent": 5}), 2)
    assert [s.image.stem for s in subset if s.split == "train"] == ["000", "005"]
    assert [s.defect for s in subset if s.is_anomalous] == ["crack", "dent"]


@given(limit=st.integers(1, 30), order=st.integers(0, 100))
def test_subsample_repeats_nothing_and_does_not_depend_on_the_order(limit: int, order: int) -> None:
    all_samples = samples("bolt", train=20)
    subset = subsample(Random(order).sample(all_samples, len(all_samples)), limit)
    assert subset == subsample(all_samples, limit)
    assert len(set(subset)) == len(subset)
    assert len([sample for sample in subset if sample.split == "train"]) == min(limit, 20)
