"""The synthetic demo dataset: reproducible images with exact masks."""

import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bench.errors import BenchError
from bench.files import temporary_folder

demo = import_module("bench.datasets.demo")
surface = import_module("bench.datasets.parts.surface")

DEFECTS = [(product, defect) for product, (_, defects) in demo.PRODUCTS.items() for defect in defects]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("N_TRAIN", "N_TEST_GOOD", "N_TEST_DEFECT"):
        monkeypatch.setattr(demo, name, 1)


def test_there_are_four_products_with_three_or_more_kinds_of_defects() -> None:
    assert list(demo.PRODUCTS) == sorted(demo.PRODUCTS)
    assert len(demo.PRODUCTS) >= 4
    assert all(len(set(defects)) >= 3 and "good" not in defects for _, defects in demo.PRODUCTS.values())


@pytest.mark.parametrize("product", demo.PRODUCTS)
def test_an_image_does_not_depend_on_the_images_drawn_before(product: str) -> None:
    first, _ = demo.draw_image(product, "train", "good", 3)
    other, _ = demo.draw_image(product, "train", "good", 4)
    repeated, _ = demo.draw_image(product, "train", "good", 3)
    assert first.shape == (256, 256, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, repeated)
    assert np.abs(first.astype(int) - other).mean() > 2  # parts differ by more than noise
    assert 40 < first.mean() < 215
    assert np.mean((first == 0) | (first == 255)) < 0.02  # well exposed


@pytest.mark.parametrize(("product", "defect"), DEFECTS)
def test_a_mask_contains_exactly_the_changed_pixels(product: str, defect: str) -> None:
    for index in range(2):
        good, defective, camera = demo.surfaces_and_camera(product, "test", defect, index)
        image, mask = surface.render(camera, good, defective)
        good_image, empty = surface.render(camera, good)
        change = np.abs(image.astype(int) - good_image).max(2)
        assert not empty.any()
        assert not change[~mask].any()
        assert 20 <= mask.sum() <= 0.15 * mask.size
        regions, count = ndimage.label(mask)
        peaks = ndimage.maximum(change, regions, range(1, count + 1))
        assert min(peaks) >= 4  # gray levels, in every region
        assert np.mean(change[mask] > 0) > 0.5


def test_defects_range_from_faint_to_clear() -> None:
    peaks, areas = [], []
    for product, defect in DEFECTS:
        good, defective, camera = demo.surfaces_and_camera(product, "test", defect, 0)
        image, mask = surface.render(camera, good, defective)
        good_image, _ = surface.render(camera, good)
        peaks.append(np.percentile(np.abs(image.astype(int) - good_image).max(2)[mask], 90))
        areas.append(mask.mean())
    assert min(peaks) < 25 < 80 < max(peaks)
    assert min(areas) < 0.004 < 0.01 < max(areas)


MEANS = {
    # good, then each defect type
    "blister": [130.847, 127.114, 129.214, 133.421, 131.547],
    "fabric": [100.999, 103.203, 102.766, 106.145, 104.271],
    "gear": [172.730, 164.392, 166.913, 172.577, 162.972],
    "steel": [143.828, 152.994, 142.537, 143.719, 153.216],
}


@pytest.mark.parametrize("product", demo.PRODUCTS)
def test_a_change_of_the_images_needs_a_new_version(product: str) -> None:
    """Mean gray levels of the first images. If they change, increase VERSION and update them."""
    means = [
        demo.draw_image(product, "test", defect_type, 0)[0].mean()
        for defect_type in ("good", *demo.PRODUCTS[product][1])
    ]
    assert demo.VERSION == 1
    assert means == pytest.approx(MEANS[product], abs=0.01)


@pytest.mark.usefixtures("small")
def test_the_images_are_generated_once_in_the_common_layout(tmp_path: Path) -> None:
    root = tmp_path / "cache" / "demo"  # created if it does not exist
    samples = demo.samples(root)
    assert len(samples) == sum(2 + len(defects) for _, defects in demo.PRODUCTS.values())
    assert [folder.name for folder in root.iterdir()] == [f"drawing-{demo.VERSION}"]
    for sample in samples:
        assert len(sample.masks) == sample.is_anomalous
        with Image.open(sample.image) as image:
            assert (image.size, image.mode, image.format) == ((256, 256), "RGB", "PNG")
        for mask in sample.masks:
            with Image.open(mask) as image:
                assert (image.size, image.mode) == ((256, 256), "L")
                assert set(np.unique(np.asarray(image))) == {0, 255}
    times = [sample.image.stat().st_mtime_ns for sample in samples]
    assert demo.samples(root) == samples
    assert [sample.image.stat().st_mtime_ns for sample in samples] == times


