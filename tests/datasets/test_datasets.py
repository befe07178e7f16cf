"""Data sets on disk: official layouts in miniature, a user's own tree, and all that can be wrong with either."""

import logging
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.dataset import Sample
from bench.errors import BenchError

mvtec = import_module("bench.datasets.mvtec")
btad = import_module("bench.datasets.btad")
folder = import_module("bench.datasets.folder")
layout = import_module("bench.datasets.parts.layout")


def put(root: Path, *names: str) -> None:
    """Small real images under these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), 128, np.uint8)).save(path)


def tiny(root: Path, category: str, *, defect: str = "crack") -> None:
    put(root, f"{category}/train/good/000.png", f"{category}/train/good/001.png", f"{category}/test/good/000.png")
    put(root, f"{category}/test/{defect}/000.png", f"{category}/ground_truth/{defect}/000_mask.png")


def told(samples: Iterable[Sample], root: Path) -> list[tuple[str, ...]]:
    return [
        (s.category, s.split, s.defect, str(s.image.relative_to(root)), *(str(m.relative_to(root)) for m in s.masks))
        for s in samples
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_mvtec_reads_the_official_layout(tmp_path: Path) -> None:
    tiny(tmp_path, "wood", defect="scratch")
    tiny(tmp_path, "bottle", defect="broken_large")
    (tmp_path / "license.txt").write_text("CC BY-NC-SA 4.0")
    assert told(mvtec.samples(tmp_path), tmp_path) == [
        ("bottle", "train", "good", "bottle/train/good/000.png"),
        ("bottle", "train", "good", "bottle/train/good/001.png"),
        ("bottle", "test", "broken_large", "bottle/test/broken_large/000.png",
         "bottle/ground_truth/broken_large/000_mask.png"),
        ("bottle", "test", "good", "bottle/test/good/000.png"),
        ("wood", "train", "good", "wood/train/good/000.png"),
        ("wood", "train", "good", "wood/train/good/001.png"),
        ("wood", "test", "good", "wood/test/good/000.png"),
        ("wood", "test", "scratch", "wood/test/scratch/000.png", "wood/ground_truth/scratch/000_mask.png"),
    ]  # fmt: skip


def test_mvtec_warns_once_of_counts_and_once_of_absent_categories(tmp_path: Path, caplog) -> None:
    tiny(tmp_path, "bottle")
    mvtec.samples(tmp_path)
    counts, absent = warnings(caplog)
    assert counts == (
        "bottle: officially 209 train, 20 good test and 63 defective images; "
        "here are 2 train, 1 good test and 1 defective images."
    )
    assert absent.startswith("MVTec AD: 14 of 15 categories are absent: cable, capsule,")


def test_a_complete_mvtec_category_is_not_warned_of(tmp_path: Path, caplog) -> None:
    for kind, count in (("train/good", 60), ("test/good", 12), ("test/defective", 30)):
        put(tmp_path, *(f"toothbrush/{kind}/{i:03d}.png" for i in range(count)))
    put(tmp_path, *(f"toothbrush/ground_truth/defective/{i:03d}_mask.png" for i in range(30)))
    found = mvtec.samples(tmp_path)
    assert len(found) == 102
    assert sum(len(sample.masks) for sample in found) == 30
    assert all("toothbrush:" not in warning for warning in warnings(caplog))


def test_mvtec_reads_copies_in_another_format_and_one_category_alone(tmp_path: Path) -> None:
    put(tmp_path, "grid/train/good/000.jpg", "grid/test/bent/000.jpg", "grid/ground_truth/bent/000_mask.png")
    found = mvtec.samples(tmp_path / "grid")
    assert [sample.category for sample in found] == ["grid", "grid"]
    assert found[1].masks[0].name == "000_mask.png"


def test_the_official_counts_of_mvtec_have_the_published_sums() -> None:
    train, good, defective = (sum(numbers) for numbers in zip(*mvtec.COUNTS.values(), strict=True))
    assert (len(mvtec.COUNTS), train, good, defective) == (15, 3629, 467, 1258)


def test_the_counts_of_mvtec_are_those_of_the_published_table() -> None:
    table = Path(__file__).resolve().parents[2] / "reports" / "published" / "mvtec_ad_counts.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert {row[0]: tuple(map(int, row[1:4])) for row in rows if row[0] != "total"} == mvtec.COUNTS


def test_btad_reads_bmp_and_png_with_masks_of_either_kind(tmp_path: Path) -> None:
    put(tmp_path, "01/train/ok/0000.bmp", "01/test/ok/0001.bmp", "01/test/ko/0002.bmp", "01/ground_truth/ko/0002.png")
    put(tmp_path, "02/train/ok/0000.png", "02/test/ok/0001.png", "02/test/ko/0002.png", "02/ground_truth/ko/0002.png")
    put(tmp_path, "03/train/ok/0000.bmp", "03/test/ok/0001.bmp", "03/test/ko/0002.bmp", "03/ground_truth/ko/0002.bmp")
    assert told(btad.samples(tmp_path), tmp_path) == [
        ("01", "train", "good", "01/train/ok/0000.bmp"),
        ("01", "test", "good", "01/test/ok/0001.bmp"),
        ("01", "test", "ko", "01/test/ko/0002.bmp", "01/ground_truth/ko/0002.png"),
        ("02", "train", "good", "02/train/ok/0000.png"),
        ("02", "test", "good", "02/test/ok/0001.png"),
        ("02", "test", "ko", "02/test/ko/0002.png", "02/ground_truth/ko/0002.png"),
        ("03", "train", "good", "03/train/ok/0000.bmp"),
        ("03", "test", "good", "03/test/ok/0001.bmp"),
        ("03", "test", "ko", "03/test/ko/0002.bmp", "03/ground_truth/ko/0002.bmp"),
    ]


def test_btad_warns_of_counts_and_absent_categories(tmp_path: Path, caplog) -> None:
    put(tmp_path, "03/train/ok/0000.bmp", "03/test/ok/0001.bmp")
    btad.samples(tmp_path)
    counts, absent = warnings(caplog)
    assert counts == (
        "03: officially 1000 train, 400 good test and 41 defective images; "
        "here are 1 train, 1 good test and 0 defective images."
    )
    assert absent == "BTAD: 2 of 3 categories are absent: 01, 02."


def test_the_counts_of_btad_have_the_sums_that_the_paper_gives() -> None:
    assert [sum(numbers) for numbers in zip(*btad.COUNTS.values(), strict=True)] == [1799, 451, 290]


def test_own_images_may_have_any_usual_extension_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, "lid/train/good/a.PNG", "lid/train/good/b.Jpeg", "lid/train/good/c.TIF", "lid/train/good/d.webp")
    put(tmp_path, "lid/test/good/a.bmp", "lid/test/dent/e.JPG", "lid/test/dent/f.tiff", "lid/test/dent/g.png")
    put(tmp_path, "lid/ground_truth/dent/e_mask.PNG", "lid/ground_truth/dent/f.bmp", "lid/ground_truth/dent/g_mask.tif")
    found = folder.samples(tmp_path)
    assert [sample.image.name for sample in found if sample.split == "train"] == ["a.PNG", "b.Jpeg", "c.TIF", "d.webp"]
    masks = {sample.image.name: [mask.name for mask in sample.masks] for sample in found if sample.is_anomalous}
    assert masks == {"e.JPG": ["e_mask.PNG"], "f.tiff": ["f.bmp"], "g.png": ["g_mask.tif"]}


def test_own_images_may_be_one_category_named_after_its_folder(tmp_path: Path) -> None:
    tiny(tmp_path, "lid")
    assert {sample.category for sample in folder.samples(tmp_path / "lid")} == {"lid"}


def test_own_categories_may_lie_deeper(tmp_path: Path) -> None:
    tiny(tmp_path / "line1" / "monday", "lid")
    tiny(tmp_path / "line2", "cap")
    assert [sample.category for sample in folder.samples(tmp_path)] == ["cap"] * 4 + ["lid"] * 4


def test_own_categories_must_differ_in_name(tmp_path: Path) -> None:
    tiny(tmp_path / "line1", "lid")
    tiny(tmp_path / "line2", "lid")
    with pytest.raises(BenchError, match=r"must differ in name; 'lid' is in .*line1 and in .*line2"):
        folder.samples(tmp_path)


def test_hidden_files_other_files_and_other_splits_are_passed_over(tmp_path: Path, caplog) -> None:
    tiny(tmp_path, "lid")
    put(tmp_path, "lid/validation/good/000.png", ".trash/train/good/000.png", "lid/test/.thumbs/000.png")
    put(tmp_path, "lid/train/good/.000.png")
    for name in (
        "lid/train/good/Thumbs.db",
        "lid/test/crack/notes.txt",
        "lid/readme.md",
        "lid/train/good/no_extension",
    ):
        (tmp_path / name).write_text("not an image")
    (tmp_path / "lid/test/good/folder.png").mkdir()
    assert len(folder.samples(tmp_path)) == 4
    assert warnings(caplog) == []


def test_links_that_lead_back_do_no_harm(tmp_path: Path) -> None:
    tiny(tmp_path, "line/lid")
    (tmp_path / "line" / "again").symlink_to(tmp_path)
    (tmp_path / "line" / "lid" / "test" / "up").symlink_to(tmp_path / "line" / "lid")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert len(folder.samples(tmp_path)) == 4


def test_a_folder_called_good_in_capitals_is_no_defect(tmp_path: Path) -> None:
    put(tmp_path, "lid/train/Good/000.png", "lid/test/GOOD/000.png", "lid/test/Crack/000.png")
    assert [sample.defect for sample in folder.samples(tmp_path)] == ["good", "Crack", "good"]


def test_images_without_any_masks_are_fine(tmp_path: Path, caplog) -> None:
    put(tmp_path, "lid/train/good/000.png", "lid/test/crack/000.png", "lid/test/dent/000.png")
    found = folder.samples(tmp_path)
    assert [(sample.defect, sample.masks) for sample in found] == [("good", ()), ("crack", ()), ("dent", ())]
    assert warnings(caplog) == []


def test_some_missing_masks_are_one_warning_that_counts_them(tmp_path: Path, caplog) -> None:
    tiny(tmp_path, "lid")
    put(tmp_path, "lid/test/crack/001.png", "lid/test/dent/000.png")
    folder.samples(tmp_path)
    (warning,) = warnings(caplog)
    assert warning.startswith("lid: 2 of 3 defective images have no mask")
    assert warning.endswith("crack/001.png, dent/000.png.")


def test_left_over_masks_are_one_warning_and_belong_to_nobody(tmp_path: Path, caplog) -> None:
    tiny(tmp_path, "lid")
    put(tmp_path, "lid/ground_truth/crack/007_mask.png", "lid/ground_truth/gone/000_mask.png")
    found = folder.samples(tmp_path)
    assert warnings(caplog) == [
        "lid: 2 masks belong to no image and are left out: crack/007_mask.png, gone/000_mask.png."
    ]
    assert sum(len(sample.masks) for sample in found) == 1


def test_defective_images_to_train_on_are_left_out_with_a_warning(tmp_path: Path, caplog) -> None:
    tiny(tmp_path, "lid")
    put(tmp_path, "lid/train/crack/000.png")
    assert len(folder.samples(tmp_path)) == 4
    assert "lid: train/ holds crack besides 'good'" in warnings(caplog)[0]


def test_a_category_without_images_is_left_out_with_a_warning(tmp_path: Path, caplog) -> None:
    tiny(tmp_path, "lid")
    put(tmp_path, "cap/test/good/000.png")
    (tmp_path / "box" / "train").mkdir(parents=True)
    assert {sample.category for sample in folder.samples(tmp_path)} == {"lid"}
    assert warnings(caplog) == [
        "Own images: left out for want of images: box (none in test/*/ and train/good/), cap (none in train/good/)."
    ]


def test_no_category_with_images_is_an_error_that_names_them(tmp_path: Path) -> None:
    put(tmp_path, "cap/train/good/000.png", "lid/test/crack/000.png")
    with pytest.raises(BenchError, match=r"missing in cap \(none in test/\*/\), lid \(none in train/good/\)") as error:
        folder.samples(tmp_path)
    assert "--data DIR" in str(error.value)


@pytest.mark.parametrize("place", ["train/good", "test/good", "test/crack", "ground_truth/crack"])
def test_two_files_of_one_stem_are_an_error(tmp_path: Path, place: str) -> None:
    tiny(tmp_path, "lid")
    put(tmp_path, f"lid/{place}/x.png", f"lid/{place}/x.jpg")
    with pytest.raises(BenchError, match=r"holds both x\.jpg and x\.png"):
        folder.samples(tmp_path)


@pytest.mark.parametrize("dataset", [mvtec, btad, folder], ids=["mvtec", "btad", "folder"])
def test_every_wrong_root_is_one_clear_line(tmp_path: Path, dataset) -> None:
    put(tmp_path, "somewhere/images/000.png", "file.png")
    for root, problem in ((tmp_path / "absent", "does not exist"), (tmp_path / "file.png", "is a file"),
                          (tmp_path / "somewhere", "none")):  # fmt: skip
        with pytest.raises(BenchError, match=problem) as error:
            dataset.samples(root)
        message = str(error.value)
        assert str(root) in message
        assert "--data DIR" in message
        assert "/train/" in message
        assert "\n" not in message


def test_an_error_about_an_official_layout_tells_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "mvtec_anomaly_detection").mkdir()
    with pytest.raises(BenchError, match=r"has none of them, but mvtec_anomaly_detection/\. Unpack"):
        mvtec.samples(tmp_path)
    with pytest.raises(BenchError, match="has none of them, but nothing"):
        btad.samples(tmp_path / "mvtec_anomaly_detection")


NAMES = st.text("abcxyz019_-", min_size=1, max_size=4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=st.sets(NAMES, min_size=1), test=st.dictionaries(NAMES, st.booleans(), min_size=1))
def test_listing_finds_each_image_once_in_an_order_that_the_disk_does_not_decide(
    tmp_path_factory, train: set[str], test: dict[str, bool]
) -> None:
    root = tmp_path_factory.mktemp("own")
    names = [f"lid/train/good/{name}.png" for name in train] + [f"lid/test/crack/{name}.png" for name in test]
    masked = {name for name, has in test.items() if has and f"{name}_mask" not in test}
    for name in names + [f"lid/ground_truth/crack/{name}_mask.png" for name in masked]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = folder.samples(root)
    assert sorted(str(sample.image.relative_to(root)) for sample in found) == sorted(names)
    assert found == sorted(found, key=lambda sample: (sample.split == "test", sample.image.name))
    assert {sample.image.stem for sample in found if sample.masks} == masked


def test_real_inspection_images_are_found(shared: Path, caplog) -> None:
    root = shared / "data" / "real256"
    if not root.is_dir():
        pytest.skip("needs shared/data/real256")
    found = folder.samples(root)
    tally = {name: sum(sample.category == name for sample in found) for name in {sample.category for sample in found}}
    assert tally == {"bottle": 292, "capsule": 338, "kolektorsdd": 399, "magnetic_tile": 1340, "tire": 322}
    assert all(bool(sample.masks) == sample.is_anomalous for sample in found)
    assert warnings(caplog) == []
    mvtec.samples(root / "mvtec")
    assert "capsule: officially 219 train, 23 good test" in warnings(caplog)[0]
