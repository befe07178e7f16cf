"""Fingerprints of categories: which changes of the files they detect."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.data.fingerprint import N_HASHED_SAMPLES, category_fingerprints
from bench.dataset import Sample


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two categories with 2 * N_HASHED_SAMPLES files each, so that the content of every second file is hashed."""
    files = [tmp_path / category / f"{i:03}.png" for category in ("bolt", "nut") for i in range(2 * N_HASHED_SAMPLES)]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"content of " + file.name.encode())
    return [Sample(file, file.parent.name, "train") for file in files]


def test_fingerprints_do_not_depend_on_order_or_folder(samples: list[Sample], tmp_path: Path) -> None:
    expected = category_fingerprints(samples)
    assert expected.keys() == {"bolt", "nut"}
    assert expected["bolt"] != expected["nut"]
    assert category_fingerprints(samples[::-1]) == expected
    for folder in ("bolt", "nut"):
        (tmp_path / folder).rename(tmp_path / f"{folder}-moved")
    moved = [replace(sample, image=tmp_path / f"{sample.category}-moved" / sample.image.name) for sample in samples]
    assert category_fingerprints(moved) == expected


def test_a_new_name_size_or_number_of_files_changes_the_fingerprint_of_its_category_only(samples: list[Sample]) -> None:
    expected = category_fingerprints(samples)
    renamed = [replace(samples[0], image=samples[0].image.rename(samples[0].image.with_name("x.png"))), *samples[1:]]
    fewer = samples[1:]
    for changed in (category_fingerprints(renamed), category_fingerprints(fewer)):
        assert changed["bolt"] != expected["bolt"]
        assert changed["nut"] == expected["nut"]
    samples[-1].image.write_bytes(b"another size")
    changed = category_fingerprints(samples)
    assert changed["bolt"] != expected["bolt"]  # the renamed file is missing
    assert changed["nut"] != expected["nut"]


def test_content_of_equal_size_is_compared_for_the_sampled_files_only(samples: list[Sample]) -> None:
    expected = category_fingerprints(samples)
    sampled, not_sampled = samples[0].image, samples[1].image
    not_sampled.write_bytes(not_sampled.read_bytes()[::-1])
    assert category_fingerprints(samples) == expected
    sampled.write_bytes(sampled.read_bytes()[::-1])
    assert category_fingerprints(samples)["bolt"] != expected["bolt"]


def test_a_changed_mask_changes_the_fingerprint(samples: list[Sample], tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"0")
    defective = [replace(samples[0], split="test", defect="spot", masks=(mask,)), *samples[1:]]
    expected = category_fingerprints(defective)
    mask.write_bytes(b"1")
    assert category_fingerprints(defective)["bolt"] != expected["bolt"]
    assert category_fingerprints(defective)["nut"] == expected["nut"]


def test_a_file_that_cannot_be_read_counts_by_its_name(samples: list[Sample]) -> None:
    expected = category_fingerprints(samples)
    samples[0].image.unlink()
    changed = category_fingerprints(samples)
    assert changed["bolt"] != expected["bolt"]
    assert changed["bolt"] != category_fingerprints(samples[1:])["bolt"]


def test_no_samples_give_no_fingerprints() -> None:
    assert category_fingerprints([]) == {}
