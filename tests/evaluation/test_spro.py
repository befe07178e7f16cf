"""sPRO: the saturated overlap of MVTec LOCO AD, on maps that can be checked by hand."""

import numpy as np
import pytest

from bench.errors import BenchError
from bench.evaluation.metrics import evaluate
from bench.evaluation.spro import Region, spro


def region(columns: slice, saturation: float) -> Region:
    pixels = np.zeros((1, 10), np.bool_)
    pixels[0, columns] = True
    return Region(pixels, saturation)


def test_a_region_counts_fully_when_its_saturation_area_is_detected() -> None:
    """Of 4 defect pixels 2 are above all normal ones, which is enough with a saturation area of 2."""
    anomaly_map = np.array([[9.0, 8.0, 0.0, 0.0, 1, 2, 3, 4, 5, 6]])
    assert spro([anomaly_map], [[region(slice(0, 4), 2)]], [0.05, 1.0]) == {"spro_05": 1.0, "spro_100": 1.0}
    # With a saturation area of 4, half of the overlap is below all normal pixels: at a rate of 1 only.
    values = spro([anomaly_map], [[region(slice(0, 4), 4)]], [0.05, 1.0])
    assert values == {"spro_05": 0.5, "spro_100": 0.5}


def test_the_area_counts_the_false_positives_before_each_pixel() -> None:
    """Normal scores 1 to 6; the second defect pixel is below 3 of them, so it counts from a rate of 1/2 on."""
    anomaly_map = np.array([[9.0, 3.5, 0.0, 0.0, 1, 2, 3, 4, 5, 6]])
    (value,) = spro([anomaly_map], [[region(slice(0, 4), 2)]], [1.0]).values()
    assert value == pytest.approx(0.5 * 1 + 0.5 * 0.5)


def test_regions_of_any_size_and_image_count_equally() -> None:
    anomaly_map = np.array([[9.0, 9, 9, 9, 0, 5, 5, 5, 5, 5]])
    regions = [[region(slice(0, 4), 4), region(slice(4, 5), 1)], []]
    assert spro([anomaly_map, np.zeros((1, 10))], regions) == {"spro_05": 0.5}


def test_a_saturation_area_may_be_a_fraction_of_a_pixel_more() -> None:
    anomaly_map = np.array([[9.0, 0.0, 1, 1, 1, 1, 1, 1, 1, 1]])
    assert spro([anomaly_map], [[region(slice(0, 2), 1.6)]])["spro_05"] == pytest.approx(1 / 1.6)


def test_with_full_saturation_it_is_aupro() -> None:
    random = np.random.default_rng(0)
    maps = [random.normal(0, 1, (20, 20)).round(1) for _ in range(3)]  # with ties
    masks = [np.zeros((20, 20), np.bool_) for _ in range(3)]
    masks[0][2:6, 3:9], masks[0][12:15, 12:15], masks[1][5:8, 5:8] = True, True, True
    slices_by_image = [[np.s_[2:6, 3:9], np.s_[12:15, 12:15]], [np.s_[5:8, 5:8]], []]
    regions = []
    for slices in slices_by_image:
        regions.append([])
        for region_slice in slices:
            pixels = np.zeros((20, 20), np.bool_)
            pixels[region_slice] = True
            regions[-1].append(Region(pixels, pixels.sum()))
    expected = evaluate(np.arange(3.0), np.array([True, True, False]), maps, masks).values
    values = spro(maps, regions, [0.05, 0.3])
    assert values["spro_05"] == pytest.approx(expected["aupro_05"], abs=1e-12)
    assert values["spro_30"] == pytest.approx(expected["aupro_30"], abs=1e-12)


def test_without_regions_or_normal_pixels_there_is_no_value() -> None:
    assert spro([np.zeros((1, 10))], [[]]) == {}
    assert spro([np.zeros((1, 10))], [[region(slice(0, 10), 3)]]) == {}


@pytest.mark.parametrize("saturation", [0, -1, 5])
def test_a_saturation_area_outside_its_region_is_an_error(saturation: float) -> None:
    with pytest.raises(BenchError, match=r"must be in \(0, 4\], the pixels of its region"):
        spro([np.zeros((1, 10))], [[region(slice(0, 4), saturation)]])