@pytest.mark.usefixtures("small")
def test_files_equal_the_drawn_images_and_are_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    first, second = demo.samples(tmp_path / "first"), demo.samples(tmp_path / "second")
    assert [s.image.read_bytes() for s in first] == [s.image.read_bytes() for s in second]
    for sample in first:
        pixels, mask = demo.draw_image(sample.category, sample.split, sample.defect, 0)
        assert np.array_equal(np.asarray(Image.open(sample.image)), pixels)
        assert all(np.array_equal(np.asarray(Image.open(path)) > 0, mask) for path in sample.masks)


@pytest.mark.usefixtures("small")
def test_an_interrupted_generation_leaves_no_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    original = demo.draw_image

    def interrupted(product: str, split: str, defect_type: str, index: int) -> None:
        if defect_type == "scratch":
            raise KeyboardInterrupt
        return original(product, split, defect_type, index)

    monkeypatch.setattr(demo, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.samples(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "draw_image", original)
    assert len(demo.samples(tmp_path)) == 6


@pytest.mark.usefixtures("small")
def test_a_second_process_uses_the_images_of_the_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    original, calls = demo.draw_image, []

    def write_in_another_process(*key: str | int) -> None:
        if not calls:
            calls.append(key)
            demo.samples(tmp_path)  # another process that starts later and ends first
        return original(*key)

    monkeypatch.setattr(demo, "draw_image", write_in_another_process)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert len(demo.samples(tmp_path)) == 6
    assert [folder.name for folder in tmp_path.iterdir()] == [f"drawing-{demo.VERSION}"]


@pytest.mark.usefixtures("small")
def test_the_folder_of_a_process_that_was_killed_while_it_generated_is_removed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with temporary_folder(tmp_path / f"drawing-{demo.VERSION}") as of_this_process:
        left = of_this_process.with_name(of_this_process.name.replace("drawing", "left"))
        (left / "steel").mkdir(parents=True)
        demo.samples(tmp_path)
        assert not left.exists()
        assert of_this_process.exists()
    assert [folder.name for folder in tmp_path.iterdir()] == [f"drawing-{demo.VERSION}"]


@pytest.mark.usefixtures("small")
def test_another_version_has_its_own_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    old_samples = demo.samples(tmp_path)
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    assert not {sample.image for sample in demo.samples(tmp_path)} & {sample.image for sample in old_samples}


@pytest.mark.usefixtures("small")
def test_a_missing_file_is_an_error_that_names_the_folder_to_remove(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    demo.samples(tmp_path)[-1].image.unlink()
    with pytest.raises(BenchError, match=r"must have 6 images; .*drawing-\d+ has 5\. Remove"):
        demo.samples(tmp_path)


def test_a_root_that_is_not_writable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"must be writable, .*file is not"):
        demo.samples(tmp_path / "file")


@pytest.mark.parametrize("width", [0.7, 3.0, 12.0])
def test_noise_has_mean_zero_deviation_one_and_the_given_correlation_length(width: float) -> None:
    noise = np.stack([surface.smooth_noise(np.random.default_rng(seed), width) for seed in range(8)])
    assert np.abs(noise.mean((1, 2))).max() < 1e-12
    assert noise.std((1, 2)) == pytest.approx(1)
    # White noise smoothed by a Gaussian of width s has the correlation exp(-d^2 / 4 s^2) at distance d.
    shift = max(round(width), 1)
    expected = np.exp(-(shift**2) / (4 * width**2))
    for axis in (1, 2):
        assert np.mean(noise * np.roll(noise, shift, axis)) == pytest.approx(expected, abs=0.06)


def test_the_distance_to_a_curve_is_exact_for_lines() -> None:
    distance, along = surface.distance_to_curve(np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 60.0]]))
    assert distance[20, 15] == 0
    assert distance[25, 15] == 5
    assert distance[23, 6] == 5  # 3 below and 4 left of the start
    assert (along[20, 10], along[20, 30], along[60, 30]) == (0, 0.5, 1)


def test_the_demo_has_the_documented_sizes() -> None:
    keys = list(demo.image_keys())
    assert len(keys) == len(set(keys)) == 320
    for product, (_, defects) in demo.PRODUCTS.items():
        members = [key for key in keys if key[0] == product]
        assert len([key for key in members if key[1] == "train"]) == 40
        assert len([key for key in members if key[1:3] == ("test", "good")]) == 12
        assert all(len([key for key in members if key[2] == defect]) == 7 for defect in defects)
