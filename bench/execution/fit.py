"""Fit one method on one task and evaluate it: `fit`, `predict_tests` and `evaluate`."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bench.config.options import ComputeOptions, EvaluationOptions
from bench.data.data_report import mask_report, mask_warnings
from bench.data.images import FileImages, OriginalResolution
from bench.data.masks import SampleMask
from bench.data.protocol import Task
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation import metrics
from bench.evaluation.curves import Bools, Floats
from bench.evaluation.metrics import Evaluation
from bench.evaluation.timing import Clock
from bench.method import Method, Prediction
from bench.record import Predictions, Selection

V = TypeVar("V")

_log = logging.getLogger(__name__)

Phase = Literal["pretrain", "fit"]


@dataclass(frozen=True, slots=True)
class CategoryPrediction:
    """The predictions of a fitted method for the test images of one category.

    Attributes:
        category: whose test images.
        selection: the rule that chose the epoch.
        epoch: the epoch reported; 0 if the method has none.
        seconds: time that predicting all test images of the category took.
        predictions: with the ground truth.
        thresholds: of an image's score and of a pixel, set on held-out good images; None without calibration.
    """

    category: str
    selection: Selection
    epoch: int
    seconds: float
    predictions: Predictions
    thresholds: tuple[float, float] | None = None


@dataclass(slots=True)
class FitResult:
    """What `Fit.fit` returns.

    Attributes:
        losses: mean loss of each epoch.
        seconds: by phase: "pretrain" if the method pretrains, "fit"; without the oracle's evaluations.
        epoch: the last epoch; 0 if the method has none.
        oracle: the predictions of the best epoch on the test set, one per category; empty if it was not evaluated.
        metrics_by_epoch: by category, the metrics of each epoch at which the test set was evaluated.
    """

    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    epoch: int = 0
    oracle: list[CategoryPrediction] = field(default_factory=list)
    metrics_by_epoch: dict[str, list[dict[str, float]]] = field(default_factory=dict)


class Fit:
    """One fit of one task.

    `fit` trains `method`, `predict_tests` predicts the test images of each category, `evaluate` computes metrics. A
    method that is already fitted, as from a released checkpoint, needs no `fit`.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        load: Callable[[Sequence[Sample]], FileImages],
        evaluation: EvaluationOptions,
        compute: ComputeOptions,
    ) -> None:
        self.method = method
        self.train = load(task.train)
        self.others = {category: load(samples) for category, samples in task.others.items()}
        self.calibration = {category: load(samples) for category, samples in task.calibration.items()}
        self.tests = {category: load(samples) for category, samples in task.tests.items()}
        self.evaluation = evaluation
        self._batch = compute.batch
        self._batch_was_halved = False
        self._ground_truth: dict[str, Predictions] = {}
        self.mask_reports: dict[str, dict[str, Any]] = {}
        for category, images in self.tests.items():
            masks = images.masks()
            self._ground_truth[category] = ground_truth(images, masks)
            self.mask_reports[category] = mask_report(images.samples, masks)
            at_original = evaluation.resolution == "original"
            for warning in mask_warnings(category, self.mask_reports[category], at_original=at_original):
                _log.warning("%s", warning)
        self._originals = {
            category: OriginalResolution(images.samples, images.preprocessing)
            if evaluation.resolution == "original"
            else None
            for category, images in self.tests.items()
        }

    def fit(self, progress: Callable[[Phase, int, int, float | None], None]) -> FitResult:
        """Pretrain if the method does, then fit it; evaluate epochs on the test set if an oracle is reported."""
        result = FitResult(metrics_by_epoch={category: [] for category in self.tests})
        clock = Clock(self.method.setup.device)
        if self.others:
            with clock("pretrain"):
                self.method.pretrain(self.others, lambda done, total, loss: progress("pretrain", done, total, loss))
        iterative, best = self.method.iterative, (-1.0, -1.0)

        def after_epoch(done: int, total: int, loss: float | None) -> None:
            nonlocal best
            with clock.excluded("fit"):
                # Progress without a loss, after epochs with one, reports work that changes no prediction.
                is_epoch = iterative and (loss is not None or not result.losses)
                result.epoch = done if is_epoch else result.epoch
                if loss is not None:
                    if not math.isfinite(loss):
                        raise BenchError(f"A loss must be finite, got {loss} after {done} of {total}. Lower lr.")
                    result.losses.append(loss)
                progress("fit", done, total, loss)
                every = self.evaluation.eval_every
                if is_epoch and self.evaluation.selection != "last" and (done % every == 0 or done == total):
                    with _preserved_rng():
                        best = self._evaluate_epoch(result, best)

        with clock("fit"):
            self.method.fit(self.train, after_epoch)
        result.seconds = dict(clock.seconds)
        if iterative and not result.epoch:
            raise BenchError(
                "An iterative method must call progress after each epoch; this one never did. Fix its fit."
            )
        return result

    def predict_tests(self, *, selection: Selection = "last", epoch: int = 0) -> list[CategoryPrediction]:
        """Return the predictions of the fitted method, one per category, with thresholds if calibrated."""
        predicted = [self._predict_category(category, selection, epoch) for category in self.tests]
        return [self._calibrate(prediction) for prediction in predicted]

    def evaluate(self, prediction: CategoryPrediction) -> Evaluation:
        """Return the metrics of a prediction of this fit, at the resolution and threshold of the options."""
        threshold = prediction.thresholds[0] if prediction.thresholds else None
        originals = self._originals[prediction.category]
        calibration = self.calibration.get(prediction.category)
        if calibration and calibration.samples == self.tests[prediction.category].samples:
            threshold = None  # it was set on these images, so their rate says nothing
        return evaluate_category(prediction.predictions, threshold=threshold, originals=originals)

    def _evaluate_epoch(self, result: FitResult, best: tuple[float, float]) -> tuple[float, float]:
        """Apply the authors' rule: the best sum of image and pixel AUROC on the test set, then of both APs."""
        predicted = [self._predict_category(category, "oracle", result.epoch) for category in self.tests]
        points = [self.evaluate(prediction).values for prediction in predicted]
        for prediction, point in zip(predicted, points, strict=True):
            result.metrics_by_epoch[prediction.category].append({"epoch": float(result.epoch), **point})
        merit = (_mean_sum(points, "auroc"), _mean_sum(points, "ap"))
        if merit > best:
            result.oracle, best = [self._calibrate(prediction) for prediction in predicted], merit
        return best

    def _predict_category(self, category: str, selection: Selection, epoch: int) -> CategoryPrediction:
        clock = Clock(self.method.setup.device)
        scores, maps = zip(*self._predict(self.tests[category], clock), strict=True)
        predictions = replace(
            self._ground_truth[category], scores=np.concatenate(scores), maps=np.concatenate(maps)
        ).rounded(self.evaluation.maps)
        return CategoryPrediction(category, selection, epoch, clock.seconds["predict"], predictions)

    def _calibrate(self, prediction: CategoryPrediction) -> CategoryPrediction:
        """Add the thresholds set on the held-out images: of their scores, and of their highest pixels.

        Neither these nor the scores that they are compared with are rounded.
        """
        if not self.calibration:
            return prediction
        predicted = self._predict(self.calibration[prediction.category], Clock(self.method.setup.device))
        scores, highest = zip(*((scores, maps.max(axis=(1, 2))) for scores, maps in predicted), strict=True)
        rate = self.evaluation.calibrate
        image, pixel = (metrics.threshold_at(np.concatenate(values), rate) for values in (scores, highest))
        return replace(prediction, thresholds=(image, pixel))

    def _predict(self, images: FileImages, clock: Clock) -> list[tuple[Floats, NDArray[np.float32]]]:
        """Return scores and maps by batch; if the device runs out of memory, try once with half the batch."""
        try:
            return list(self._predict_batches(images, clock))
        except torch.OutOfMemoryError:
            if self._batch_was_halved or self._batch == 1:
                raise
        self._batch_was_halved, self._batch = True, self._batch // 2
        _log.warning("The device ran out of memory in predict; the batch size is now %d.", self._batch)
        clock.seconds.clear()
        torch.cuda.empty_cache()
        return list(self._predict_batches(images, clock))

    def _predict_batches(self, images: FileImages, clock: Clock) -> Iterator[tuple[Floats, NDArray[np.float32]]]:
        """Yield the checked (b,) scores and (b, h, w) maps of each batch."""
        for batch in images.batches(self._batch):
            on_device = batch.to(self.method.setup.device)
            with clock("predict"), torch.no_grad():
                prediction = self.method.predict(on_device)
            check_prediction(prediction, on_device)
            yield prediction.scores.double().cpu().numpy(), prediction.maps.float().cpu().numpy()


