"""Fit one method on one task and evaluate it: `fit`, `predict_tests` and `evaluate`."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bench.config.options import ComputeOptions, EvaluationOptions
from bench.data.data_report import mask_report, mask_warnings
from bench.data.images import ComputedSequence, FileImages, OriginalResolution
from bench.data.masks import SampleMask
from bench.data.protocol import Task
from bench.data.value_range import clipped_fraction, clipping_warning, unscaled_warning
from bench.dataset import GOOD, Sample
from bench.errors import BenchError
from bench.evaluation import metrics
from bench.evaluation.curves import Bools, Floats
from bench.evaluation.metrics import Evaluation
from bench.evaluation.spro import Region, spro
from bench.evaluation.timing import Clock
from bench.execution.fit_checkpoint import FitCheckpoints
from bench.execution.fit_result import CategoryPrediction, FitResult
from bench.method import Method, Prediction
from bench.record import Predictions, Selection

V = TypeVar("V")

_log = logging.getLogger(__name__)

Phase = Literal["pretrain", "fit"]


class Fit:
    """One fit of one task.

    `fit` trains `method`, `predict_tests` predicts the test images of each category, `evaluate` computes metrics. A
    method that is already fitted, for example from a released checkpoint, needs no `fit`.
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
        self._batch = compute.batch_size
        self._batch_was_halved = False
        self._ground_truth: dict[str, Predictions] = {}
        self.mask_reports: dict[str, dict[str, Any]] = {}
        self.clipped_images: dict[str, dict[str, float]] = {}
        for category, images in self.tests.items():
            masks = images.masks()
            self._ground_truth[category] = ground_truth(images, masks)
            self.mask_reports[category] = mask_report(images.samples, masks)
            fractions = {sample.id: clipped_fraction(sample.image, images.preprocessing) for sample in images.samples}
            self.clipped_images[category] = {image: fraction for image, fraction in fractions.items() if fraction > 0}
            for warning in (
                clipping_warning(category, fractions, images.preprocessing),
                unscaled_warning(category, self.train.samples, images.samples, images.preprocessing),
            ):
                if warning:
                    _log.warning("%s", warning)
            at_original = evaluation.resolution == "original"
            for warning in mask_warnings(category, self.mask_reports[category], at_original=at_original):
                _log.warning("%s", warning)
        self._originals = {
            category: OriginalResolution(images.samples, images.preprocessing)
            if evaluation.resolution == "original"
            else None
            for category, images in self.tests.items()
        }

    def fit(
        self, progress: Callable[[Phase, int, int, float | None], None], checkpoints: FitCheckpoints | None = None
    ) -> FitResult:
        """Pretrain if the method does so, then fit it; with the selection "oracle", evaluate epochs on the test set.

        Args:
            progress: called as `progress(phase, done, total, loss)`.
            checkpoints: writes the state of the fit and restores it after an interruption; None: no checkpoints.
        """
        result = FitResult(metrics_by_epoch={category: [] for category in self.tests})
        clock = Clock(self.method.setup.device)
        iterative, phase = self.method.iterative, "pretrain" if self.others else "fit"

        def after_epoch(done: int, total: int, loss: float | None) -> None:
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
                        self._evaluate_epoch(result)

        if checkpoints:
            saved = checkpoints.load()
            if saved is not None:
                with checkpoints.removed_on_error():
                    result.load_state(saved, self._ground_truth)
                clock.seconds = dict(result.seconds)
            checkpoints.fit_state = lambda: result.state(clock.so_far())
            checkpoints.excluded = lambda: clock.excluded(phase)
            self.method.epoch_loop = checkpoints.epochs
        try:
            if self.others:
                with clock("pretrain"):
                    self.method.pretrain(self.others, lambda done, total, loss: progress("pretrain", done, total, loss))
            phase = "fit"
            with clock("fit"):
                self.method.fit(self.train, after_epoch)
        finally:
            self.method.epoch_loop = None
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
            threshold = None  # it was set on these images, so their rate is not meaningful
        evaluation = evaluate_category(prediction.predictions, threshold=threshold, originals=originals)
        samples = self.tests[prediction.category].samples
        if any(sample.saturations for sample in samples):
            _add_loco_metrics(evaluation, prediction.predictions, originals)
        return evaluation

    def _evaluate_epoch(self, result: FitResult) -> None:
        """Apply the authors' rule: the best sum of image and pixel AUROC on the test set, then of both APs."""
        predicted = [self._predict_category(category, "oracle", result.epoch) for category in self.tests]
        points = [self.evaluate(prediction).values for prediction in predicted]
        for prediction, point in zip(predicted, points, strict=True):
            result.metrics_by_epoch[prediction.category].append({"epoch": float(result.epoch), **point})
        score_sums = (_mean_sum(points, "auroc"), _mean_sum(points, "ap"))
        if score_sums > result.best:
            result.oracle, result.best = [self._calibrate(prediction) for prediction in predicted], score_sums

    def _predict_category(self, category: str, selection: Selection, epoch: int) -> CategoryPrediction:
        clock = Clock(self.method.setup.device)
        scores, maps = zip(*self._predict(self.tests[category], clock), strict=True)
        predictions = replace(
            self._ground_truth[category], scores=np.concatenate(scores), maps=np.concatenate(maps)
        ).rounded(self.evaluation.map_precision)
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
    """Raise BenchError unless scores are (b,), maps are (b, h, w), and all values are finite floating-point numbers."""
    count, _, height, width = images.shape
    if prediction.scores.shape != (count,) or prediction.maps.shape != (count, height, width):
        raise BenchError(
            f"For {count} images of {height} x {width}, predict must return scores ({count},) and maps ({count}, "
            f"{height}, {width}); got {tuple(prediction.scores.shape)} and {tuple(prediction.maps.shape)}. Fix it."
        )
    if not (prediction.scores.is_floating_point() and prediction.maps.is_floating_point()):
        types = f"{prediction.scores.dtype} and {prediction.maps.dtype}"
        raise BenchError(f"Scores and maps must be floating-point numbers, got {types}. End predict with .float().")
    if not (torch.isfinite(prediction.scores).all() and torch.isfinite(prediction.maps).all()):
        raise BenchError("Scores and maps must be finite; predict returned NaN or infinity. Fix the method's predict.")


