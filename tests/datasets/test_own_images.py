"""Own images as they come from factories: nested folders, masks next to images, Unicode names, links, any layout."""

import logging
import os
import unicodedata
from importlib import import_module
from pathlib import Path

import pytest

from bench.dataset import EXTENSIONS, Sample
from bench.errors import BenchError

folder = import_module("bench.datasets.folder")
mapping = import_module("bench.datasets.parts.mapping")


def create(root: Path, *names: str) -> None:
    """Create empty files; listing opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def usual(root: Path, category: str = "lid") -> None:
    create(root, f"{category}/train/good/0.png", f"{category}/test/good/0.png")


def masks_of(samples: list[Sample], root: Path) -> dict[str, list[str]]:
    """Return the masks of each defective image by its id."""
    return {
        sample.id: [path.relative_to(root).as_posix() for path in sample.masks]
        for sample in samples
        if sample.is_anomalous
    }


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---- files that are read, and files that are not


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_extension_is_listed(tmp_path: Path, extension: str) -> None:
    create(tmp_path, f"lid/train/good/a{extension}", f"lid/train/good/b{extension.upper()}", "lid/test/good/c.png")
    assert len(folder.samples(tmp_path)) == 3


def test_subfolders_are_read_with_masks_nested_alike_or_not(tmp_path: Path) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/train/good/day1/0.png", "lid/test/crack/line1/0.png", "lid/test/crack/line2/0.png",
           "lid/ground_truth/crack/line1/0_mask.png", "lid/ground_truth/crack/line2/0_mask.png")  # fmt: skip
    create(tmp_path, "lid/test/dent/line1/7.png", "lid/ground_truth/dent/7_mask.png")
    create(tmp_path, "lid/test/hole/8.png", "lid/ground_truth/hole/line1/8.png")
    samples = folder.samples(tmp_path)
    assert masks_of(samples, tmp_path) == {
        "lid/test/crack/line1/0.png": ["lid/ground_truth/crack/line1/0_mask.png"],
        "lid/test/crack/line2/0.png": ["lid/ground_truth/crack/line2/0_mask.png"],
        "lid/test/dent/line1/7.png": ["lid/ground_truth/dent/7_mask.png"],
        "lid/test/hole/8.png": ["lid/ground_truth/hole/line1/8.png"],
    }
    assert [sample.id for sample in samples if sample.split == "train"] == [
        "lid/train/good/0.png", "lid/train/good/day1/0.png",
    ]  # fmt: skip


def test_a_mask_in_another_subfolder_than_its_namesake_is_not_used(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/test/crack/line1/0.png", "lid/ground_truth/crack/line2/0_mask.png")
    assert masks_of(folder.samples(tmp_path), tmp_path) == {"lid/test/crack/line1/0.png": []}
    assert warnings(caplog) == [
        "lid: 1 masks have no image and are not used: ground_truth/crack/line2/0_mask.png."
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["{}_mask.png", "{}_GT.bmp", "{}_label.tif", "{}-mask.png", "masks/{}.png", "gt/{}_mask.png"]
)
def test_masks_next_to_images_are_paired_and_never_images(tmp_path: Path, name: str, caplog) -> None:
    usual(tmp_path)
    for index in ("0", "1"):
        create(tmp_path, f"lid/test/crack/{index}.png", f"lid/test/crack/{name.format(index)}")
    samples = folder.samples(tmp_path)
    assert masks_of(samples, tmp_path) == {
        f"lid/test/crack/{index}.png": [f"lid/test/crack/{name.format(index)}"] for index in ("0", "1")
    }
    assert warnings(caplog) == []


def test_a_mask_whose_image_is_missing_is_not_an_image_either(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/test/crack/0.png", "lid/test/crack/0_mask.png", "lid/test/crack/1_mask.png",
           "lid/train/good/0_mask.png")  # fmt: skip
    samples = folder.samples(tmp_path)
    assert [sample.image.name for sample in samples] == ["0.png"] * 3
    assert warnings(caplog) == [
        "lid: 1 masks have no image and are not used: test/crack/1_mask.png.",
        "lid: not used are 1 images: train/good/0_mask.png.",
    ]


def test_images_that_are_all_named_as_masks_are_images(tmp_path: Path) -> None:
    create(tmp_path, "lid/train/good/front_label.png", "lid/train/good/back_label.png", "lid/test/good/a_label.png")
    assert len(folder.samples(tmp_path)) == 3


def test_several_masks_per_image_lie_in_a_folder_or_are_numbered(tmp_path: Path) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/test/crack/0.png", "lid/test/crack/1.png", "lid/ground_truth/crack/0/000.png",
           "lid/ground_truth/crack/0/001.png", "lid/ground_truth/crack/1_mask_0.png",
           "lid/ground_truth/crack/1_mask_1.png")  # fmt: skip
    assert masks_of(folder.samples(tmp_path), tmp_path) == {
        "lid/test/crack/0.png": ["lid/ground_truth/crack/0/000.png", "lid/ground_truth/crack/0/001.png"],
        "lid/test/crack/1.png": ["lid/ground_truth/crack/1_mask_0.png", "lid/ground_truth/crack/1_mask_1.png"],
    }


def test_a_copy_of_the_image_next_to_its_mask_is_not_a_mask(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/test/crack/0.png", "lid/ground_truth/crack/0.png", "lid/ground_truth/crack/0_mask.png")
    samples = folder.samples(tmp_path)
    assert masks_of(samples, tmp_path) == {"lid/test/crack/0.png": ["lid/ground_truth/crack/0_mask.png"]}
    assert warnings(caplog) == ["lid: 1 masks have no image and are not used: ground_truth/crack/0.png."]


def test_loose_images_and_other_files_are_counted_and_named(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/train/1.png", "lid/train/good/2.heic", "lid/test/3.png", "lid/4.png", "cap/5.png", "6.png")
    folder.samples(tmp_path)
    assert warnings(caplog) == [
        f"{tmp_path.name}: not used, because they are in no folder with train/ or test/: cap/, 6.png.",
        (
            "lid: not used are 2 images: train/1.png, test/3.png; 1 files without the extension of an image (1 .heic): "
            "train/good/2.heic; 1 images next to train/ and test/: 4.png."
        ),
    ]


def test_images_below_the_last_level_are_counted_with_an_example(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/test/dent/a/b/c/d/0.png", "lid/test/dent/a/b/c/d/e/1.png", "lid/test/dent/a/b/c/d/e/2.png",
           "a/b/cap/train/good/0.png", "a/b/c/d/nut/train/good/0.png", "a/b/c/d/nut/test/good/0.png")  # fmt: skip
    samples = folder.samples(tmp_path)
    assert [sample.id for sample in samples] == [
        "cap/train/good/0.png", "lid/train/good/0.png", "lid/test/dent/a/b/c/d/0.png", "lid/test/good/0.png",
    ]  # fmt: skip
    assert warnings(caplog) == [
        (
            f"{tmp_path.name}: 2 images are not used, because their categories are more than 3 levels below, for "
            "example a/b/c/d/nut/test/good/0.png. Pass a folder nearer to them with --data."
        ),
        ("lid: not used are 2 images in more than 4 levels of subfolders, for example test/dent/a/b/c/d/e/1.png."),
    ]


def test_images_below_the_last_level_of_patterns_and_of_good_images_are_counted(tmp_path: Path, caplog) -> None:
    create(tmp_path, "lid/0.png", "lid/day1/1.png", "lid/a/b/c/2.png", "lid/a/b/c/d/3.png")
    assert len(folder.samples(tmp_path, "train={category}/**/*")) == 3
    assert len(folder.samples(tmp_path)) == 1
    assert warnings(caplog) == [
        (
            f"{tmp_path.name}: 1 images in more than 4 levels of subfolders are not used, for example "
            "lid/a/b/c/d/3.png. Pass a folder nearer to them with --data."
        ),
        "lid: there is no train/ or test/; its 1 images are used as good training images.",
        (
            f"{tmp_path.name}: 3 images in subfolders of these folders are not used: lid/a/b/c/2.png, "
            "lid/a/b/c/d/3.png, lid/day1/1.png. Move them to <category>/train/good/."
        ),
    ]
    (tmp_path / "lid/0.png").unlink()
    with pytest.raises(BenchError, match=r"but 3 images in deeper folders, for example lid/a/b/c/2\.png"):
        folder.samples(tmp_path)


def test_a_second_name_of_a_folder_has_a_warning_and_a_link_to_a_folder_above_has_none(tmp_path: Path, caplog) -> None:
    usual(tmp_path, "line1/bolt")
    (tmp_path / "nut").symlink_to("line1/bolt")
    (tmp_path / "line2").symlink_to("line1")
    (tmp_path / "line1" / "above").symlink_to("..")
    for layout in ("", "train=**/train/good/*; good=**/test/good/*"):
        assert len(folder.samples(tmp_path, layout)) == 2
    assert warnings(caplog) == [
        (
            f"{tmp_path.name}: not used, because they are other names of folders that are used: "
            "line2 (the same as line1), nut (the same as line1/bolt)."
        ),
        f"{tmp_path.name}: not used, because they are other names of folders that are read: line2, nut.",
    ]


def test_files_of_other_systems_are_ignored_without_a_word(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "__MACOSX/train/good/0.png", "lid/test/__MACOSX/0.png", "lid/test/good/._0.png",
           "lid/test/Thumbs.db", "lid/test/good/@eaDir/0.png", "lid/train/good/desktop.ini")  # fmt: skip
    (tmp_path / "lid/test/empty").mkdir()
    (tmp_path / "box/test").mkdir(parents=True)
    samples = folder.samples(tmp_path)
    assert [sample.id for sample in samples] == ["lid/train/good/0.png", "lid/test/good/0.png"]
    assert warnings(caplog) == ["Own images: categories without images are skipped: box (none in train/good/)."]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_neither_images_nor_masks_and_links_to_files_are(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/test/crack/0.png", "lid/test/crack/1.png", "lid/ground_truth/crack/0_mask.png", "stored.png")
    pipes = ("train/good/pipe.png", "ground_truth/crack/1_mask.png")
    for name in pipes:
        os.mkfifo(tmp_path / "lid" / name)
    (tmp_path / "lid/train/good/linked_pipe.png").symlink_to("pipe.png")
    (tmp_path / "lid/train/good/linked_file.png").symlink_to(tmp_path / "stored.png")
    layout = "train=*/train/good/*; mask=*/ground_truth/*/*; test=*/test/{defect}/*"
    for text in ("", layout):
        samples = folder.samples(tmp_path, text)
        assert [each.image.name for each in samples if each.split == "train"] == ["0.png", "linked_file.png"]
        assert [len(each.masks) for each in samples if each.is_anomalous] == [1, 0]
    special = [text for text in warnings(caplog) if "pipe.png" in text]
    assert special == [
        (
            "lid: not used are 3 pipes or devices: train/good/linked_pipe.png, train/good/pipe.png, "
            "ground_truth/crack/1_mask.png."
        ),
        (
            f"{tmp_path.name}: 4 files match no pattern of the layout and are not used: "
            "lid/ground_truth/crack/1_mask.png, lid/train/good/linked_pipe.png, lid/train/good/pipe.png, stored.png."
        ),
    ]


# ---- names


def test_composed_and_decomposed_names_match_and_have_one_id(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD"))
    assert composed != decomposed
    create(tmp_path, f"{decomposed}/train/good/0.png", f"{decomposed}/test/{decomposed}/{decomposed}.png",
           f"{decomposed}/ground_truth/{composed}/{composed}_mask.png")  # fmt: skip
    samples = folder.samples(tmp_path)
    assert samples[1].id == f"{composed}/test/{composed}/{composed}.png"
    assert samples[1].category == samples[1].defect == composed
    assert len(samples[1].masks) == 1


def test_names_with_a_newline_are_matched_with_their_masks(tmp_path: Path, caplog) -> None:
    usual(tmp_path)
    create(tmp_path, "lid/test/crack/a\nb.png", "lid/ground_truth/crack/a\nb_mask.png",
           "lid/test/dent/c\nd.png", "lid/test/dent/c\nd_GT.png")  # fmt: skip
    expected = {
        "lid/test/crack/a\nb.png": ["lid/ground_truth/crack/a\nb_mask.png"],
        "lid/test/dent/c\nd.png": ["lid/test/dent/c\nd_GT.png"],
    }
    assert masks_of(folder.samples(tmp_path), tmp_path) == expected
    assert warnings(caplog) == []
    create(tmp_path, "lid/test/dent/line\n1/0.png")
    assert len(folder.samples(tmp_path, "train=*/train/*/*; mask=*/ground_truth/**/*; test=*/test/{defect}/**/*")) == 5


def test_two_names_that_differ_only_in_their_unicode_form_are_an_error(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        create(tmp_path, f"lid/train/good/{unicodedata.normalize(form, 'ö')}.png")
    if len(list((tmp_path / "lid/train/good").iterdir())) == 1:
        pytest.skip("this file system stores both names as one")
    with pytest.raises(BenchError, match="must have different names without extension"):
        folder.samples(tmp_path)


def test_a_linked_category_has_the_name_of_its_link_however_it_is_reached(tmp_path: Path) -> None:
    usual(tmp_path / "storage", "lid_v3")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "lid").symlink_to(tmp_path / "storage" / "lid_v3")
    for root in (tmp_path / "parts", tmp_path / "parts" / "lid"):
        assert {sample.category for sample in folder.samples(root)} == {"lid"}


def test_a_folder_next_to_a_link_to_it_keeps_its_name(tmp_path: Path) -> None:
    usual(tmp_path, "lid")
    (tmp_path / "a_link").symlink_to(tmp_path / "lid")
    assert {sample.category for sample in folder.samples(tmp_path)} == {"lid"}


def test_ok_is_another_word_for_good(tmp_path: Path) -> None:
    create(tmp_path, "lid/train/ok/0.png", "lid/test/OK/0.png", "lid/test/ko/0.png")
    assert [sample.defect for sample in folder.samples(tmp_path)] == ["good", "good", "ko"]


@pytest.mark.parametrize("name", ["good", "OK", "normal", "pass", "0", "good ", " Ok"])
def test_folders_patterns_and_tables_have_the_same_names_of_good_images(tmp_path: Path, name: str, caplog) -> None:
    create(tmp_path, "lid/train/good/0.png", f"lid/test/{name}/1.png", "lid/test/dent/2.png")
    (tmp_path / "list.csv").write_text(
        f"image,split,label\nlid/train/good/0.png,train,good\nlid/test/{name}/1.png,test,{name}\n"
        "lid/test/dent/2.png,test,dent\n",
        "utf-8",
    )
    for layout in ("", "train=*/train/*/*; test=*/test/{defect}/*", "list.csv"):
        defects = [sample.defect for sample in folder.samples(tmp_path, layout) if sample.split == "test"]
        assert sorted(defects) == ["dent", "good"]
    assert not [text for text in warnings(caplog) if "resembles" in text]


def test_a_defect_whose_name_resembles_good_has_a_warning(tmp_path: Path, caplog) -> None:
    names = ("Good2", "no_defect", "ok_parts", "dent", "01", "broken")
    create(tmp_path, "lid/train/good/0.png", *(f"lid/test/{name}/0.png" for name in names))
    (tmp_path / "list.csv").write_text(
        "image,split,label\nlid/train/good/0.png,train,good\nlid/test/dent/0.png,test,passed\n", "utf-8"
    )
    for layout in ("", "train=*/train/*/*; test=*/test/{defect}/*", "list.csv"):
        folder.samples(tmp_path, layout)
    end = "although the name resembles one of good images. If they are good, rename it to 'good' (good are good, ok, "
    assert [text for text in warnings(caplog) if "resembles" in text] == [
        f"lid: the images of 'Good2, no_defect, ok_parts' count as defective, {end}normal, pass, 0).",
        f"{tmp_path.name}: the images of 'Good2, no_defect, ok_parts' count as defective, {end}normal, pass, 0).",
        f"{tmp_path.name}: the images of 'passed' count as defective, {end}normal, pass, 0).",
    ]


def test_several_folders_of_good_images_have_a_warning(tmp_path: Path, caplog) -> None:
    create(tmp_path, "lid/train/good/0.png", "lid/test/good/1.png", "lid/test/0/2.png", "lid/test/1/3.png")
    assert [sample.defect for sample in folder.samples(tmp_path)] == ["good", "1", "good", "good"]
    assert warnings(caplog) == [
        "lid: the images of several folders of test/ are good ones: 0, good. Rename a folder of another kind."
    ]


def test_two_images_with_one_id_are_an_error(tmp_path: Path) -> None:
    create(tmp_path, "lid/train/ok/0.png", "lid/train/good/0.png")
    with pytest.raises(BenchError, match=r"must have different paths; .*0\.png and .*0\.png are both lid/train/good/0"):
        folder.samples(tmp_path)


# ---- good images only


def test_a_category_may_have_good_images_only(tmp_path: Path) -> None:
    create(tmp_path, "lid/train/good/0.png", "lid/train/good/1.png")
    assert [sample.split for sample in folder.samples(tmp_path)] == ["train", "train"]


@pytest.mark.parametrize("is_category", [False, True])
def test_images_directly_in_a_category_folder_are_good_training_images_with_a_warning(
    tmp_path: Path, is_category: bool, caplog
) -> None:
    create(tmp_path, "lid/0.png", "lid/1.png")
    samples = folder.samples(tmp_path / "lid" if is_category else tmp_path)
    assert [sample.id for sample in samples] == ["lid/train/good/0.png", "lid/train/good/1.png"]
    assert warnings(caplog) == ["lid: there is no train/ or test/; its 2 images are used as good training images."]


# ---- layouts


def test_flat_folders_of_good_and_bad_images_are_an_error_that_proposes_the_layout(tmp_path: Path, caplog) -> None:
    create(tmp_path, *(f"lid/good/{index}.png" for index in range(8)), "lid/bad/0.png", "lid/bad/1.png")
    layout = "good={category}/good/**/*; defect={category}/bad/**/*"
    with pytest.raises(BenchError) as error:
        folder.samples(tmp_path)
    assert f"Pass --layout '{layout}'" in str(error.value)
    assert folder.propose_layout_if_needed(tmp_path) == layout
    samples = folder.samples(tmp_path, layout)
    counts = [(sample.split, sample.defect) for sample in samples]
    assert counts == [("train", "good")] * 6 + [("test", "defect")] * 2 + [("test", "good")] * 2
    assert warnings(caplog) == [
        "lid: the layout gives no split; 2 of 8 good images are drawn as test images by a hash of their names."
    ]
    assert folder.samples(tmp_path, layout) == samples  # the draw is the same each time
    assert folder.propose_layout_if_needed(tmp_path / "lid") == "good=good/**/*; defect=bad/**/*"


def test_kinds_of_defects_and_masks_next_to_a_good_folder_are_proposed_as_such(tmp_path: Path) -> None:
    create(tmp_path, "OK/0.png", "OK/1.png", "scratch/0.png", "masks/0_mask.png")
    layout = folder.propose_layout_if_needed(tmp_path)
    assert layout == "good=OK/**/*; mask=masks/**/*; defect={defect}/**/*"
    samples = folder.samples(tmp_path, layout)
    assert masks_of(samples, tmp_path) == {f"{tmp_path.name}/test/scratch/0.png": ["masks/0_mask.png"]}


def test_a_usual_layout_needs_no_proposal(tmp_path: Path) -> None:
    usual(tmp_path)
    assert folder.propose_layout_if_needed(tmp_path) == ""


def test_patterns_map_any_layout(tmp_path: Path, caplog) -> None:
    create(tmp_path, "day1/lid_ok_1.png", "day1/lid_ok_2.png", "day2/lid_ok_3.png", "day2/lid_scratch_4.png",
           "day2/lid_scratch_4.mask.png", "day2/cap_ok_1.png", "day2/notes.txt")  # fmt: skip
    layout = (
        "mask=*/*_*_*.mask.png; train=day1/{category}_ok_*.png; train=day2/cap_*.png; good=day2/{category}_ok_*.png; "
        "defect=day2/{category}_{defect}_*.png"
    ).replace("mask=*/*_*_*.mask.png", "mask=*/{stem}.mask.png")
    samples = folder.samples(tmp_path, layout.replace("train=day2/cap_*.png", "train=day2/{category}_ok_1.png"))
    assert [(sample.category, sample.split, sample.defect, sample.image.name) for sample in samples] == [
        ("cap", "train", "good", "cap_ok_1.png"),
        ("lid", "train", "good", "lid_ok_1.png"),
        ("lid", "train", "good", "lid_ok_2.png"),
        ("lid", "test", "good", "lid_ok_3.png"),
        ("lid", "test", "scratch", "lid_scratch_4.png"),
    ]
    assert [path.name for path in samples[-1].masks] == ["lid_scratch_4.mask.png"]
    assert warnings(caplog) == [
        f"{tmp_path.name}: 1 files match no pattern of the layout and are not used: day2/notes.txt."
    ]


@pytest.mark.parametrize(
    "masks", [["bad/0_mask.png", "bad/1_GT.png"], ["bad/masks/0.png", "bad/masks/1.png"], ["bad/gt/0_m.png"]]
)
@pytest.mark.parametrize("layout", ["good=good/*; defect=bad/**/*", "good=good/**/*; test={defect}/**/*"])
def test_masks_that_a_pattern_of_images_matches_are_never_images(
    tmp_path: Path, masks: list[str], layout: str, caplog
) -> None:
    create(tmp_path, *(f"good/{index}.png" for index in range(8)), "bad/0.png", "bad/1.png", *masks)
    samples = folder.samples(tmp_path, layout)
    anomalous = [sample for sample in samples if sample.is_anomalous]
    assert [sample.image.name for sample in anomalous] == ["0.png", "1.png"]
    if len(masks) == 2:
        assert [path.relative_to(tmp_path).as_posix() for each in anomalous for path in each.masks] == masks
    else:  # its name is that of no image
        assert warnings(caplog)[0].endswith(
            "1 masks belong to no image or to several, and are not used: bad/gt/0_m.png."
        )


def test_a_category_called_labels_may_have_patterns(tmp_path: Path) -> None:
    create(tmp_path, "labels/good/0.png", "labels/bad/0.png", "labels/bad/1.png")
    samples = folder.samples(tmp_path, "good={category}/good/*; defect={category}/bad/*")
    assert [(each.category, each.defect) for each in samples] == [
        ("labels", "good"), ("labels", "defect"), ("labels", "defect"),
    ]  # fmt: skip


def test_the_test_role_takes_the_label_from_the_path(tmp_path: Path) -> None:
    create(tmp_path, "a/0.png", "t/ok/0.png", "t/crack/sub/0.png")
    samples = folder.samples(tmp_path, "train=a/*; test=t/{defect}/**/*")
    assert [(sample.split, sample.defect, sample.folder) for sample in samples] == [
        ("train", "good", ""), ("test", "crack", "sub"), ("test", "good", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("good", "must be role=pattern pairs"),
        ("god=a/*", "'god' is not a role of --layout"),
        ("good={categorie}/*", "'categorie' is not a placeholder"),
        ("test=t/*", "must contain {defect}"),
        ("good=nothing/*", "finds none for any category"),
        (" ; ", "at least one role=pattern pair"),
        ("missing.csv", "must be a readable CSV file"),
    ],
)
def test_a_wrong_layout_is_an_error_with_the_fix(tmp_path: Path, layout: str, message: str) -> None:
    create(tmp_path, "a/0.png")
    with pytest.raises(BenchError, match=message):
        folder.samples(tmp_path, layout)


def test_a_table_gives_split_label_and_masks(tmp_path: Path) -> None:
    create(tmp_path, "images/0.png", "images/1.png", "images/2.png", "images/3.png", "m/2.png", "m/2b.png")
    (tmp_path / "list.csv").write_text(
        "image,split,label,mask\nimages/0.png,train,good,\nimages/1.png,test,OK,\nimages/2.png,test,crack,m/2.png|m/2b.png\n"
        "images/3.png,,1,\n",
        encoding="utf-8",
    )
    samples = folder.samples(tmp_path, "list.csv")
    assert [(sample.split, sample.defect, sample.image.name) for sample in samples] == [
        ("train", "good", "0.png"), ("test", "crack", "2.png"), ("test", "defect", "3.png"), ("test", "good", "1.png"),
    ]  # fmt: skip
    assert [path.name for path in samples[1].masks] == ["2.png", "2b.png"]
    assert {sample.category for sample in samples} == {tmp_path.name}


def test_a_table_without_split_draws_it_and_may_name_categories(tmp_path: Path) -> None:
    create(tmp_path, *(f"{index}.png" for index in range(9)))
    rows = "".join(f"{index}.png,normal,lid\n" for index in range(8)) + "8.png,dent,lid\n"
    (tmp_path / "list.csv").write_text("image,label,category\n" + rows, encoding="utf-8")
    samples = folder.samples(tmp_path, str(tmp_path / "list.csv"))
    assert [sample.split for sample in samples if not sample.is_anomalous] == ["train"] * 6 + ["test"] * 2
    assert {sample.category for sample in samples} == {"lid"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n0.png,good\n", "must have the columns image and label"),
        ("image,label\n9.png,good\n", r"9\.png does not exist"),
        ("image,label,split\n0.png,good,validation\n", "split must be train, test or empty; line 2"),
        ("image,label,split\n0.png,crack,train\n", "train must have good images only; line 2"),
        ("image,label\n0.png,\n", "label must be good or the type of a defect"),
        ("", "must have the columns image and label, .* it has none"),
        ('image,label\n"0.png,good\n', "must be a readable CSV file in UTF-8; .*unexpected end of data"),
        ("image,label,mask,mask\n0.png,crack,0.png,\n", "has mask 2 times"),
        ("image,label,splt\n0.png,good,train\n", "'splt' is not a column .* Did you mean 'split'"),
        ("image,label,mask\n0.png,crack,a.png,b.png\n", "line 2 .* has 4. .* separate several masks by |"),
        ("image,label\n0.png,good\n\n./x/../0.png,crack\n", "lines 2 and 4 .* both name 0.png"),
        ("image,label,mask\n0.png,crack,0.png\n", "Masks must not be images of .*; 0.png are"),
    ],
)
def test_a_wrong_table_is_an_error_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    create(tmp_path, "0.png")
    (tmp_path / "list.csv").write_text(content, encoding="utf-8")
    with pytest.raises(BenchError, match=message):
        folder.samples(tmp_path, "list.csv")


def test_a_table_may_have_other_columns_spaces_and_empty_lines(tmp_path: Path, caplog) -> None:
    create(tmp_path, *(f"{index}.png" for index in range(6)), "m.png")
    (tmp_path / "list.csv").write_text(
        " Image , Label,date,Split,mask\n0.png,good,1 May,train,m.png\n,,,,\n\n1.png,good,,test\n2.png,dent,,,m.png\n"
        "3.png,dent,,,m.png\n",
        encoding="utf-8",
    )
    samples = folder.samples(tmp_path, "list.csv")
    assert [(each.split, each.defect, each.image.name, [path.name for path in each.masks]) for each in samples] == [
        ("train", "good", "0.png", []), ("test", "dent", "2.png", ["m.png"]), ("test", "dent", "3.png", ["m.png"]),
        ("test", "good", "1.png", []),
    ]  # fmt: skip
    assert warnings(caplog) == [
        "list.csv: the columns date are not used; known are image, split, label, mask, category.",
        f"list.csv: 2 images of {tmp_path.name} are not in the table and are not used: 4.png, 5.png.",
        "list.csv: 1 masks belong to several images each: m.png.",
        "list.csv: the masks of 1 good images are not used: 0.png.",
    ]


def test_a_mask_that_a_table_names_twice_for_an_image_counts_once(tmp_path: Path, caplog) -> None:
    create(tmp_path, "0.png", "1.png", "m.png", "n.png")
    (tmp_path / "list.csv").write_text(
        "image,split,label,mask\n0.png,train,good,\n1.png,test,dent,m.png|m.png|n.png|./x/../m.png\n", encoding="utf-8"
    )
    samples = folder.samples(tmp_path, "list.csv")
    assert [path.name for path in samples[1].masks] == ["m.png", "n.png"]
    assert warnings(caplog) == []


def test_images_that_a_table_does_not_name_are_counted_and_named(tmp_path: Path, caplog) -> None:
    create(tmp_path, "a/0.png", "a/1.png", "b/2.png", "b/2_mask.png", "notes.txt")
    (tmp_path / "link.png").symlink_to("a/0.png")  # a name of an image of the table
    (tmp_path / "list.csv").write_text("image,split,label\na/0.png,train,good\n", encoding="utf-8")
    assert len(folder.samples(tmp_path, "list.csv")) == 1
    assert warnings(caplog) == [
        f"list.csv: 3 images of {tmp_path.name} are not in the table and are not used: a/1.png, b/2.png, b/2_mask.png."
    ]


def test_ids_of_a_table_with_absolute_paths_do_not_contain_them(tmp_path: Path) -> None:
    create(tmp_path, "parts/a/0.png", "parts/1.png", "elsewhere/2.png")
    names = [tmp_path / "parts/a/0.png", tmp_path / "parts/1.png", tmp_path / "elsewhere/2.png"]
    (tmp_path / "parts/list.csv").write_text(
        "image,label,split\n" + "".join(f"{name},good,train\n" for name in names), encoding="utf-8"
    )
    assert [sample.id for sample in folder.samples(tmp_path / "parts", "list.csv")] == [
        "parts/train/good/1.png", "parts/train/good/a/0.png", "parts/train/good/elsewhere/2.png",
    ]  # fmt: skip