def check_prediction(prediction: Prediction, images: torch.Tensor) -> None:
    """Raise BenchError unless scores are (b,), maps are (b, h, w), and all values are finite."""
    count, _, height, width = images.shape
    if prediction.scores.shape != (count,) or prediction.maps.shape != (count, height, width):
        raise BenchError(
            f"For {count} images of {height} x {width}, predict must return scores ({count},) and maps ({count}, "
            f"{height}, {width}); got {tuple(prediction.scores.shape)} and {tuple(prediction.maps.shape)}. Fix it."
        )
    if not (torch.isfinite(prediction.scores).all() and torch.isfinite(prediction.maps).all()):
        raise BenchError("Scores and maps must be finite; predict returned NaN or infinity. Fix the method's predict.")


def evaluate_category(
    predictions: Predictions, *, threshold: float | None = None, originals: OriginalResolution | None = None
) -> Evaluation:
    """Return the metrics of one category. Defective images without a mask count for the image metrics only.

    Args:
        predictions: of the category's test images.
        threshold: of the scores, for precision, recall, F1 and false positive rate; None leaves these out.
        originals: evaluate pixels at the size of each image file, one image in memory at a time; None: of the input.
    """
    image = metrics.evaluate(predictions.scores, predictions.is_anomalous, None, None)
    if threshold is not None and "image_auroc" in image.values:
        image.values.update(metrics.at_threshold(predictions.scores, predictions.is_anomalous, threshold))
    elif threshold is not None:
        image.undefined.update(dict.fromkeys(metrics.THRESHOLD_NAMES, image.undefined["image_auroc"]))
        if not predictions.is_anomalous.any():
            del image.undefined["image_fpr"]
            image.values["image_fpr"] = float((predictions.scores > threshold).mean())
    labeled = np.flatnonzero(predictions.has_pixel_labels if originals is None else originals.has_pixel_labels)
    if not labeled.size:
        return image
    maps, masks = _pixels(predictions, labeled, originals)
    pixel = metrics.evaluate(predictions.scores[labeled], predictions.is_anomalous[labeled], maps, masks)
    return Evaluation(
        _of_level(pixel.values, image=False) | _of_level(image.values, image=True),
        _of_level(pixel.undefined, image=False) | _of_level(image.undefined, image=True),
        pixel.error_bound,
    )