def evaluate_category(
    predictions: Predictions, *, threshold: float | None = None, originals: OriginalResolution | None = None
) -> Evaluation:
    """Return the metrics of one category. Defective images without a mask count for the image metrics only.

    Args:
        predictions: predictions for the category's test images.
        threshold: threshold of the scores, for precision, recall, F1 and false positive rate; None leaves these out.
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
        _select_level(pixel.values, image=False) | _select_level(image.values, image=True),
        _select_level(pixel.undefined, image=False) | _select_level(image.undefined, image=True),
        pixel.error_bound,
    )


def _add_loco_metrics(evaluation: Evaluation, predictions: Predictions, originals: OriginalResolution | None) -> None:
    """Add the metrics of MVTec LOCO AD: image AUROC of each defect type against the good images, and sPRO.

    Saturation areas are in pixels of the original image, so sPRO needs that resolution.
    """
    is_good = ~predictions.is_anomalous
    for defect_type in sorted(set(predictions.defects) - {GOOD}):
        is_defect_type = np.array([defect == defect_type for defect in predictions.defects])
        name = f"image_auroc_{defect_type.removesuffix('_anomalies')}"
        if is_good.any():
            is_evaluated = is_good | is_defect_type
            evaluation.values[name] = metrics.auroc(predictions.scores[is_evaluated], is_defect_type[is_evaluated])
        else:
            evaluation.undefined[name] = "no good images"
    maps = predictions.maps
    if originals is None or maps is None:
        evaluation.undefined["spro_05"] = "no maps" if maps is None else "needs --resolution original"
        return
    labeled = np.flatnonzero(originals.has_pixel_labels)
    regions = ComputedSequence(labeled, lambda index: [Region(*region) for region in originals.regions(index)])
    values = spro(ComputedSequence(labeled, lambda index: originals.map(index, maps[index])), regions)
    evaluation.values.update(values)
    if not values:
        evaluation.undefined["spro_05"] = "no defect pixels"


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
    resized = None if maps is None else ComputedSequence(labeled, lambda index: originals.map(index, maps[index]))
    return resized, ComputedSequence(labeled, originals.mask)


def _mean_sum(points: list[dict[str, float]], name: str) -> float:
    return float(np.mean([point.get(f"image_{name}", 0.0) + point.get(f"pixel_{name}", 0.0) for point in points]))


def _select_level(values: dict[str, V], *, image: bool) -> dict[str, V]:
    return {name: value for name, value in values.items() if name.startswith("image_") == image}


@contextmanager
def _preserved_rng() -> Iterator[None]:
    """Restore all random generators afterwards, so that an evaluation does not change the fit."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy_state)
