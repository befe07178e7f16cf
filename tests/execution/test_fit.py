"""Fit, predict and evaluate with a method whose predictions are known."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config.options import ComputeOptions, EvaluationOptions
from bench.data.images import FileImages
from bench.data.protocol import Task
from bench.dataset import Sample
from bench.errors import BenchError
from bench.execution.fit import (
    CategoryPrediction,
    Fit,
    FitResult,
    check_prediction,
    evaluate_category,
    representative_images,
)
from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.record import Predictions


@dataclass(frozen=True)
class Settings:
    good_epoch: int = 2  # after this epoch bright images get high scores, after all others low ones


class Brightness(Method):
    """Scores images by brightness, with the wrong sign except in one epoch; draws from every global generator."""

    iterative = True
    sign = 0.0

    def fit(self, train: Images, progress: Progress) -> None:
        self.random_numbers: list[float] = []
        for epoch in range(1, 5):
            self.sign = 1.0 if epoch == self.settings.good_epoch else -1.0
            self.random_numbers += [random.random(), float(np.random.rand()), float(torch.rand(1))]
            progress(epoch, 4, 1 / epoch)

    def predict(self, images: torch.Tensor) -> Prediction:
        torch.rand(3), np.random.rand(3), random.random()
        maps = images.mean(1) * self.sign
        return Prediction(maps.amax((1, 2)) if self.sign > 0 else maps.amin((1, 2)), maps)


class WithPretraining(Brightness):
    """Stores the pixel values of the images that it pretrains on, by category, and the number it is fitted on."""

    pretrains = True

    def pretrain(self, others: Mapping[str, Images], progress: Progress) -> None:
        self.pretrained = {
            category: [round(float(batch[0, 0, 0, 0]) * 255) for batch in images.batches(1)]
            for category, images in others.items()
        }
        progress(1, 1, 0.5)

    def fit(self, train: Images, progress: Progress) -> None:
        self.n_train = len(train)
        super().fit(train, progress)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Gray images of 8 x 8 pixels, 50 of 255; defective ones have a bright square."""

    def save(name: str, square: int) -> Path:
        pixels = np.full((8, 8), 50, np.uint8)
        pixels[2:4, 2:4] = square
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        return tmp_path / f"{name}.png"

    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    train = tuple(Sample(save(f"train{i}", 50), "part", "train") for i in range(2))
    good = tuple(Sample(save(f"good{i}", 50), "part", "test") for i in range(3))
    spot = tuple(Sample(save(f"spot{i}", 200), "part", "test", "spot", (tmp_path / "mask.png",)) for i in range(2))
    return Task("part", train, {"part": good + spot})


def make_fit(task: Task, *, method_class: type[Brightness] = Brightness, **evaluation: object) -> Fit:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    method = method_class(Settings(), Setup((8, 8), torch.device("cpu"), 0))
    load = lambda samples: FileImages(samples, Preprocessing(8, 8))
    return Fit(task, method, load, EvaluationOptions(**({"eval_every": 1} | evaluation)), ComputeOptions(batch_size=2))


def run(fit: Fit) -> tuple[FitResult, CategoryPrediction]:
    """Return the result of the fit and the prediction after its last epoch."""
    result = fit.fit(lambda *_: None)
    (last,) = fit.predict_tests(epoch=result.epoch)
    return result, last


def test_predict_tests_uses_the_last_epoch_and_last_evaluates_no_epoch(task: Task) -> None:
    fit = make_fit(task)
    result, last = run(fit)
    assert (last.selection, last.epoch) == ("last", 4)
    assert fit.evaluate(last).values["image_auroc"] == 0.0
    assert (result.oracle, result.metrics_by_epoch) == ([], {"part": []})


def test_the_oracle_is_the_best_epoch_on_the_test_set(task: Task) -> None:
    fit = make_fit(task, selection="both")
    result, last = run(fit)
    (best,) = result.oracle
    assert (last.selection, last.epoch, best.selection, best.epoch) == ("last", 4, "oracle", 2)
    assert fit.evaluate(best).values["image_auroc"] == 1.0
    assert [point["image_auroc"] for point in result.metrics_by_epoch["part"]] == [0.0, 1.0, 0.0, 0.0]
    assert [point["epoch"] for point in result.metrics_by_epoch["part"]] == [1, 2, 3, 4]


def test_the_oracle_is_evaluated_every_so_many_epochs_and_at_the_end(task: Task) -> None:
    result, _ = run(make_fit(task, selection="oracle", eval_every=3))
    assert [point["epoch"] for point in result.metrics_by_epoch["part"]] == [3, 4]


def test_progress_without_a_loss_after_the_last_epoch_is_not_an_epoch(task: Task) -> None:
    class WithLaterWork(Brightness):
        def fit(self, train: Images, progress: Progress) -> None:
            super().fit(train, progress)
            progress(5, 6, None), progress(6, 6, None)

    result, last = run(make_fit(task, selection="both", method_class=WithLaterWork))
    assert (last.epoch, result.oracle[0].epoch) == (4, 2)
    assert [point["epoch"] for point in result.metrics_by_epoch["part"]] == [1, 2, 3, 4]


def test_the_evaluation_of_epochs_does_not_change_the_fit(task: Task) -> None:
    without, with_oracle = make_fit(task), make_fit(task, selection="both")
    run(without)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    run(with_oracle)
    assert without.method.random_numbers == with_oracle.method.random_numbers


