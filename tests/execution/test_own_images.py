"""Images and masks as factories have them: how a run reads them, and what its record states."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.errors import BenchError
from bench.execution.planned_data import list_samples
from bench.execution.schedule import make_schedule
from bench.store import Store


def change(folder: Path, pattern: str, save: Callable[[np.ndarray, Path], None]) -> None:
    """Replace the files that match by what `save` writes, which may have another extension."""
    for path in sorted(folder.glob(pattern)):
        with Image.open(path) as image:
            pixels = np.array(image)
        path.unlink()
        save(pixels, path)


def only_record(plan_parts, run_plan, **options: object):
    (record,) = run_plan(plan_parts(category="bolt", **options))
    assert not record.failure, record.failure
    return record


def test_turned_images_give_the_numbers_of_upright_ones(parts: Path, plan_parts, run_plan) -> None:
    """PNG keeps the pixels, so that the numbers must be equal."""
    expected = only_record(plan_parts, run_plan).metrics

    def save_turned(pixels: np.ndarray, path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(pixels, 1)).save(path, exif=exif)

    for split in ("train", "test"):
        change(parts / "bolt", f"{split}/*/*.png", save_turned)
    assert only_record(plan_parts, run_plan).metrics == expected


def save_12_bit(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(path)


def test_the_range_of_12_bit_images_is_found_and_stored(parts: Path, plan_parts, run_plan) -> None:
    change(parts / "bolt", "t*/*/*.png", save_12_bit)
    record = only_record(plan_parts, run_plan)
    values = record.data_report["value_range"]
    assert (values["n_images"], values["low"] >= 90 * 16, values["high"] <= 109 * 16) == (5, True, True)
    assert values["black"] < values["low"] < values["high"] < values["white"]
    assert any("becomes black" in warning for warning in record.warnings)
    assert record.metrics["image_auroc"] == 1.0
    fractions = record.data_report["clipped_images"]  # the spots of 10 x 10 pixels are brighter than white
    assert fractions == {f"bolt/test/spot/{i:03}.png": 100 / 64**2 for i in range(3)}
    (warning,) = (warning for warning in record.warnings if "clipped" in warning)
    assert warning.startswith("bolt: 3 of 6 test images have values outside ")
    assert warning.endswith(
        "which are clipped, up to 2.4 % of an image: bolt/test/spot/000.png, bolt/test/spot/001.png, "
        "bolt/test/spot/002.png. Pass a larger --depth."
    )


def test_a_given_depth_is_part_of_the_run_and_scales_as_8_bits(parts: Path, plan_parts, run_plan) -> None:
    change(parts / "bolt", "t*/*/*.png", save_12_bit)
    record = only_record(plan_parts, run_plan, depth=12)
    assert (record.run.preprocessing["black"], record.run.preprocessing["white"]) == (0, 4095)
    plans = [plan_parts(category="bolt", depth=depth) for depth in (12, 14)]
    hashes = [make_schedule(plan).jobs[0].run.preprocessing["white"] for plan in plans if make_schedule(plan).jobs]
    assert hashes == [16383]  # the run with 12 bits is in the store, that with 14 is another one
    change(
        parts / "bolt", "t*/*/*.png", lambda pixels, path: Image.fromarray((pixels // 16).astype(np.uint8)).save(path)
    )
    eight_bits = only_record(plan_parts, run_plan).metrics
    assert record.metrics["image_auroc"] == eight_bits["image_auroc"] == 1.0


def test_a_test_image_of_8_bits_next_to_training_images_of_12_is_named_in_a_warning(
    parts: Path, plan_parts, run_plan
) -> None:
    change(parts / "bolt", "train/*/*.png", save_12_bit)
    record = only_record(plan_parts, run_plan)
    (warning,) = (warning for warning in record.warnings if "8 bits per channel, training images more" in warning)
    assert warning.startswith("bolt: 6 of 6 test images have 8 bits")
    assert "bolt/test/good/000.png, " in warning


def test_a_test_image_of_16_bits_and_training_images_of_8_fails_with_the_fix(parts: Path, plan_parts, run_plan) -> None:
    change(parts / "bolt", "test/good/000.png", save_12_bit)
    (record,) = run_plan(plan_parts(category="bolt"))
    assert "it has more than 8 bits per channel" in record.failure
    assert "--depth 16" in record.failure


def test_a_file_of_several_pages_fails_with_their_number_or_is_read_at_a_page(
    parts: Path, plan_parts, run_plan
) -> None:
    def save_pages(pixels: np.ndarray, path: Path) -> None:
        black = Image.fromarray(np.zeros_like(pixels))
        black.save(path.with_suffix(".tif"), save_all=True, append_images=[Image.fromarray(pixels)])

    expected = only_record(plan_parts, run_plan).metrics
    change(parts / "bolt", "t*/*/*.png", save_pages)
    (record,) = run_plan(plan_parts(category="bolt"))
    assert "it has 2 pages or frames; fit with --page N" in record.failure
    assert only_record(plan_parts, run_plan, page=2).metrics == expected


def test_black_masks_and_masks_that_vanish_make_pixels_unknown(parts: Path, plan_parts, run_plan) -> None:
    masks = parts / "bolt" / "ground_truth" / "spot"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(masks / "000_mask.png")
    large = np.zeros((640, 640), np.uint8)
    large[200, 200:300] = 255  # one row of ten at the size of the input
    Image.fromarray(large).save(masks / "001_mask.png")
    record = only_record(plan_parts, run_plan)
    report = record.data_report["masks"]
    assert report["black"] == ["bolt/test/spot/000.png"]
    assert report["vanished"] == ["bolt/test/spot/001.png"]
    assert (report["images"], report["regions"], report["input_regions"]) == (3, 2, 1)
    assert sum("unknown" in warning for warning in record.warnings) == 2
    predictions = Store(parts.parent / "runs").predictions(record)
    has_pixel_labels = dict(zip(predictions.files, predictions.has_pixel_labels.tolist(), strict=True))
    assert [name for name, is_known in has_pixel_labels.items() if not is_known] == [
        "bolt/test/spot/000.png", "bolt/test/spot/001.png",
    ]  # fmt: skip


def test_at_original_resolution_a_thin_defect_is_evaluated(parts: Path, plan_parts, run_plan) -> None:
    """Enlarge images and masks; a line of one pixel vanishes at the size of the input only."""
    change(parts / "bolt", "test/*/*.png", lambda pixels, path: Image.fromarray(np.kron(pixels, ONES)).save(path))
    line = np.zeros((640, 640), np.uint8)
    line[200, 200:300] = 255
    for path in (parts / "bolt" / "ground_truth" / "spot").iterdir():
        Image.fromarray(line).save(path)
    at_input = only_record(plan_parts, run_plan)
    assert "pixel_auroc" not in at_input.metrics
    assert "pixel_auroc" in only_record(plan_parts, run_plan, resolution="original").metrics


ONES = np.ones((10, 10, 1), np.uint8)


# ---- good images only


def test_good_images_alone_give_a_model_a_threshold_and_their_scores(parts: Path, plan_parts, run_plan) -> None:
    shutil.rmtree(parts / "bolt" / "test")
    shutil.rmtree(parts / "bolt" / "ground_truth")
    record = only_record(plan_parts, run_plan)
    assert record.metrics == {}
    assert record.undefined_metrics["image_auroc"] == "no defective images"
    assert record.threshold is not None
    assert record.run.calibrate == 0.5
    assert len(record.train_files) == 4
    assert record.test_files == record.calibration_files
    assert record.data_report["good_scores"]["images"] == 1
    assert record.data_report["good_scores"]["max"] == record.threshold
    assert record.artifacts["model"]
    assert any("no defective test images; 1 good training images are held out" in text for text in record.warnings)
    assert make_schedule(plan_parts(category="bolt")).jobs == ()


def test_good_test_images_alone_give_the_false_positive_rate(parts: Path, plan_parts, run_plan) -> None:
    shutil.rmtree(parts / "bolt" / "test" / "spot")
    shutil.rmtree(parts / "bolt" / "ground_truth")
    record = only_record(plan_parts, run_plan)
    scores = Store(parts.parent / "runs").predictions(record).scores
    assert record.metrics == {"image_fpr": float((scores > record.threshold).mean())}
    assert len(record.test_files) == 3


# ---- names and layouts


def test_a_category_with_a_comma_can_be_chosen(parts: Path, plan_parts, run_plan) -> None:
    (parts / "bolt").rename(parts / "bolt, M8,steel")
    for categories in ("bolt, M8,steel", "plate,bolt, M8,steel"):
        jobs = make_schedule(plan_parts(category=categories)).jobs
        assert "bolt, M8,steel" in {job.task.name for job in jobs}
        assert len(jobs) == 1 + categories.startswith("plate")
    with pytest.raises(BenchError, match="'M9' is not a category"):
        make_schedule(plan_parts(category="bolt, M8,steel,M9"))


def test_a_layout_maps_other_folders(parts: Path, plan_parts, run_plan) -> None:
    for category in ("bolt", "plate"):
        (parts / category / "train" / "good").rename(parts / category / "ok")
        (parts / category / "test" / "spot").rename(parts / category / "bad")
        for split in ("train", "test"):
            shutil.rmtree(parts / category / split)
    with pytest.raises(BenchError, match="Pass --layout"):
        make_schedule(plan_parts())
    layout = "good={category}/ok/*; defect={category}/bad/*; mask={category}/ground_truth/**/{stem}_mask.png"
    record = only_record(plan_parts, run_plan, layout=layout)
    assert (len(record.train_files), len(record.test_files)) == (4, 4)
    assert record.metrics["pixel_auroc"] > 0.5


def test_a_layout_needs_own_images(plan_parts) -> None:
    with pytest.raises(BenchError, match="--layout needs your own images"):
        make_schedule(plan_parts(dataset="mvtec", layout="good=*"))


# ---- MVTec LOCO AD


def test_loco_has_an_auroc_per_kind_and_spro_at_original_resolution(parts: Path, plan_parts, run_plan) -> None:
    loco, bolt = parts.parent / "loco" / "pushpins", parts / "bolt"
    shutil.copytree(bolt / "train", loco / "train")
    shutil.copytree(bolt / "test" / "good", loco / "test" / "good")
    for defect_type, index, value in (("logical_anomalies", 0, 200), ("structural_anomalies", 1, 255)):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:30, 20 + index : 30 + index] = value
        folder = loco / "ground_truth" / defect_type / f"{index:03}"
        folder.mkdir(parents=True)
        Image.fromarray(mask).save(folder / "000.png")
        (loco / "test" / defect_type).mkdir()
        shutil.copy(bolt / "test" / "spot" / f"{index:03}.png", loco / "test" / defect_type / f"{index:03}.png")
    config = [
        {"defect_name": "missing", "pixel_value": 200, "saturation_threshold": 5, "relative_saturation": False},
        {"defect_name": "scratch", "pixel_value": 255, "saturation_threshold": 1.0, "relative_saturation": True},
    ]
    (loco / "defects_config.json").write_text(json.dumps(config), "utf-8")

    def run(**options: object):
        plan = replace(plan_parts(dataset="mvtec_loco", **options), data=parts.parent / "loco")
        (record,) = run_plan(plan)
        assert not record.failure, record.failure
        return record

    record = run(resolution="original")
    assert record.metrics["image_auroc_logical"] == record.metrics["image_auroc_structural"] == 1.0
    assert record.metrics["aupro_05"] < record.metrics["spro_05"] <= 1.0  # five pixels of the first are enough
    assert run().undefined_metrics["spro_05"] == "needs --resolution original"
    config[0]["pixel_value"] = 201
    (loco / "defects_config.json").write_text(json.dumps(config), "utf-8")
    plan = replace(plan_parts(dataset="mvtec_loco", resolution="original"), data=parts.parent / "loco")
    (record,) = run_plan(plan)
    assert "it has the pixel values 200; one of 201, 255 is needed" in record.failure


@pytest.mark.parametrize(("category", "n_bytes"), [("c" * 101, 101), ("ö" * 51, 102), ("c" * 300, 300)])
def test_a_name_of_a_category_with_more_than_100_bytes_is_refused_when_listing(
    parts: Path, plan_parts, category: str, n_bytes: int
) -> None:
    rows = "".join(f"bolt/train/good/{index:03d}.png,train,good,{{}}\n" for index in range(2))
    (parts / "table.csv").write_text("image,split,label,category\n" + rows.format(*["ö" * 50] * 2), "utf-8")
    plan = plan_parts(layout="table.csv")
    assert len(list_samples(plan, registry.load("datasets", "folder"))) == 2  # 100 bytes
    (parts / "table.csv").write_text("image,split,label,category\n" + rows.format(category, category), "utf-8")
    with pytest.raises(BenchError, match=f"must have at most 100 bytes.*has {n_bytes}. Rename it"):
        list_samples(plan, registry.load("datasets", "folder"))


@pytest.mark.parametrize("category", ["../../x", "a/b", "..", "."])
def test_a_category_of_a_table_cannot_move_the_record_out_of_its_folder(parts: Path, plan_parts, category: str) -> None:
    lines = [f"bolt/train/good/{index:03}.png,train,good,{category}" for index in range(5)]
    (parts / "list.csv").write_text("\n".join(["image,split,label,category", *lines]), encoding="utf-8")
    with pytest.raises(BenchError, match="A category must be a name without path separators"):
        make_schedule(plan_parts(layout="list.csv"))


def test_a_copy_of_a_training_image_in_the_test_set_is_a_warning_of_the_run(parts: Path, plan_parts, run_plan) -> None:
    shutil.copy(parts / "bolt/train/good/000.png", parts / "bolt/test/good/900.png")
    warnings = only_record(plan_parts, run_plan).warnings
    text = "1 image is both in training and in test, for example bolt/train/good/000.png = bolt/test/good/900.png"
    assert f"bolt: {text}. Remove the copies." in warnings


def test_an_image_that_is_good_and_defective_is_a_warning_of_the_run(parts: Path, plan_parts, run_plan) -> None:
    shutil.copy(parts / "bolt/test/good/000.png", parts / "bolt/test/spot/000.png")
    warnings = only_record(plan_parts, run_plan).warnings
    text = "1 image is both good and defective, for example bolt/test/good/000.png = bolt/test/spot/000.png"
    assert f"bolt: {text}. Remove the copies." in warnings


def test_test_images_of_another_size_than_the_training_images_are_a_warning(parts: Path, plan_parts, run_plan) -> None:
    change(
        parts / "bolt", "test/spot/*.png", lambda pixels, path: Image.fromarray(pixels).resize((640, 100)).save(path)
    )
    shutil.rmtree(parts / "bolt/ground_truth")
    warnings = only_record(plan_parts, run_plan).warnings
    start = "bolt: 3 of 6 test images have another size than the training images, for example bolt/test/spot/000.png: "
    text = f"{start}it has 640 x 100 pixels, the training images 64 x 64."
    assert any(warning.startswith(text) for warning in warnings)


def test_training_images_of_different_aspect_are_a_warning(parts: Path, plan_parts, run_plan) -> None:
    change(parts / "bolt", "train/good/000.png", lambda pixels, path: Image.fromarray(pixels[:32]).save(path))
    warnings = only_record(plan_parts, run_plan).warnings
    start = "bolt: the training images have aspect ratios (width / height) from 1 to 2 and all become"
    assert any(warning.startswith(start) for warning in warnings)


def test_masks_of_another_size_are_scaled_with_a_warning(parts: Path, plan_parts, run_plan) -> None:
    change(parts / "bolt", "ground_truth/spot/*.png", lambda pixels, path: Image.fromarray(pixels[::2, ::2]).save(path))
    record = only_record(plan_parts, run_plan)
    names = [f"bolt/test/spot/{i:03}.png" for i in range(3)]
    assert record.data_report["masks"]["other_size"] == names
    text = f"3 of 3 masks do not have the size of their image and are scaled to it: {', '.join(names)}."
    assert f"bolt: {text}" in record.warnings