def representative_images(predictions: Predictions) -> dict[str, int]:
    """Return the indices of the images that reports show, by name.

    "worst", "median" and "best" are the defective images of lowest, median and highest score, "good" is the good image
    of highest score.
    """
    order = np.argsort(predictions.scores, kind="stable").tolist()
    defect = [i for i in order if predictions.is_anomalous[i]]
    good = [i for i in order if not predictions.is_anomalous[i]]
    indices = {"worst": defect[0], "median": defect[len(defect) // 2], "best": defect[-1]} if defect else {}
    return indices | ({"good": good[-1]} if good else {})


def ground_truth(images: FileImages, masks: Sequence[SampleMask]) -> Predictions:
    """Return the labels and masks of the images, with zero scores and no maps.

    The pixels of a defective image whose mask marks nothing at the size of the input are unknown, and never good.
    """
    samples = images.samples
    return Predictions(
        files=tuple(sample.id for sample in samples),
        defects=tuple(sample.defect for sample in samples),
        scores=np.zeros(len(samples)),
        maps=None,
        masks=np.stack([mask.mask for mask in masks]),
        has_pixel_labels=np.array(
            [mask.mask.any() or not sample.is_anomalous for sample, mask in zip(samples, masks, strict=True)], np.bool_
        ),
        soft_masks=np.stack([mask.soft for mask in masks]),
    )


def _pixels(
    predictions: Predictions, labeled: NDArray[np.intp], originals: OriginalResolution | None
) -> tuple[Sequence[NDArray[np.float32]] | None, Sequence[Bools]]:
    """Return the maps, if there are any, and the masks of the images whose pixels are labeled."""
    maps, masks = predictions.maps, predictions.masks
    if originals is None:
        return (None if maps is None else list(maps[labeled])), list(masks[labeled])
    resized = None if maps is None else _OnDemand(labeled, lambda index: originals.map(index, maps[index]))
    return resized, _OnDemand(labeled, originals.mask)


class _OnDemand(Sequence[V]):
    """The values of a function at some indices, computed at each access: large images are in memory one at a time."""

    def __init__(self, indices: NDArray[np.intp], compute: Callable[[int], V]) -> None:
        self._indices, self._compute = indices, compute

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> V:  # type: ignore[override]  # slices are not needed
        return self._compute(int(self._indices[position]))


def _mean_sum(points: list[dict[str, float]], name: str) -> float:
    return float(np.mean([point.get(f"image_{name}", 0.0) + point.get(f"pixel_{name}", 0.0) for point in points]))


def _of_level(values: dict[str, V], *, image: bool) -> dict[str, V]:
    return {name: value for name, value in values.items() if name.startswith("image_") == image}


@contextmanager
def _preserved_rng() -> Iterator[None]:
    """Restore all random generators afterwards, so that an evaluation does not change the fit."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy_state)
