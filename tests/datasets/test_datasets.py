"""Datasets on disk: small copies of official layouts, own images, and errors in both."""

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


def create_images(root: Path, *names: str) -> None:
    """Write small images with these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), 128, np.uint8)).save(path)


def create_category(root: Path, category: str, *, defect: str = "crack") -> None:
    create_images(
        root, f"{category}/train/good/000.png", f"{category}/train/good/001.png", f"{category}/test/good/000.png"
    )
    create_images(root, f"{category}/test/{defect}/000.png", f"{category}/ground_truth/{defect}/000_mask.png")


def listing(samples: Iterable[Sample], root: Path) -> list[tuple[str, ...]]:
    return [
        (s.category, s.split, s.defect, str(s.image.relative_to(root)), *(str(m.relative_to(root)) for m in s.masks))
        for s in samples
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_mvtec_reads_the_official_layout(tmp_path: Path) -> None:
    create_category(tmp_path, "wood", defect="scratch")
    create_category(tmp_path, "bottle", defect="broken_large")
    (tmp_path / "license.txt").write_text("CC BY-NC-SA 4.0")
    assert listing(mvtec.samples(tmp_path), tmp_path) == [
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


def test_mvtec_warns_about_counts_and_missing_categories(tmp_path: Path, caplog) -> None:
    create_category(tmp_path, "bottle")
    mvtec.samples(tmp_path)
    assert (
        "bottle: expected 209 training, 20 good test and 63 defective test images; "
        "the folder has 2 training, 1 good test and 1 defective test images."
    ) in warnings(caplog)
    assert any(
        warning.startswith("MVTec AD: 14 of 15 categories are missing: cable, capsule,") for warning in warnings(caplog)
    )


def test_a_complete_mvtec_category_gives_no_warning(tmp_path: Path, caplog) -> None:
    for kind, count in (("train/good", 60), ("test/good", 12), ("test/defective", 30)):
        create_images(tmp_path, *(f"toothbrush/{kind}/{i:03d}.png" for i in range(count)))
    create_images(tmp_path, *(f"toothbrush/ground_truth/defective/{i:03d}_mask.png" for i in range(30)))
    samples = mvtec.samples(tmp_path)
    assert len(samples) == 102
    assert sum(len(sample.masks) for sample in samples) == 30
    assert all("toothbrush:" not in warning for warning in warnings(caplog))


def test_mvtec_reads_other_formats_and_a_single_category(tmp_path: Path) -> None:
    create_images(tmp_path, "grid/train/good/000.jpg", "grid/test/bent/000.jpg", "grid/ground_truth/bent/000_mask.png")
    samples = mvtec.samples(tmp_path / "grid")
    assert [sample.category for sample in samples] == ["grid", "grid"]
    assert samples[1].masks[0].name == "000_mask.png"


def test_the_official_counts_of_mvtec_have_the_published_sums() -> None:
    train, good, defective = (sum(numbers) for numbers in zip(*mvtec.COUNTS.values(), strict=True))
    assert (len(mvtec.COUNTS), train, good, defective) == (15, 3629, 467, 1258)


def test_the_counts_of_mvtec_are_those_of_the_published_table() -> None:
    table = Path(__file__).resolve().parents[2] / "reports" / "published" / "mvtec_ad_counts.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert {row[0]: tuple(map(int, row[1:4])) for row in rows if row[0] != "total"} == mvtec.COUNTS


def test_btad_reads_bmp_and_png_images_and_masks(tmp_path: Path) -> None:
    create_images(
        tmp_path, "01/train/ok/0000.bmp", "01/test/ok/0001.bmp", "01/test/ko/0002.bmp", "01/ground_truth/ko/0002.png"
    )
    create_images(
        tmp_path, "02/train/ok/0000.png", "02/test/ok/0001.png", "02/test/ko/0002.png", "02/ground_truth/ko/0002.png"
    )
    create_images(
        tmp_path, "03/train/ok/0000.bmp", "03/test/ok/0001.bmp", "03/test/ko/0002.bmp", "03/ground_truth/ko/0002.bmp"
    )
    assert listing(btad.samples(tmp_path), tmp_path) == [
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


def test_btad_warns_about_counts_and_missing_categories(tmp_path: Path, caplog) -> None:
    create_images(tmp_path, "03/train/ok/0000.bmp", "03/test/ok/0001.bmp")
    btad.samples(tmp_path)
    assert (
        "03: expected 1000 training, 400 good test and 41 defective test images; "
        "the folder has 1 training, 1 good test and 0 defective test images."
    ) in warnings(caplog)
    assert "BTAD: 2 of 3 categories are missing: 01, 02." in warnings(caplog)


def test_the_counts_of_btad_have_the_sums_of_the_paper() -> None:
    assert [sum(numbers) for numbers in zip(*btad.COUNTS.values(), strict=True)] == [1799, 451, 290]


def test_own_images_may_have_any_common_extension_in_any_case(tmp_path: Path) -> None:
    create_images(
        tmp_path, "lid/train/good/a.PNG", "lid/train/good/b.Jpeg", "lid/train/good/c.TIF", "lid/train/good/d.webp"
    )
    create_images(tmp_path, "lid/test/good/a.bmp", "lid/test/dent/e.JPG", "lid/test/dent/f.tiff", "lid/test/dent/g.png")
    create_images(
        tmp_path, "lid/ground_truth/dent/e_mask.PNG", "lid/ground_truth/dent/f.bmp", "lid/ground_truth/dent/g_mask.tif"
    )
    samples = folder.samples(tmp_path)
    assert [sample.image.name for sample in samples if sample.split == "train"] == [
        "a.PNG",
        "b.Jpeg",
        "c.TIF",
        "d.webp",
    ]
    masks = {sample.image.name: [mask.name for mask in sample.masks] for sample in samples if sample.is_anomalous}
    assert masks == {"e.JPG": ["e_mask.PNG"], "f.tiff": ["f.bmp"], "g.png": ["g_mask.tif"]}


def test_own_images_may_be_one_category_named_after_its_folder(tmp_path: Path) -> None:
    create_category(tmp_path, "lid")
    assert {sample.category for sample in folder.samples(tmp_path / "lid")} == {"lid"}


def test_own_categories_may_be_several_levels_below(tmp_path: Path) -> None:
    create_category(tmp_path / "line1" / "monday", "lid")
    create_category(tmp_path / "line2", "cap")
    assert [sample.category for sample in folder.samples(tmp_path)] == ["cap"] * 4 + ["lid"] * 4


def test_own_categories_must_have_different_names(tmp_path: Path) -> None:
    create_category(tmp_path / "line1", "lid")
    create_category(tmp_path / "line2", "lid")
    with pytest.raises(BenchError, match=r"must have different names; 'lid' is in .*line1 and in .*line2"):
        folder.samples(tmp_path)


def test_hidden_files_are_skipped_and_other_unused_files_are_counted_and_named(tmp_path: Path, caplog) -> None:
    create_category(tmp_path, "lid")
    create_images(tmp_path, "lid/validation/good/000.png", ".trash/train/good/000.png", "lid/test/.thumbs/000.png")
    create_images(tmp_path, "lid/train/good/.000.png")
    for name in (
        "lid/train/good/Thumbs.db",
        "lid/test/crack/notes.txt",
        "lid/readme.md",
        "lid/train/good/no_extension",
    ):
        (tmp_path / name).write_text("not an image")
    (tmp_path / "lid/test/good/folder.png").mkdir()
    assert len(folder.samples(tmp_path)) == 4
    assert warnings(caplog) == [
        (
            "lid: not used are 2 files without the extension of an image (1 .txt, 1 no extension): "
            "train/good/no_extension, test/crack/notes.txt; folders: validation/ (1 images)."
        )
    ]


def test_links_to_a_parent_folder_are_harmless(tmp_path: Path) -> None:
    create_category(tmp_path, "line/lid")
    (tmp_path / "line" / "parent").symlink_to(tmp_path)
    (tmp_path / "line" / "lid" / "test" / "up").symlink_to(tmp_path / "line" / "lid")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert len(folder.samples(tmp_path)) == 4


def test_the_name_of_the_folder_of_good_images_may_be_in_upper_case(tmp_path: Path) -> None:
    create_images(tmp_path, "lid/train/Good/000.png", "lid/test/GOOD/000.png", "lid/test/Crack/000.png")
    assert [sample.defect for sample in folder.samples(tmp_path)] == ["good", "Crack", "good"]


def test_images_without_any_masks_give_no_warning(tmp_path: Path, caplog) -> None:
    create_images(tmp_path, "lid/train/good/000.png", "lid/test/crack/000.png", "lid/test/dent/000.png")
    samples = folder.samples(tmp_path)
    assert [(sample.defect, sample.masks) for sample in samples] == [("good", ()), ("crack", ()), ("dent", ())]
    assert warnings(caplog) == []


def test_missing_masks_give_one_warning_with_their_number(tmp_path: Path, caplog) -> None:
    create_category(tmp_path, "lid")
    create_images(tmp_path, "lid/test/crack/001.png", "lid/test/dent/000.png")
    folder.samples(tmp_path)
    assert (
        "lid: 2 of 3 defective images have no mask and count for the image metrics only: "
        "lid/test/crack/001.png, lid/test/dent/000.png."
    ) in warnings(caplog)


def test_masks_without_an_image_give_one_warning(tmp_path: Path, caplog) -> None:
    create_category(tmp_path, "lid")
    create_images(tmp_path, "lid/ground_truth/crack/007_mask.png", "lid/ground_truth/removed/000_mask.png")
    samples = folder.samples(tmp_path)
    expected = (
        "lid: 2 masks have no image and are not used: ground_truth/crack/007_mask.png, "
        "ground_truth/removed/000_mask.png."
    )
    assert expected in warnings(caplog)
    assert sum(len(sample.masks) for sample in samples) == 1


def test_defective_training_images_are_not_used_and_give_a_warning(tmp_path: Path, caplog) -> None:
    create_category(tmp_path, "lid")
    create_images(tmp_path, "lid/train/crack/000.png")
    assert len(folder.samples(tmp_path)) == 4
    assert warnings(caplog)[0].startswith("lid: images of train/ outside 'good' are not used")
    assert warnings(caplog)[0].endswith("crack.")


def test_a_category_without_images_is_skipped_with_a_warning(tmp_path: Path, caplog) -> None:
    create_category(tmp_path, "lid")
    create_images(tmp_path, "cap/test/good/000.png")
    (tmp_path / "box" / "train").mkdir(parents=True)
    assert {sample.category for sample in folder.samples(tmp_path)} == {"lid"}
    assert (
        "Own images: categories without images are skipped: box (none in train/good/), cap (none in train/good/)."
    ) in warnings(caplog)


def test_without_any_complete_category_the_error_names_them(tmp_path: Path) -> None:
    create_images(tmp_path, "cap/train/bad/000.png", "lid/test/crack/000.png")
    with pytest.raises(
        BenchError, match=r"missing in cap \(none in train/good/\), lid \(none in train/good/\)"
    ) as error:
        folder.samples(tmp_path)
    assert "--data DIR" in str(error.value)


@pytest.mark.parametrize("folder_path", ["train/good", "test/good", "test/crack", "ground_truth/crack"])
def test_two_files_of_one_stem_are_an_error(tmp_path: Path, folder_path: str) -> None:
    create_category(tmp_path, "lid")
    create_images(tmp_path, f"lid/{folder_path}/x.png", f"lid/{folder_path}/x.jpg")
    with pytest.raises(BenchError, match=r"has both x\.jpg and x\.png"):
        folder.samples(tmp_path)


@pytest.mark.parametrize("dataset", [mvtec, btad, folder], ids=["mvtec", "btad", "folder"])
def test_a_wrong_root_is_an_error_in_one_line(tmp_path: Path, dataset) -> None:
    create_images(tmp_path, "somewhere/pages/000.pdf", "file.png")
    for root, problem in ((tmp_path / "absent", "does not exist"), (tmp_path / "file.png", "is a file"),
                          (tmp_path / "somewhere", "none")):  # fmt: skip
        with pytest.raises(BenchError, match=problem) as error:
            dataset.samples(root)
        message = str(error.value)
        assert str(root) in message
        assert "--data DIR" in message
        assert "/train/" in message
        assert "\n" not in message


def test_an_error_about_an_official_layout_lists_the_content_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mvtec_anomaly_detection").mkdir()
    with pytest.raises(BenchError, match=r"has none of them, it has mvtec_anomaly_detection/\. Unpack"):
        mvtec.samples(tmp_path)
    with pytest.raises(BenchError, match="has none of them, it has no files"):
        btad.samples(tmp_path / "mvtec_anomaly_detection")


NAMES = st.text("abcxyz019_-", min_size=1, max_size=4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=st.sets(NAMES, min_size=1), test=st.dictionaries(NAMES, st.booleans(), min_size=1))
def test_each_image_is_listed_once_in_sorted_order(tmp_path_factory, train: set[str], test: dict[str, bool]) -> None:
    root = tmp_path_factory.mktemp("images")
    names = [f"lid/train/good/{name}.png" for name in train] + [f"lid/test/crack/{name}.png" for name in test]
    masked = {name for name, is_masked in test.items() if is_masked and f"{name}_mask" not in test}
    for name in names + [f"lid/ground_truth/crack/{name}_mask.png" for name in masked]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    samples = folder.samples(root)
    assert sorted(str(sample.image.relative_to(root)) for sample in samples) == sorted(names)
    assert samples == sorted(samples, key=lambda sample: (sample.split == "test", sample.image.name))
    assert {sample.image.stem for sample in samples if sample.masks} == masked


def test_real_inspection_images_are_listed(shared: Path, caplog) -> None:
    root = shared / "data" / "real256"
    if not root.is_dir():
        pytest.skip("needs shared/data/real256")
    samples = folder.samples(root)
    tally = {
        name: sum(sample.category == name for sample in samples) for name in {sample.category for sample in samples}
    }
    assert tally.keys() >= {"bottle", "capsule", "kolektorsdd", "magnetic_tile", "tire"}
    assert tally["bottle"] == 292
    assert all(bool(sample.masks) == sample.is_anomalous for sample in samples)
    assert warnings(caplog) == ["tire: not used are folders: validation/ (29 images)."]
    mvtec.samples(root / "mvtec")
    assert any(warning.startswith("MVTec AD: ") for warning in warnings(caplog))
