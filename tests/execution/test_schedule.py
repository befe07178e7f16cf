"""The whole way from a plan to records in the store, on a tiny data set and with the quickest methods."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import Plan, make_plan
from bench.data.images import FileImages, OriginalResolution
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation import curves, metrics
from bench.execution import fit, schedule
from bench.method import Preprocessing, Setup
from bench.record import Record
from bench.store import Store


def planned(parts: Path, *, settings: dict[str, str] | None = None, **said: object) -> Plan:
    given = {"dataset": "folder", "protocol": "one-for-one", "method": "meanmap", "threads": 1, "time": False} | said
    paths = {"data": parts, "runs": parts.parent / "runs", "cache": parts.parent / "cache"}
    names = registry.names("methods")
    known = load_config()
    return make_plan(known, names, options=given, settings=settings, profile="check", paths=paths, command="bench run")


def prepared(parts: Path, files: list[str]) -> FileImages:
    samples = [Sample(parts / name, "bolt", "train") for name in files]
    return FileImages(samples, Preprocessing(64, 64))


def ran(plan: Plan, **options: bool) -> list[Record]:
    return list(schedule.run_schedule(plan, schedule.make_schedule(plan, **options), lambda *_: None))


def test_a_run_writes_a_record_a_category_with_all_that_made_it(parts: Path) -> None:
    records = ran(planned(parts))
    assert [record.category for record in records] == ["bolt", "plate"]
    bolt = records[0]
    assert bolt.metrics["image_auroc"] == 1.0
    assert bolt.metrics.keys() >= {
        "image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_05", "aupro_30"
    }  # fmt: skip
    assert bolt.train_files == [f"bolt/train/good/{i:03}.png" for i in range(5)]
    assert len(bolt.test_files) == 6
    assert bolt.run.dataset == "folder-parts"
    assert bolt.origin["method"] == "--method"
    assert bolt.seconds.keys() == {"fit", "predict", "judge"}
    assert bolt.environment["threads"] == 1
    assert len(bolt.data_digest) == len(bolt.source_hash) == 64
    assert bolt.memory["host"] > 0
    assert list(Store(parts.parent / "runs").records()) == records


def test_recorded_metrics_can_be_had_again_from_what_is_stored(parts: Path) -> None:
    plan = planned(parts)
    store = Store(plan.runs)
    for record in ran(plan):
        assert fit.evaluate_category(store.predictions(record)).values == record.metrics


def test_a_second_identical_call_does_nothing_and_force_does_it_again(parts: Path) -> None:
    plan = planned(parts)
    first = ran(plan)
    again = schedule.make_schedule(plan)
    assert (again.jobs, list(again.existing)) == ((), first)
    assert len(schedule.make_schedule(plan, force=True).jobs) == 2


def test_a_run_goes_on_where_it_was_stopped(parts: Path) -> None:
    plan = planned(parts)
    next(schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None))
    assert [job.task.name for job in schedule.make_schedule(plan).jobs] == ["plate"]


def test_a_changed_image_is_another_run_and_a_changed_neighbour_is_not(parts: Path) -> None:
    plan = planned(parts)
    ran(plan)
    image = parts / "plate" / "train" / "good" / "000.png"
    image.write_bytes((parts / "plate" / "train" / "good" / "001.png").read_bytes())
    assert [job.task.name for job in schedule.make_schedule(plan).jobs] == ["plate"]


def test_the_same_call_twice_gives_the_same_answers_to_the_bit(parts: Path) -> None:
    plan = planned(parts, method="patchcore", protocol="kshot", k="2")
    store = Store(plan.runs)
    first = [store.predictions(record) for record in ran(plan)]
    second = [store.predictions(record) for record in ran(plan, force=True)]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.maps, other.maps)
        assert np.array_equal(one.scores, other.scores)


def test_neither_the_other_categories_nor_their_order_move_an_answer(parts: Path) -> None:
    both = ran(planned(parts, method="patchcore"))
    alone = ran(planned(parts, method="patchcore", category="plate"), force=True)
    assert alone[0].metrics == both[1].metrics


def test_unified_fits_once_and_judges_each_category(parts: Path) -> None:
    plan = planned(parts, protocol="unified")
    survey = schedule.make_schedule(plan)
    assert len(survey.jobs) == 1
    assert [record.category for record in schedule.run_schedule(plan, survey, lambda *_: None)] == ["bolt", "plate"]


def test_each_seed_and_each_k_is_a_fit(parts: Path) -> None:
    survey = schedule.make_schedule(planned(parts, protocol="kshot", k="1,2", seed="0,1,2"))
    assert len(survey.jobs) == 2 * 3 * 2
    assert len({(job.run.k, job.run.seed, job.task.name) for job in survey.jobs}) == 12


def test_every_method_sees_the_same_draw(parts: Path) -> None:
    jobs = schedule.make_schedule(planned(parts, method="meanmap,patchcore", protocol="kshot", k="2")).jobs
    drawn = {(job.run.name, job.task.name): job.task.train for job in jobs}
    assert drawn["meanmap", "bolt"] == drawn["patchcore", "bolt"]


def test_the_oracle_writes_its_own_record(parts: Path) -> None:
    plan = planned(parts, method="aminet", selection="both", eval_every=1, category="bolt", protocol="kshot", k=2)
    assert [(record.selection, record.eval_every) for record in ran(plan)] == [("last", 0), ("oracle", 1)]
    assert schedule.make_schedule(plan).jobs == ()
    other = planned(parts, method="aminet", selection="both", eval_every=2, category="bolt", protocol="kshot", k=2)
    assert len(schedule.make_schedule(other).jobs) == 1


def test_a_crash_takes_no_other_run_along_and_is_tried_again(parts: Path) -> None:
    (parts / "bolt" / "train" / "good" / "000.png").write_bytes(b"no image")
    plan = planned(parts)
    bolt, plate = ran(plan)
    assert "000.png" in bolt.failure
    assert not bolt.metrics
    assert not plate.failure
    assert [job.task.name for job in schedule.make_schedule(plan).jobs] == ["bolt"]


def test_a_method_without_weights_is_left_out_and_the_others_go_on(parts: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = {"patchcore.backbone": "wide_resnet50_2.tv_in1k"}
    survey = schedule.make_schedule(planned(parts, method="meanmap,patchcore", settings=settings))
    assert set(survey.skipped) == {"patchcore"}
    assert {job.run.name for job in survey.jobs} == {"meanmap"}
    with pytest.raises(BenchError, match="weights"):
        schedule.make_schedule(planned(parts, method="patchcore", settings=settings))


def test_latency_memory_and_pictures_are_part_of_a_record(parts: Path) -> None:
    plan = planned(parts, category="bolt", time=True)
    (record,) = ran(plan)
    assert len(record.latency["samples_ms"]) == 30
    assert record.latency["p5_ms"] <= record.latency["median_ms"] <= record.latency["p95_ms"]
    assert {"worst.image", "median.image", "best.image", "good.image"} <= Store(plan.runs).views(record).keys()
    assert record.artifacts["views"]["good"].startswith("good/")


def test_without_maps_nothing_but_numbers_is_kept(parts: Path) -> None:
    plan = planned(parts, category="bolt", maps="none")
    (record,) = ran(plan)
    assert "pixel_auroc" in record.metrics
    assert Store(plan.runs).predictions(record).maps is None


def test_a_threshold_is_set_by_good_images_that_the_fit_never_saw(parts: Path) -> None:
    plan = planned(parts, calibrate="0.34", category="bolt", maps="float32")
    (record,) = ran(plan)
    assert (len(record.calibration_files), len(record.train_files)) == (2, 3)
    assert sorted([*record.calibration_files, *record.train_files]) == [f"bolt/train/good/{i:03}.png" for i in range(5)]
    # The same fit by hand: the mean of the three, and the higher score of the two, since ceil(3 x 0.66) is the second.
    meanmap = registry.load("methods", "meanmap")
    method = meanmap.METHOD(meanmap.Settings(), Setup((64, 64), torch.device("cpu"), 0))
    method.fit(prepared(parts, record.train_files), lambda *_: None)
    found = method.predict(next(prepared(parts, record.calibration_files).batches(2)))
    assert record.threshold == pytest.approx(float(found.scores.max()), rel=1e-6)
    assert record.pixel_threshold == pytest.approx(float(found.maps.amax((1, 2)).max()), rel=1e-6)
    answers = Store(plan.runs).predictions(record)
    called = answers.scores > record.threshold
    assert record.metrics["image_recall"] == called[answers.is_anomalous].mean() == 1.0
    assert record.metrics["image_fpr"] == called[~answers.is_anomalous].mean()
    assert fit.evaluate_category(answers, threshold=record.threshold).values == record.metrics


def test_a_calibrated_run_is_another_one_and_a_plain_one_stays_where_it_is(parts: Path) -> None:
    plain, held = (schedule.make_schedule(planned(parts, calibrate=rate)).jobs[0].run for rate in (0, 0.34))
    assert plain.key("d") == dataclasses.replace(held, calibrate=0.0).key("d") != held.key("d")
    assert plain.group_hash != held.group_hash
    (record, _) = ran(planned(parts))
    assert (record.threshold, record.calibration_files) == (None, [])
    assert "image_recall" not in record.metrics


def test_a_released_checkpoint_can_not_be_calibrated(parts: Path) -> None:
    plan = dataclasses.replace(planned(parts, calibrate=0.34), checkpoint=parts)
    with pytest.raises(BenchError, match="held out of a released checkpoint's training"):
        schedule.make_schedule(plan)


def test_each_category_of_one_model_has_its_own_threshold(parts: Path) -> None:
    bolt, plate = ran(planned(parts, protocol="unified", calibrate=0.34))
    assert bolt.threshold != plate.threshold
    assert len(bolt.train_files) == 6
    assert {name.split("/")[0] for name in bolt.calibration_files} == {"bolt"}


def test_a_set_too_large_to_be_exact_tells_its_error_in_the_record(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = ran(planned(parts, category="bolt"))[0]
    monkeypatch.setattr(curves, "MAX_EXACT_SCORES", 100)  # of 300 defect pixels
    record = ran(planned(parts, category="bolt"), force=True)[0]
    moved = [abs(record.metrics[name] - value) for name, value in exact.metrics.items()]
    assert exact.metric_error_bound == 0.0
    assert 0 <= max(moved) <= record.metric_error_bound < 0.1
    assert record.metric_error_bound > 0


def enlarged(parts: Path, category: str, size: tuple[int, int]) -> None:
    """Every file of a category becomes (width, height), by nearest neighbour."""
    for path in (parts / category).rglob("*.png"):
        Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)


def test_at_original_resolution_pixels_are_those_of_the_files(parts: Path) -> None:
    enlarged(parts, "bolt", (192, 128))
    mixed = parts / "bolt" / "test" / "good" / "000.png"
    Image.open(mixed).resize((96, 80)).save(mixed)
    plan = planned(parts, category="bolt", resolution="original")
    (record,) = ran(plan)
    assert record.run.resolution == "original"
    answers = Store(plan.runs).predictions(record)
    assert answers.maps.shape == (6, 64, 64)
    whole = [np.asarray(Image.open(parts / name)) for name in record.test_files]
    masks = [np.zeros(image.shape[:2], bool) for image in whole]
    for number, (name, defect) in enumerate(zip(record.test_files, answers.defects, strict=True)):
        if defect == "spot":
            path = parts / "bolt" / "ground_truth" / "spot" / f"{Path(name).stem}_mask.png"
            masks[number] = np.asarray(Image.open(path)) > 0
    maps = [
        np.asarray(Image.fromarray(found).resize(mask.shape[::-1], Image.Resampling.BILINEAR))
        for found, mask in zip(answers.maps, masks, strict=True)
    ]
    expected = metrics.evaluate(answers.scores, answers.is_anomalous, maps, masks).values
    assert record.metrics == expected
    # They can be had again from what is stored and the files.
    samples = schedule.make_schedule(plan, force=True).jobs[0].task.tests["bolt"]
    originals = OriginalResolution(samples, Preprocessing(**record.run.preprocessing))
    assert fit.evaluate_category(answers, originals=originals).values == expected
    at_input = ran(planned(parts, category="bolt"))[0]
    assert at_input.run.key("d") != record.run.key("d")
    assert at_input.metrics["image_auroc"] == record.metrics["image_auroc"]
    assert at_input.metrics["pixel_ap"] != record.metrics["pixel_ap"]


def test_an_alias_is_a_name_over_a_file_with_settings_of_its_own(parts: Path) -> None:
    jobs = schedule.make_schedule(planned(parts, method="aminet,aminet_jitter", category="bolt")).jobs
    assert [(job.run.title, job.run.method, job.run.settings["jitter"]) for job in jobs] == [
        ("AMI-Net", "aminet", False),
        ("AMI-Net‡", "aminet", True),
    ]


def test_settings_of_a_category_do_not_split_the_table(parts: Path) -> None:
    plan = planned(parts)
    choice = dataclasses.replace(plan.method_specs[0], by_category={"bolt": {"smoothing": ("7.5", "test")}})
    bolt, plate = schedule.make_schedule(dataclasses.replace(plan, method_specs=(choice,))).jobs
    assert bolt.run.settings != plate.run.settings
    assert bolt.run.group_hash == plate.run.group_hash


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"category": "bot"}, "Did you mean 'bolt'"),
        ({"protocol": "kshoot"}, "Did you mean 'kshot'"),
        ({"protocol": "kshot", "k": "6"}, "'bolt' has 5"),
        ({"protocol": "kshot", "k": "0"}, "at least one image"),
        ({"protocol": "kshot", "k": "4", "calibrate": "0.1"}, "takes 9 good images .* 'bolt' has 4"),
        ({"calibrate": "1"}, "0 or more and below 1"),
        ({"resolution": "native"}, "input.*original"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_in_words(parts: Path, said: dict, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        schedule.make_schedule(planned(parts, **said))
