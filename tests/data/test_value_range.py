"""The scale of images with more than 8 bits: computed from the training images, set by the user, or too narrow."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data.value_range import (
    depth_range,
    find_value_range,
    unscaled_warning,
    value_range_warnings,
    with_value_range,
)
from bench.dataset import Sample
from bench.errors import BenchError
from bench.method import Preprocessing

PLAIN = Preprocessing(4, 4)


def samples(folder: Path, *values: np.ndarray, extension: str = "png") -> list[Sample]:
    all_samples = []
    for index, array in enumerate(values):
        path = folder / f"{index}.{extension}"
        Image.fromarray(array).save(path)
        all_samples.append(Sample(path, "bolt", "train"))
    return all_samples


def scale(folder: Path, low: float, high: float, dtype: type = np.uint16) -> tuple[float, float]:
    extension = "png" if dtype is np.uint16 else "tif"
    values = find_value_range(samples(folder, np.array([[low, high]], dtype), extension=extension), PLAIN)
    assert values is not None
    return values.black, values.white


@pytest.mark.parametrize(
    ("high", "white"), [(255, 255), (1000, 1023), (1023, 1023), (4000, 4095), (16000, 16383), (65535, 65535)]
)
def test_the_scale_is_the_smallest_depth_that_contains_all_training_values(
    tmp_path: Path, high: int, white: int
) -> None:
    assert scale(tmp_path, 3, high) == (0, white)


def test_a_narrow_range_is_stretched_with_half_of_it_on_both_sides(tmp_path: Path) -> None:
    assert scale(tmp_path, 800, 1200) == (600, 1400)  # 400 of 4095 is less than an eighth
    assert scale(tmp_path, 800, 1400) == (0, 4095)  # 600 is more
    assert scale(tmp_path, 1000, 1000) == (995, 1005)  # constant images: one percent


def test_floats_are_scaled_from_0_to_1_or_stretched(tmp_path: Path) -> None:
    assert scale(tmp_path, 0, 0.5, np.float32) == (0, 1)
    assert scale(tmp_path, 20, 40, np.float32) == (10, 50)  # degrees Celsius
    assert scale(tmp_path, -10, 10, np.float32) == (-20, 20)


def test_integers_beyond_16_bits_are_stretched(tmp_path: Path) -> None:
    assert scale(tmp_path, 0, 100000, np.int32) == (-50000, 150000)
    assert scale(tmp_path, -100, 100, np.int32) == (-200, 200)


def test_the_range_is_that_of_all_training_images_and_8_bits_are_left_alone(tmp_path: Path) -> None:
    all_samples = samples(tmp_path, np.array([[0, 900]], np.uint16), np.array([[5, 4000]], np.uint16))
    preprocessing, values = with_value_range(PLAIN, all_samples)
    assert (preprocessing.black, preprocessing.white) == (0, 4095)
    assert values is not None
    assert (values.n_images, values.low, values.high) == (2, 0, 4000)
    assert with_value_range(PLAIN, samples(tmp_path, np.array([[0, 9]], np.uint8))) == (PLAIN, None)


def test_a_given_range_is_used_and_warns_if_values_are_clipped(tmp_path: Path) -> None:
    all_samples = samples(tmp_path, np.array([[0, 1200]], np.uint16))
    preprocessing, values = with_value_range(Preprocessing(4, 4, black=0, white=4095), all_samples)
    assert values is not None
    assert (preprocessing.black, preprocessing.white) == (0, 4095)
    (text,) = value_range_warnings("bolt", values, 1, is_given=True)
    assert "0 to 1200, 1.8 % of the range 0 to 65535 of their type; 0 becomes black and 4095 white." in text
    _, values = with_value_range(Preprocessing(4, 4, black=0, white=1023), all_samples)
    assert values is not None
    (text,) = value_range_warnings("bolt", values, 1, is_given=True)
    assert "values outside are clipped. Pass a larger --depth." in text


def test_a_given_depth_without_effect_is_a_warning(tmp_path: Path) -> None:
    given = Preprocessing(4, 4, black=0, white=4095)
    preprocessing, values = with_value_range(given, samples(tmp_path, np.array([[0, 9]], np.uint8)))
    assert (preprocessing, values) == (given, None)
    (text,) = value_range_warnings("bolt", values, 1, is_given=True)
    assert text == "bolt: all training images have 8 bits per channel; --depth scales only others."
    assert list(value_range_warnings("bolt", values, 1, is_given=False)) == []


def test_a_used_range_below_an_eighth_of_the_type_is_a_warning_with_the_numbers(tmp_path: Path) -> None:
    values = find_value_range(samples(tmp_path, np.array([[800, 1200]], np.uint16)), PLAIN)
    assert values is not None
    (text,) = value_range_warnings("bolt", values, 1, is_given=False)
    assert "from 800 to 1200, 0.61 % of the range 0 to 65535 of their type; 600 becomes black and 1400 white." in text
    values = find_value_range(samples(tmp_path, np.array([[0, 9000]], np.uint16)), PLAIN)
    assert values is not None
    assert list(value_range_warnings("bolt", values, 1, is_given=False)) == []


def test_mixed_depths_are_a_warning(tmp_path: Path) -> None:
    all_samples = samples(tmp_path, np.array([[0, 60000]], np.uint16), np.array([[0, 200]], np.uint8))
    values = find_value_range(all_samples, PLAIN)
    assert values is not None
    (text,) = value_range_warnings("bolt", values, 2, is_given=False)
    assert text.startswith("bolt: 1 of 2 training images have more than 8 bits per channel")


def test_floats_and_integers_in_one_category_are_a_warning_with_an_image_of_each(tmp_path: Path) -> None:
    integers = np.array([[0, 60000]], np.uint16)
    all_samples = samples(tmp_path, integers, integers, np.array([[0, 1]], np.float32), extension="tif")
    values = find_value_range(all_samples, PLAIN)
    assert values is not None
    (text,) = (text for text in value_range_warnings("bolt", values, 3, is_given=False) if "one type, got" in text)
    assert f"got float32 ({all_samples[2].id}) and uint16 ({all_samples[0].id}); all have one scale" in text
    assert any("must have one type" in text for text in value_range_warnings("bolt", values, 3, is_given=True))
    values = find_value_range(
        [*all_samples[:2], *samples(tmp_path, integers.astype(np.int32), extension="tiff")], PLAIN
    )
    assert values is not None
    assert values.mixed_types == ""  # integers of any size are one type


def test_test_images_of_another_type_than_training_images_are_a_warning(tmp_path: Path) -> None:
    integers, floats = np.array([[0, 60000]], np.uint16), np.array([[0, 1]], np.float32)
    first, second, third = samples(tmp_path, integers, floats, np.array([[0, 200]], np.uint8), extension="tif")
    scaled = Preprocessing(4, 4, black=0, white=65535)
    text = unscaled_warning("bolt", [first], [first, second], scaled)
    assert text.startswith(f"bolt: 1 of 2 test images have floats, training images integers, as {first.id}; all have")
    assert second.id in text
    text = unscaled_warning("bolt", [second], [first, third], scaled)
    assert "1 of 2 test images have 8 bits per channel" in text
    assert "1 of 2 test images have integers, training images floats" in text
    assert unscaled_warning("bolt", [first, second], [first, second], scaled) == ""


def test_unsigned_integers_of_32_bits_have_a_type_up_to_2_to_the_32(tmp_path: Path) -> None:
    (sample,) = samples(tmp_path, np.array([[0, -1]], np.int32), extension="tif")
    signed, unsigned = (struct.pack("<HHIH", 339, 3, 1, number_format) for number_format in (2, 1))  # SampleFormat
    sample.image.write_bytes(sample.image.read_bytes().replace(signed, unsigned))
    values = find_value_range([sample], PLAIN)
    assert values is not None
    assert (values.low, values.high, values.type_low, values.type_high) == (0, 2**32 - 1, 0, 2**32 - 1)


def test_the_depth_is_from_8_to_32(tmp_path: Path) -> None:
    assert depth_range(12) == (0, 4095)
    for depth in (7, 33):
        with pytest.raises(BenchError, match="depth must be from 8 to 32"):
            depth_range(depth)
    broken = samples(tmp_path, np.array([[0.0, np.inf]], np.float32), extension="tif")
    with pytest.raises(BenchError, match=r"0\.tif is not: it has values that are not finite"):
        find_value_range(broken, PLAIN)
