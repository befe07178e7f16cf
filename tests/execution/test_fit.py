"""The runner on a method whose every answer is known beforehand."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.images import FileImages
from bench.data.protocol import Task
from bench.dataset import Sample
from bench.errors import BenchError
from bench.execution.fit import Fit, check_prediction, evaluate_category, representative_images
from bench.method import Method, Prediction, Preprocessing, Setup
from bench.record import Predictions


@dataclass(frozen=True)
class Settings:
    good_at: int = 2  # the epoch after which brightness is scored the right way round


class Turning(Method):
    """Scores by brightness, upside down but for one epoch; draws from every global generator while it fits."""

    iterative = True

    def fit(self, train, progress) -> None:
        self.drawn = []
        for epoch in range(1, 5):
            self.sign = 1.0 if epoch == self.settings.good_at else -1.0
            self.drawn += [random.random(), float(np.random.rand()), float(torch.rand(1))]
            progress(epoch, 4, 1 / epoch)

    def predict(self, images) -> Prediction:
        torch.rand(3), np.random.rand(3), random.random()
        maps = images.mean(1) * self.sign
        return Prediction(maps.amax((1, 2)) if self.sign > 0 else maps.amin((1, 2)), maps)

    def state(self):
        return {}

    def restore(self, state) -> None:
        pass


@pytest.fixture
def task(tmp_path: Path) -> Task:
    def drawn(name: str, spot: int) -> Path:
        pixels = np.full((8, 8), 50, np.uint8)
        pixels[2:4, 2:4] = spot
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        return tmp_path / f"{name}.png"

    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    train = tuple(Sample(drawn(f"train{i}", 50), "part", "train") for i in range(2))
    good = tuple(Sample(drawn(f"good{i}", 50), "part", "test") for i in range(3))
    spot = tuple(Sample(drawn(f"spot{i}", 200), "part", "test", "spot", (tmp_path / "mask.png",)) for i in range(2))
    return Task("part", train, {"part": good + spot})


def fitted(task: Task, rule: str, every: int = 1, kind: type[Turning] = Turning, **options: object) -> tuple[Fit, list]:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    setup = Setup((8, 8), torch.device("cpu"), 0)
    load = lambda samples: FileImages(samples, Preprocessing(8, 8))
    make = lambda: kind(Settings(), setup)
    fit = Fit(task, make, load, torch.device("cpu"), rule=rule, every=every, batch=2, maps="float16", **options)
    return fit, list(fit.answers(lambda *_: None))


def test_the_last_epoch_is_reported_unless_the_oracle_is_asked(task: Task) -> None:
    _, (last,) = fitted(task, "last")
    assert (last.selection, last.epoch) == ("last", 4)
    assert evaluate_category(last.answers).values["image_auroc"] == 0.0


def test_the_oracle_finds_the_best_epoch_on_the_test_set(task: Task) -> None:
    fit, (last, best) = fitted(task, "both")
    assert (last.selection, last.epoch, best.selection, best.epoch) == ("last", 4, "oracle", 2)
    assert evaluate_category(best.answers).values["image_auroc"] == 1.0
    assert [point["image_auroc"] for point in fit.curves["part"]] == [0.0, 1.0, 0.0, 0.0]
    assert [point["epoch"] for point in fit.curves["part"]] == [1, 2, 3, 4]


def test_the_oracle_looks_every_so_many_epochs_and_at_the_end(task: Task) -> None:
    fit, _ = fitted(task, "oracle", every=3)
    assert [point["epoch"] for point in fit.curves["part"]] == [3, 4]


def test_work_without_a_loss_after_the_last_epoch_is_no_epoch(task: Task) -> None:
    class Decorated(Turning):
        def fit(self, train, progress) -> None:
            super().fit(train, progress)
            progress(5, 6, None), progress(6, 6, None)

    fit, (last, best) = fitted(task, "both", kind=Decorated)
    assert (last.epoch, best.epoch) == (4, 2)
    assert [point["epoch"] for point in fit.curves["part"]] == [1, 2, 3, 4]


def test_looking_does_not_change_the_fit(task: Task) -> None:
    blind, looking = fitted(task, "last")[0], fitted(task, "both")[0]
    assert blind.method.drawn == looking.method.drawn


def test_each_epochs_threshold_is_set_by_the_images_held_out(task: Task) -> None:
    # They are grey throughout, 50 of 255: their score is that, and its negative once the method has turned.
    held = replace(task, train=task.train[:1], calibration={"part": task.train[1:]})
    fit, (last, best) = fitted(held, "both", calibrate=0.5)
    assert best.thresholds == pytest.approx((50 / 255, 50 / 255))
    assert last.thresholds == pytest.approx((-50 / 255, -50 / 255))
    assert fit.evaluate(best).values["image_recall"] == 1.0
    assert fit.evaluate(best).values["image_fpr"] == 0.0
    assert fitted(task, "last")[1][0].thresholds is None


def test_without_defects_there_is_no_precision_and_the_record_says_why(task: Task) -> None:
    good = {"part": tuple(sample for sample in task.tests["part"] if not sample.is_anomalous)}
    fit, (last,) = fitted(replace(task, test_files=good, calibration={"part": task.train[1:]}), "last", calibrate=0.5)
    assert fit.evaluate(last).undefined["image_fpr"] == "no defective images"


def test_losses_are_kept_by_epoch(task: Task) -> None:
    assert fitted(task, "last")[0].losses == [1.0, 1 / 2, 1 / 3, 1 / 4]


def test_a_wrong_shape_and_a_nan_are_told_in_words() -> None:
    images = torch.zeros(2, 3, 4, 4)
    with pytest.raises(BenchError, match=r"scores \(2,\)"):
        check_prediction(Prediction(torch.zeros(2, 1), torch.zeros(2, 4, 4)), images)
    with pytest.raises(BenchError, match="finite"):
        check_prediction(Prediction(torch.full((2,), torch.nan), torch.zeros(2, 4, 4)), images)


def answers(known: list[bool]) -> Predictions:
    """Two good images and two defect ones; the second defect is missed by its map."""
    maps = np.zeros((4, 2, 2), np.float32)
    maps[2, 0, 0] = 1
    masks = np.zeros((4, 2, 2), bool)
    masks[2:, 0, 0] = True
    files, defects = ("a", "b", "c", "d"), ("good", "good", "hole", "hole")
    return Predictions(files, defects, np.array([0.0, 0.1, 3.0, 0.2]), maps, masks, np.array(known))


def test_a_defect_image_without_a_mask_counts_for_the_image_metrics_only() -> None:
    found = evaluate_category(answers([True, True, True, False]))
    assert found.values["image_auroc"] == 1.0
    assert found.values["pixel_auroc"] == 1.0
    assert evaluate_category(answers([True] * 4)).values["pixel_auroc"] < 1.0


def test_without_any_mask_the_pixel_metrics_are_missing_and_say_why() -> None:
    found = evaluate_category(answers([True, True, False, False]))
    assert set(found.values) == {"image_auroc", "image_ap", "image_f1max"}
    assert set(found.undefined) == {"pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_05", "aupro_30"}


def test_shown_cases_are_worst_median_best_and_the_most_suspicious_good_image() -> None:
    assert representative_images(answers([True] * 4)) == {"worst": 3, "median": 2, "best": 2, "good": 1}
