"""From a plan to records in the store, on a tiny dataset and with the fastest methods."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import environment, registry
from bench.data.images import FileImages, OriginalResolution
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation import curves, metrics
from bench.execution.fit import evaluate_category
from bench.execution.pictures_and_times import to_8_bit
from bench.execution.schedule import make_schedule, run_schedule
from bench.identity import run_hash
from bench.method import Preprocessing, Setup
from bench.store import Store

METRICS = {
    "image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_05", "aupro_30"
}  # fmt: skip


def training_images(parts: Path, files: list[str]) -> FileImages:
    samples = [Sample(parts / name, "bolt", "train") for name in files]
    return FileImages(samples, Preprocessing(64, 64))


# ---- records


def test_a_run_writes_one_record_per_category_with_all_that_decided_it(parts: Path, plan_parts, run_plan) -> None:
    records = run_plan(plan_parts())
    assert [record.category for record in records] == ["bolt", "plate"]
    bolt = records[0]
    assert bolt.metrics["image_auroc"] == 1.0
    assert bolt.metrics.keys() >= METRICS
    assert bolt.train_files == [f"bolt/train/good/{i:03}.png" for i in range(5)]
    assert bolt.pretrain_files == []
    assert len(bolt.test_files) == 6
    assert bolt.run.dataset == "folder-parts"
    assert bolt.run.data_fingerprints.keys() == {"bolt", "plate"}
    assert bolt.run.options == {
        "tasks": {"limit": 0},
        "evaluation": {"calibrate": 0.0, "resolution": "input"},
        "compute": {"precision": "float32", "compile": False},
    }
    assert bolt.origin["method"] == "--method"
    assert bolt.seconds.keys() == {"fit", "predict", "evaluate"}
    assert bolt.environment["threads"] == 1
    assert len(bolt.data_hash) == len(bolt.source_hash) == 64
    assert bolt.memory["host"] > 0
    stored = sorted(Store(parts.parent / "runs").records(), key=lambda record: record.category)
    assert stored == records


def test_metrics_can_be_reproduced_from_the_stored_predictions(plan_parts, run_plan) -> None:
    plan = plan_parts()
    for record in run_plan(plan):
        assert evaluate_category(Store(plan.runs).predictions(record)).values == record.metrics


def test_latency_and_pictures_are_part_of_a_record(plan_parts, run_plan) -> None:
    plan = plan_parts(category="bolt", time=True)
    (record,) = run_plan(plan)
    assert len(record.latency["samples_ms"]) == 30
    assert record.latency["p5_ms"] <= record.latency["median_ms"] <= record.latency["p95_ms"]
    assert {"worst.image", "median.image", "best.image", "good.image"} <= Store(plan.runs).pictures(record).keys()
    assert record.artifacts["pictures"]["good"].startswith("bolt/test/good/")


def test_without_maps_the_record_still_has_pixel_metrics(plan_parts, run_plan) -> None:
    plan = plan_parts(category="bolt", map_precision="none")
    (record,) = run_plan(plan)
    assert "pixel_auroc" in record.metrics
    assert Store(plan.runs).predictions(record).maps is None


def test_the_same_call_gives_bit_identical_predictions(plan_parts, run_plan) -> None:
    plan = plan_parts(method="patchcore", protocol="kshot", k="2")
    store = Store(plan.runs)
    first = [store.predictions(record) for record in run_plan(plan)]
    second = [store.predictions(record) for record in run_plan(plan, force=True)]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.maps, other.maps)
        assert np.array_equal(one.scores, other.scores)


def test_the_selected_categories_do_not_change_the_metrics_of_one(plan_parts, run_plan) -> None:
    both = run_plan(plan_parts(method="patchcore"))
    (plate,) = run_plan(plan_parts(method="patchcore", category="plate"), force=True)
    assert plate.metrics == both[1].metrics


# ---- what is scheduled


def test_existing_records_are_not_computed_again_except_with_force(plan_parts, run_plan) -> None:
    plan = plan_parts()
    records = run_plan(plan)
    schedule = make_schedule(plan)
    assert (schedule.jobs, list(schedule.existing)) == ((), records)
    assert len(make_schedule(plan, force=True).jobs) == 2


def test_a_stopped_run_continues_with_the_next_task(plan_parts) -> None:
    plan = plan_parts()
    next(run_schedule(plan, make_schedule(plan), lambda *_: None))
    assert [job.task.name for job in make_schedule(plan).jobs] == ["plate"]


def test_a_changed_image_changes_the_run_of_its_category_only(parts: Path, plan_parts, run_plan) -> None:
    plan = plan_parts()
    run_plan(plan)
    image = parts / "plate" / "train" / "good" / "000.png"
    image.write_bytes((parts / "plate" / "train" / "good" / "001.png").read_bytes())
    assert [job.task.name for job in make_schedule(plan).jobs] == ["plate"]


def test_unified_fits_once_and_evaluates_each_category(plan_parts) -> None:
    plan = plan_parts(protocol="unified")
    schedule = make_schedule(plan)
    assert len(schedule.jobs) == 1
    assert [record.category for record in run_schedule(plan, schedule, lambda *_: None)] == ["bolt", "plate"]


def test_each_seed_and_each_k_is_a_fit(plan_parts) -> None:
    schedule = make_schedule(plan_parts(protocol="kshot", k="1,2", seed="0,1,2"))
    assert len(schedule.jobs) == 2 * 3 * 2
    assert len({(job.run.k, job.run.seed, job.task.name) for job in schedule.jobs}) == 12


def test_all_methods_get_the_same_training_images(plan_parts) -> None:
    jobs = make_schedule(plan_parts(method="meanmap,patchcore", protocol="kshot", k="2")).jobs
    train = {(job.run.name, job.task.name): job.task.train for job in jobs}
    assert train["meanmap", "bolt"] == train["patchcore", "bolt"]


def test_the_oracle_has_a_record_of_its_own(plan_parts, run_plan) -> None:
    options = {"method": "aminet", "selection": "both", "category": "bolt", "protocol": "kshot", "k": 2}
    plan = plan_parts(eval_every=1, **options)
    assert [(record.selection, record.eval_every) for record in run_plan(plan)] == [("last", 0), ("oracle", 1)]
    assert make_schedule(plan).jobs == ()
    assert len(make_schedule(plan_parts(eval_every=2, **options)).jobs) == 1


def test_a_failure_leaves_the_other_tasks_unchanged_and_is_repeated(parts: Path, plan_parts, run_plan) -> None:
    (parts / "bolt" / "train" / "good" / "000.png").write_bytes(b"no image")
    plan = plan_parts()
    bolt, plate = run_plan(plan)
    assert "000.png" in bolt.failure
    assert not bolt.metrics
    assert not plate.failure
    assert [job.task.name for job in make_schedule(plan).jobs] == ["bolt"]


def test_a_category_whose_files_cannot_be_read_is_skipped_and_the_others_run(parts: Path, plan_parts) -> None:
    image = parts / "bolt" / "train" / "good" / "000.png"
    image.unlink()
    image.symlink_to(parts / "missing.png")
    schedule = make_schedule(plan_parts())
    assert list(schedule.skipped) == ["bolt"]
    assert "000.png" in schedule.skipped["bolt"]
    assert [job.task.name for job in schedule.jobs] == ["plate"]
    with pytest.raises(BenchError, match=r"000\.png"):
        make_schedule(plan_parts(category="bolt"))


def test_a_method_without_weights_is_skipped_and_the_others_run(plan_parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = {"patchcore.backbone": "wide_resnet50_2.tv_in1k"}
    schedule = make_schedule(plan_parts(method="meanmap,patchcore", settings=settings))
    assert set(schedule.skipped) == {"patchcore"}
    assert {job.run.name for job in schedule.jobs} == {"meanmap"}
    with pytest.raises(BenchError, match="weights"):
        make_schedule(plan_parts(method="patchcore", settings=settings))


def test_methods_that_are_skipped_for_one_reason_share_a_warning(
    plan_parts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    backbones = {
        "patchcore": "wide_resnet50_2.tv_in1k",
        "padim": "wide_resnet50_2.tv_in1k",
        "spade": "resnet34.tv_in1k",
    }
    settings = {f"{name}.backbone": backbone for name, backbone in backbones.items()}
    make_schedule(plan_parts(method="meanmap,patchcore,spade,padim", settings=settings))
    starts = [line.partition(" skipped: ")[0] for line in caplog.messages if " skipped: " in line]
    assert starts == ["patchcore, padim are", "spade is"]


def test_an_alias_is_a_run_of_its_file_with_other_settings(plan_parts) -> None:
    jobs = make_schedule(plan_parts(method="aminet,aminet_jitter", category="bolt")).jobs
    assert [(job.run.title, job.run.method, job.run.settings["jitter"]) for job in jobs] == [
        ("AMI-Net", "aminet", False),
        ("AMI-Net‡", "aminet", True),
    ]


def test_settings_of_one_category_keep_the_categories_in_one_group(plan_parts) -> None:
    plan = plan_parts()
    spec = replace(plan.method_specs[0], by_category={"bolt": {"smoothing": ("7.5", "test")}})
    bolt, plate = make_schedule(replace(plan, method_specs=(spec,))).jobs
    assert bolt.run.settings != plate.run.settings
    assert bolt.run.group_hash == plate.run.group_hash


# ---- calibration


def test_thresholds_are_set_on_good_images_that_are_not_trained_on(parts: Path, plan_parts, run_plan) -> None:
    plan = plan_parts(calibrate="0.34", category="bolt", map_precision="float32")
    (record,) = run_plan(plan)
    assert (len(record.calibration_files), len(record.train_files)) == (2, 3)
    assert sorted([*record.calibration_files, *record.train_files]) == [f"bolt/train/good/{i:03}.png" for i in range(5)]
    # The same fit by hand: the threshold is the higher of the two scores, since ceil(3 x 0.66) = 2 is its rank.
    meanmap = registry.load("methods", "meanmap")
    method = meanmap.METHOD(meanmap.Settings(), Setup((64, 64), torch.device("cpu"), 0))
    method.fit(training_images(parts, record.train_files), lambda *_: None)
    expected = method.predict(next(training_images(parts, record.calibration_files).batches(2)))
    assert record.threshold == pytest.approx(float(expected.scores.max()), rel=1e-6)
    assert record.pixel_threshold == pytest.approx(float(expected.maps.amax((1, 2)).max()), rel=1e-6)
    predictions = Store(plan.runs).predictions(record)
    is_called_defective = predictions.scores > record.threshold
    assert record.metrics["image_recall"] == is_called_defective[predictions.is_anomalous].mean() == 1.0
    assert record.metrics["image_fpr"] == is_called_defective[~predictions.is_anomalous].mean()
    assert evaluate_category(predictions, threshold=record.threshold).values == record.metrics


def test_a_calibrated_run_has_another_hash_and_group(plan_parts, run_plan) -> None:
    plain, calibrated = (make_schedule(plan_parts(calibrate=rate)).jobs[0].run for rate in (0, 0.34))
    assert run_hash(plain, "d") != run_hash(calibrated, "d")
    assert run_hash(plain, "d") == run_hash(replace(calibrated, options=plain.options), "d")
    assert plain.group_hash != calibrated.group_hash
    record = run_plan(plan_parts())[0]
    assert (record.threshold, record.calibration_files) == (None, [])
    assert "image_recall" not in record.metrics


def test_each_category_of_a_unified_model_has_its_own_threshold(plan_parts, run_plan) -> None:
    bolt, plate = run_plan(plan_parts(protocol="unified", calibrate=0.34))
    assert bolt.threshold != plate.threshold
    assert len(bolt.train_files) == 6
    assert {name.split("/")[0] for name in bolt.calibration_files} == {"bolt"}


# ---- metrics


def test_the_record_of_a_very_large_test_set_has_an_error_bound(
    plan_parts, run_plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = run_plan(plan_parts(category="bolt"))[0]
    monkeypatch.setattr(curves, "MAX_EXACT_SCORES", 100)  # the masks have 300 pixels
    record = run_plan(plan_parts(category="bolt"), force=True)[0]
    errors = [abs(record.metrics[name] - value) for name, value in exact.metrics.items()]
    assert exact.metric_error_bound == 0.0
    assert 0 <= max(errors) <= record.metric_error_bound < 0.1
    assert record.metric_error_bound > 0


def resize_category(parts: Path, category: str, size: tuple[int, int]) -> None:
    """Resize every file of a category to (width, height) by nearest neighbor."""
    for path in (parts / category).rglob("*.png"):
        Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)


def test_original_resolution_evaluates_the_pixels_of_the_files(parts: Path, plan_parts, run_plan) -> None:
    resize_category(parts, "bolt", (192, 128))
    smaller = parts / "bolt" / "test" / "good" / "000.png"
    Image.open(smaller).resize((96, 80)).save(smaller)
    plan = plan_parts(category="bolt", resolution="original")
    (record,) = run_plan(plan)
    assert record.run.resolution == "original"
    predictions = Store(plan.runs).predictions(record)
    assert predictions.maps.shape == (6, 64, 64)
    masks = [np.zeros(np.asarray(Image.open(parts / name)).shape[:2], bool) for name in record.test_files]
    for i, (name, defect) in enumerate(zip(record.test_files, predictions.defects, strict=True)):
        if defect == "spot":
            path = parts / "bolt" / "ground_truth" / "spot" / f"{Path(name).stem}_mask.png"
            masks[i] = np.asarray(Image.open(path)) > 0
    maps = [
        np.asarray(Image.fromarray(values).resize(mask.shape[::-1], Image.Resampling.BILINEAR))
        for values, mask in zip(predictions.maps, masks, strict=True)
    ]
    expected = metrics.evaluate(predictions.scores, predictions.is_anomalous, maps, masks).values
    assert record.metrics == expected
    # They can be reproduced from the stored predictions and the files.
    samples = make_schedule(plan, force=True).jobs[0].task.tests["bolt"]
    originals = OriginalResolution(samples, Preprocessing(**record.run.preprocessing))
    assert evaluate_category(predictions, originals=originals).values == expected
    at_input = run_plan(plan_parts(category="bolt"))[0]
    assert run_hash(at_input.run, "d") != run_hash(record.run, "d")
    assert at_input.metrics["image_auroc"] == record.metrics["image_auroc"]
    assert at_input.metrics["pixel_ap"] != record.metrics["pixel_ap"]


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "bot"}, "Did you mean 'bolt'"),
        ({"protocol": "kshoot"}, "Did you mean 'kshot'"),
        ({"protocol": "kshot", "k": "6"}, "'bolt' has 5"),
        ({"protocol": "kshot", "k": "0"}, "k must be >= 1, got 0"),
        ({"protocol": "kshot", "k": "4", "calibrate": "0.1"}, "needs 9 good images, .*; 'bolt' has 4"),
        ({"calibrate": "1"}, "calibrate must be < 1"),
        ({"resolution": "native"}, "input, original"),
    ],
)
def test_options_that_do_not_fit_the_data_are_errors(plan_parts, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        make_schedule(plan_parts(**options))


def test_a_fit_that_needs_more_memory_than_there_is_does_not_start(
    plan_parts, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(environment, "total_memory", lambda _: 1_000_000)
    schedule = make_schedule(plan_parts(method="meanmap,patchcore", category="bolt"))
    assert [job.run.name for job in schedule.jobs] == ["meanmap"]
    message = "A fit must need at most 0.0 GB of memory; its estimate is"
    assert schedule.skipped["PatchCore bolt, seed 0"].startswith(message)
    assert message in caplog.text
    with pytest.raises(BenchError, match="--max-memory GB if the estimate is wrong"):
        make_schedule(plan_parts(method="patchcore", category="bolt"))
    allowed = make_schedule(plan_parts(method="patchcore", category="bolt", max_memory="5"))
    assert len(allowed.jobs) == 1


def test_a_size_that_is_too_large_to_be_computed_is_refused_before_the_work(plan_parts) -> None:
    with pytest.raises(BenchError, match="A fit must need at most"):
        make_schedule(plan_parts(method="aminet", category="bolt", settings={"width": "1000000000"}))


def test_a_method_without_epochs_has_no_oracle_even_if_it_fails(parts: Path, plan_parts, run_plan) -> None:
    image = parts / "bolt" / "train" / "good" / "000.png"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    plan = plan_parts(method="meanmap", category="bolt", selection="oracle")
    (failed,) = run_plan(plan)
    assert (bool(failed.failure), failed.selection) == (True, "last")
    image.write_bytes(content)
    (record,) = run_plan(plan)
    assert (record.failure, record.selection) == ("", "last")
    assert [path.name for path in plan.runs.rglob("*.oracle.json")] == []


def test_a_mask_that_hides_everything_is_stored_as_white_and_another_map_in_its_range() -> None:
    pictures = {"mask": torch.ones(1, 2, 2), "distance": torch.full((1, 2, 2), 3.0), "image": torch.zeros(1, 3, 2, 2)}
    converted = to_8_bit(pictures, ["best"])
    assert converted["best.mask"].min() == 255
    assert converted["best.distance"].max() == 0
    assert converted["best.image"].shape == (2, 2, 3)
