"""Checks of a dataset: what `bench check` reports for datasets with known errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.data import dataset_checks
from bench.dataset import Sample
from bench.errors import CheckResult
from bench.method import Preprocessing

SIZE = 192


def part(seed: int) -> np.ndarray:
    """A gray part with a dark square whose position and gray level depend on the seed."""
    generator = np.random.default_rng(seed)
    pixels = np.full((SIZE, SIZE, 3), 150, np.uint8)
    top, left = generator.integers(20, 100, 2)
    pixels[top : top + 60, left : left + 60] = generator.integers(20, 90)
    return pixels + generator.integers(0, 20, pixels.shape).astype(np.uint8)


def save(pixels: np.ndarray, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def lid(tmp_path: Path) -> Path:
    root = tmp_path / "lid"
    for seed in range(6):
        save(part(seed), root / "train" / "good" / f"{seed}.png")
    for seed in range(10, 13):
        save(part(seed), root / "test" / "good" / f"{seed}.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[5:9, 5:9] = 255
    for seed in range(20, 22):
        save(part(seed), root / "test" / "dent" / f"{seed}.png")
        save(mask, root / "ground_truth" / "dent" / f"{seed}_mask.png")
    return root


def results_of(root: Path) -> dict[str, CheckResult]:
    calls: list[tuple[int, int]] = []
    samples = registry.load("datasets", "folder").samples(root)
    results = dataset_checks.check_dataset(
        samples, [], lambda done, total: calls.append((done, total)), Preprocessing(64, 64), is_official=False
    )
    assert calls[-1] == (len(samples), len(samples))
    return {result.requirement: result for result in results}


def problems_of(root: Path) -> dict[str, str]:
    return {requirement: result.problem for requirement, result in results_of(root).items() if result.problem}


def test_a_correct_dataset_has_no_problems_and_its_counts_are_reported(lid: Path) -> None:
    results = results_of(lid)
    assert "lid: 6 training images, 3 good and 2 defective test images (dent 2; 2 with a mask)" in results
    assert not any(result.problem for result in results.values())


def test_an_equal_image_in_train_and_test_is_a_leak_in_any_format(lid: Path) -> None:
    save(part(3), lid / "test" / "good" / "copy.bmp")
    result = results_of(lid)["No image is in train and in test."]
    assert result.problem == "1: lid/train/good/3.png = lid/test/good/copy.bmp"
    assert result.required


@pytest.mark.parametrize("change", ["jpeg", "half", "brighter"])
def test_a_changed_copy_of_a_training_image_is_nearly_equal(lid: Path, change: str) -> None:
    if change == "jpeg":
        save(part(3), lid / "test" / "good" / "copy.jpg", quality=50)
    elif change == "half":
        image = Image.fromarray(part(3)).resize((SIZE // 2, SIZE // 2), Image.Resampling.BILINEAR)
        save(np.asarray(image), lid / "test" / "good" / "copy.png")
    else:
        save(part(3) + np.uint8(8), lid / "test" / "good" / "copy.png")
    (problem,) = problems_of(lid).values()
    assert problem.startswith("1: lid/test/good/copy.")
    assert "~ lid/train/good/3.png" in problem


def test_two_surfaces_with_little_contrast_are_not_copies(lid: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        save(generator.integers(99, 102, (SIZE, SIZE), np.uint8), lid / split / "good" / "faint.png")
        save(np.full((SIZE, SIZE), 100 if split == "train" else 101, np.uint8), lid / split / "good" / "flat.png")
    assert problems_of(lid) == {}


def test_contradicting_labels_and_repeated_images_are_reported(lid: Path) -> None:
    save(part(20), lid / "test" / "good" / "same.png")
    save(part(1), lid / "train" / "good" / "twice.png")
    assert problems_of(lid) == {
        "No image is both good and defective.": "1: lid/test/dent/20.png = lid/test/good/same.png",
        "No image is twice in one split.": "1: lid/train/good/1.png = lid/train/good/twice.png",
    }


def test_unreadable_images_and_masks_that_do_not_fit_are_named(lid: Path) -> None:
    (lid / "test" / "good" / "10.png").write_bytes(b"")
    save(np.zeros((SIZE, SIZE), np.uint8), lid / "ground_truth" / "dent" / "20_mask.png")
    save(np.full((10, 40), 255, np.uint8), lid / "ground_truth" / "dent" / "21_mask.png")
    problems = problems_of(lid)
    assert "10.png is not" in problems["Every image can be read."]
    masks = problems["Every mask fits its image and marks a part of it."]
    assert masks.startswith("2: the mask of lid/test/dent/20.png marks nothing")
    assert "it has 40 x 10 pixels, its image 192 x 192" in masks


def test_a_mask_that_marks_most_of_an_image_is_reported_as_possibly_inverted(lid: Path) -> None:
    mask = np.full((SIZE, SIZE), 255, np.uint8)
    mask[5:9, 5:9] = 0
    save(mask, lid / "ground_truth" / "dent" / "20_mask.png")
    (problem,) = problems_of(lid).values()
    assert "marks 100% of the image; is it inverted?" in problem


def test_a_mask_of_a_large_part_and_most_of_the_border_is_a_warning_and_no_failure(lid: Path) -> None:
    mask = np.full((SIZE, SIZE), 255, np.uint8)
    mask[: SIZE // 3] = 0
    save(mask, lid / "ground_truth" / "dent" / "20_mask.png")
    ((requirement, problem),) = problems_of(lid).items()
    assert "1 of 2 masks mark most of the image and may be inverted: lid/test/dent/20.png" in problem
    assert not results_of(lid)[requirement].required


def test_only_the_first_files_are_named(lid: Path) -> None:
    for seed in range(8):
        (lid / "train" / "good" / f"{seed + 30}.png").write_bytes(b"nothing")
    problem = problems_of(lid)["Every image can be read."]
    assert problem.startswith("8: ")
    assert problem.endswith("; and 3 more")


def test_near_duplicates_equal_those_of_a_loop() -> None:
    generator = np.random.default_rng(1)
    thumbs = generator.normal(0, 20, (700, dataset_checks.THUMBNAIL_SIDE**2)).astype(np.float32)
    thumbs[600:] = thumbs[:100] + generator.normal(
        0, np.linspace(0.1, 3, 100)[:, None], (100, dataset_checks.THUMBNAIL_SIDE**2)
    )
    thumbs -= thumbs.mean(axis=1, keepdims=True)
    samples = [Sample(Path(f"{i}.png"), "lid", "train" if i < 600 else "test") for i in range(700)]
    infos = [dataset_checks.ImageInfo(samples[i], i.to_bytes(2), thumb) for i, thumb in enumerate(thumbs)]
    differences = [float(np.sqrt(np.mean((thumbs[600 + i] - thumbs[i]) ** 2))) for i in range(100)]
    assert len(list(dataset_checks.near_duplicates(infos))) == sum(
        distance <= dataset_checks.MAX_DIFFERENCE for distance in differences
    )
    assert 40 < sum(distance <= dataset_checks.MAX_DIFFERENCE for distance in differences) < 60


# ---- own images


def test_masks_are_checked_at_the_size_of_the_planned_input(lid: Path) -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[0] = 255  # one row of three
    save(mask, lid / "ground_truth" / "dent" / "20_mask.png")
    (problem,) = problems_of(lid).values()
    assert (
        problem.startswith("lid: 1 of 2 masks mark nothing at the size of the input") or "changes the number" in problem
    )
    requirement = "Masks have two values, and keep their defect regions at 64 x 64 pixels."
    assert requirement in results_of(lid)


def test_the_range_of_12_bit_images_is_reported_with_its_numbers(lid: Path) -> None:
    for path in sorted(lid.glob("t*/*/*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L")).astype(np.uint16)
        Image.fromarray(pixels * 2 + 800).save(path)
    (problem,) = problems_of(lid).values()
    assert "6 training images with more than 8 bits per channel run from" in problem
    assert "becomes black" in problem


def test_a_file_of_several_pages_is_reported(lid: Path) -> None:
    path = lid / "test" / "good" / "10.png"
    pages = [Image.fromarray(part(seed)) for seed in (10, 50)]
    path.unlink()
    pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])
    assert "it has 2 pages or frames" in problems_of(lid)["Every image can be read."]