def test_losses_are_stored_per_epoch(task: Task) -> None:
    assert run(make_fit(task))[0].losses == [1.0, 1 / 2, 1 / 3, 1 / 4]


def test_a_loss_that_is_not_finite_and_a_fit_without_epochs_are_errors(task: Task) -> None:
    class Diverging(Brightness):
        def fit(self, train: Images, progress: Progress) -> None:
            progress(1, 4, float("nan"))

    class WithoutEpochs(Brightness):
        def fit(self, train: Images, progress: Progress) -> None:
            pass

    with pytest.raises(BenchError, match="A loss must be finite, got nan after 1 of 4"):
        run(make_fit(task, method_class=Diverging))
    with pytest.raises(BenchError, match="must call progress after each epoch"):
        run(make_fit(task, method_class=WithoutEpochs))


# ---- pretraining


def test_pretrain_gets_the_images_of_other_categories_before_fit_and_its_time_is_separate(task: Task) -> None:
    updates: list[tuple] = []
    others = {"nut": task.tests["part"][:3], "plate": task.train[:1]}
    fit = make_fit(replace(task, others=others), method_class=WithPretraining)
    result = fit.fit(lambda *update: updates.append(update))
    assert fit.method.pretrained == {"nut": [50, 50, 50], "plate": [50]}
    assert fit.method.n_train == 2
    assert [update[:3] for update in updates] == [("pretrain", 1, 1), *(("fit", epoch, 4) for epoch in range(1, 5))]
    assert result.seconds.keys() == {"pretrain", "fit"}
    assert result.losses == [1.0, 1 / 2, 1 / 3, 1 / 4]  # without the loss of pretrain


def test_pretrain_is_not_called_without_other_categories(task: Task) -> None:
    fit = make_fit(task, method_class=WithPretraining)
    result, _ = run(fit)
    assert not hasattr(fit.method, "pretrained")
    assert result.seconds.keys() == {"fit"}


# ---- thresholds


def test_each_epoch_has_thresholds_from_the_calibration_images(task: Task) -> None:
    # They are 50 of 255 everywhere: that is their score, or its negative while the sign is wrong.
    calibrated = replace(task, train=task.train[:1], calibration={"part": task.train[1:]})
    fit = make_fit(calibrated, selection="both", calibrate=0.5)
    result, last = run(fit)
    (best,) = result.oracle
    assert best.thresholds == pytest.approx((50 / 255, 50 / 255))
    assert last.thresholds == pytest.approx((-50 / 255, -50 / 255))
    assert fit.evaluate(best).values["image_recall"] == 1.0
    assert fit.evaluate(best).values["image_fpr"] == 0.0
    assert run(make_fit(task))[1].thresholds is None


def test_without_defective_images_the_reason_for_missing_metrics_is_stored(task: Task) -> None:
    good = tuple(sample for sample in task.tests["part"] if not sample.is_anomalous)
    fit = make_fit(replace(task, tests={"part": good}, calibration={"part": task.train[1:]}), calibrate=0.5)
    _, last = run(fit)
    evaluation = fit.evaluate(last)
    assert evaluation.undefined["image_recall"] == "no defective images"
    assert set(evaluation.values) == {"image_fpr"}


# ---- predictions


def test_a_wrong_shape_or_nan_is_a_clear_error() -> None:
    images = torch.zeros(2, 3, 4, 4)
    with pytest.raises(BenchError, match=r"must return scores \(2,\)"):
        check_prediction(Prediction(torch.zeros(2, 1), torch.zeros(2, 4, 4)), images)
    with pytest.raises(BenchError, match="must be finite"):
        check_prediction(Prediction(torch.full((2,), torch.nan), torch.zeros(2, 4, 4)), images)


@pytest.fixture
def four_images(make_predictions) -> Callable[[list[bool]], Predictions]:
    """Return a function of `has_pixel_labels`: two good images and two defective; the map misses the second defect."""
    maps = np.zeros((4, 2, 2), np.float32)
    maps[2, 0, 0] = 1
    masks = np.zeros((4, 2, 2), bool)
    masks[2:, 0, 0] = True
    fields = {"files": ("a", "b", "c", "d"), "defects": ("good", "good", "hole", "hole"), "maps": maps, "masks": masks}
    scores = np.array([0.0, 0.1, 3.0, 0.2])
    return lambda labels: make_predictions(scores=scores, has_pixel_labels=np.array(labels), **fields)


def test_a_defective_image_without_a_mask_counts_for_the_image_metrics_only(four_images) -> None:
    evaluation = evaluate_category(four_images([True, True, True, False]))
    assert evaluation.values["image_auroc"] == 1.0
    assert evaluation.values["pixel_auroc"] == 1.0
    assert evaluate_category(four_images([True] * 4)).values["pixel_auroc"] < 1.0


def test_without_any_mask_the_pixel_metrics_are_undefined_with_a_reason(four_images) -> None:
    evaluation = evaluate_category(four_images([True, True, False, False]))
    assert set(evaluation.values) == {"image_auroc", "image_ap", "image_f1max"}
    assert set(evaluation.undefined) == {"pixel_auroc", "pixel_ap", "pixel_f1max", "aupro_05", "aupro_30"}
    assert all(evaluation.undefined.values())


def test_representative_images_are_the_worst_median_and_best_defect_and_the_good_image_of_highest_score(
    four_images,
) -> None:
    assert representative_images(four_images([True] * 4)) == {"worst": 3, "median": 2, "best": 2, "good": 1}
