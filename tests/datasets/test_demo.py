"""The demo: repeatable to the bit, with masks that are exactly what was changed."""

import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bench.errors import BenchError

demo = import_module("bench.datasets.demo")
surface = import_module("bench.datasets.parts.surface")

DEFECTS = [(product, defect) for product, (_, defects) in demo.PRODUCTS.items() for defect in defects]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAIN", "TEST_GOOD", "TEST_DEFECT"):
        monkeypatch.setattr(demo, name, 1)


def test_there_are_four_products_with_three_or_more_kinds_of_defects() -> None:
    assert list(demo.PRODUCTS) == sorted(demo.PRODUCTS)
    assert len(demo.PRODUCTS) >= 4
    assert all(len(set(defects)) >= 3 and "good" not in defects for _, defects in demo.PRODUCTS.values())


@pytest.mark.parametrize("product", demo.PRODUCTS)
def test_an_image_is_the_same_whenever_it_is_drawn(product: str) -> None:
    first, _ = demo.shoot(product, "train", "good", 3)
    other, _ = demo.shoot(product, "train", "good", 4)
    again, _ = demo.shoot(product, "train", "good", 3)
    assert first.shape == (256, 256, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 2  # no two parts are alike, noise apart
    assert 40 < first.mean() < 215
    assert np.mean((first == 0) | (first == 255)) < 0.02  # well exposed


@pytest.mark.parametrize(("product", "defect"), DEFECTS)
def test_a_mask_is_exactly_what_the_defect_changed(product: str, defect: str) -> None:
    for index in range(2):
        good, bad, camera = demo.twins(product, "test", defect, index)
        picture, mask = surface.photograph(camera, good, bad)
        twin, nothing = surface.photograph(camera, good)
        change = np.abs(picture.astype(int) - twin).max(2)
        assert not nothing.any()
        assert not change[~mask].any()
        assert 20 <= mask.sum() <= 0.15 * mask.size
        regions, count = ndimage.label(mask)
        peaks = ndimage.maximum(change, regions, range(1, count + 1))
        assert min(peaks) >= 4  # grey levels, in every region
        assert np.mean(change[mask] > 0) > 0.5


def test_some_defects_are_subtle_and_some_are_plain() -> None:
    peaks, areas = [], []
    for product, defect in DEFECTS:
        good, bad, camera = demo.twins(product, "test", defect, 0)
        picture, mask = surface.photograph(camera, good, bad)
        twin, _ = surface.photograph(camera, good)
        peaks.append(np.percentile(np.abs(picture.astype(int) - twin).max(2)[mask], 90))
        areas.append(mask.mean())
    assert min(peaks) < 25 < 80 < max(peaks)
    assert min(areas) < 0.004 < 0.01 < max(areas)


MEANS = {
    # good, then each kind of defect
    "blister": [130.847, 127.114, 129.214, 133.421, 131.547],
    "fabric": [100.999, 103.203, 102.766, 106.145, 104.271],
    "gear": [172.730, 164.392, 166.913, 172.577, 162.972],
    "steel": [143.828, 152.994, 142.537, 143.719, 153.216],
}


@pytest.mark.parametrize("product", demo.PRODUCTS)
def test_a_changed_drawing_has_a_new_version(product: str) -> None:
    """Mean grey levels of the first images. Where they moved, raise VERSION and write down the new ones."""
    means = [demo.shoot(product, "test", kind, 0)[0].mean() for kind in ("good", *demo.PRODUCTS[product][1])]
    assert demo.VERSION == 1
    assert means == pytest.approx(MEANS[product], abs=0.01)


@pytest.mark.usefixtures("small")
def test_the_set_is_drawn_once_and_listed_in_the_common_layout(tmp_path: Path) -> None:
    root = tmp_path / "cache" / "demo"  # made where it does not exist
    found = demo.samples(root)
    assert len(found) == sum(2 + len(defects) for _, defects in demo.PRODUCTS.values())
    assert [folder.name for folder in root.iterdir()] == [f"drawing-{demo.VERSION}"]
    for sample in found:
        assert len(sample.masks) == sample.is_anomalous
        with Image.open(sample.image) as image:
            assert (image.size, image.mode, image.format) == ((256, 256), "RGB", "PNG")
        for mask in sample.masks:
            with Image.open(mask) as image:
                assert (image.size, image.mode) == ((256, 256), "L")
                assert set(np.unique(np.asarray(image))) == {0, 255}
    times = [sample.image.stat().st_mtime_ns for sample in found]
    assert demo.samples(root) == found
    assert [sample.image.stat().st_mtime_ns for sample in found] == times


@pytest.mark.usefixtures("small")
def test_files_hold_what_is_drawn_and_two_drawings_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    first, second = demo.samples(tmp_path / "first"), demo.samples(tmp_path / "second")
    assert [s.image.read_bytes() for s in first] == [s.image.read_bytes() for s in second]
    for sample in first:
        picture, mask = demo.shoot(sample.category, sample.split, sample.defect, 0)
        assert np.array_equal(np.asarray(Image.open(sample.image)), picture)
        assert all(np.array_equal(np.asarray(Image.open(path)) > 0, mask) for path in sample.masks)


@pytest.mark.usefixtures("small")
def test_a_stopped_drawing_leaves_nothing_and_the_next_call_draws(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    drawn = demo.shoot

    def stopped(product: str, split: str, kind: str, index: int) -> None:
        if kind == "scratch":
            raise KeyboardInterrupt
        return drawn(product, split, kind, index)

    monkeypatch.setattr(demo, "shoot", stopped)
    with pytest.raises(KeyboardInterrupt):
        demo.samples(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "shoot", drawn)
    assert len(demo.samples(tmp_path)) == 6


@pytest.mark.usefixtures("small")
def test_a_process_that_comes_second_takes_what_the_first_drew(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    drawn, rival = demo.shoot, []

    def overtaken(*shot: str | int) -> None:
        if not rival:
            rival.append(True)
            demo.samples(tmp_path)  # the rival starts later and ends sooner
        return drawn(*shot)

    monkeypatch.setattr(demo, "shoot", overtaken)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert len(demo.samples(tmp_path)) == 6
    assert [folder.name for folder in tmp_path.iterdir()] == [f"drawing-{demo.VERSION}"]


@pytest.mark.usefixtures("small")
def test_another_version_is_drawn_beside_the_old(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    old = demo.samples(tmp_path)
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    assert not {sample.image for sample in demo.samples(tmp_path)} & {sample.image for sample in old}


@pytest.mark.usefixtures("small")
def test_a_drawing_that_lost_files_is_an_error_that_says_what_to_remove(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "PRODUCTS", {"steel": demo.PRODUCTS["steel"]})
    demo.samples(tmp_path)[-1].image.unlink()
    with pytest.raises(BenchError, match=r"has 6 images; .*drawing-\d+ holds 5\. Remove it"):
        demo.samples(tmp_path)


def test_a_root_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"draws its images into .*file, which failed"):
        demo.samples(tmp_path / "file")


@pytest.mark.parametrize("width", [0.7, 3.0, 12.0])
def test_clouds_have_mean_zero_deviation_one_and_grains_of_the_width_asked_for(width: float) -> None:
    noise = np.stack([surface.clouds(np.random.default_rng(seed), width) for seed in range(8)])
    assert np.abs(noise.mean((1, 2))).max() < 1e-12
    assert noise.std((1, 2)) == pytest.approx(1)
    # Gaussian noise smoothed by a Gaussian of width s correlates at distance d with exp(-d^2 / 4 s^2).
    shift = max(round(width), 1)
    expected = np.exp(-(shift**2) / (4 * width**2))
    for axis in (1, 2):
        assert np.mean(noise * np.roll(noise, shift, axis)) == pytest.approx(expected, abs=0.06)


def test_a_stroke_measures_the_distance_to_its_line() -> None:
    distance, along = surface.stroke(np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 60.0]]))
    assert distance[20, 15] == 0
    assert distance[25, 15] == 5
    assert distance[23, 6] == 5  # 3 below and 4 before the start
    assert (along[20, 10], along[20, 30], along[60, 30]) == (0, 0.5, 1)


def test_the_whole_set_has_the_sizes_that_its_head_tells() -> None:
    shots = list(demo._shots())
    assert len(shots) == len(set(shots)) == 320
    for product, (_, defects) in demo.PRODUCTS.items():
        mine = [shot for shot in shots if shot[0] == product]
        assert len([shot for shot in mine if shot[1] == "train"]) == 40
        assert len([shot for shot in mine if shot[1:3] == ("test", "good")]) == 12
        assert all(len([shot for shot in mine if shot[2] == defect]) == 7 for defect in defects)
