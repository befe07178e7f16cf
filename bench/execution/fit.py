"""Runs one task: fits the method, predicts each category, follows the selection rule. It is handed objects only."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data.images import FileImages, OriginalResolution
from bench.data.protocol import Task
from bench.dataset import Sample
from bench.errors import BenchError
from bench.evaluation import metrics
from bench.evaluation.curves import Bools, Floats
from bench.evaluation.metrics import Evaluation
from bench.evaluation.timing import Clock
from bench.method import Method, Prediction, Progress
from bench.record import Maps, Predictions, Resolution, Selection

V = TypeVar("V")

_log = logging.getLogger(__name__)

SelectionRule = Literal["last", "oracle", "both"]
"""Which epoch is reported: the last, the best on the test set (marked wherever it is shown), or each in a record."""

VIEWS_RULE = "the defect images of highest, median and lowest score, and the good image of highest score"


@dataclass(frozen=True, slots=True)
class CategoryPrediction:
    """What a fitted method said of one category.

    Attributes:
        category: whose test images.
        selection: the rule that chose the epoch.
        epoch: reported; 0 where the method has none.
        seconds: that predicting all the category's test images took.
        answers: raw, beside the truth.
        thresholds: of an image's score and of a pixel, set by images held out of training; None where none were.
    """

    category: str
    selection: Selection
    epoch: int
    seconds: float
    predictions: Predictions
    thresholds: tuple[float, float] | None = None


class Fit:
    """One fit of one task.

    Once `answers` has been walked, `method` is fitted, `losses` holds the mean loss of each epoch, `curves` the metrics
    of each epoch at which the oracle looked, by category, and `seconds` the time of the fit alone.
    """

    def __init__(
        self,
        task: Task,
        make: Callable[[], Method],
        load: Callable[[Sequence[Sample]], FileImages],
        device: torch.device,
        *,
        rule: SelectionRule,
        every: int,
        batch: int,
        maps: Maps,
        calibrate: float = 0.0,
        resolution: Resolution = "input",
    ) -> None:
        self.train = load(task.train)
        self.calibration = {category: load(samples) for category, samples in task.calibration.items()}
        self.tests = {category: load(samples) for category, samples in task.tests.items()}
        self.method = make()
        self.losses: list[float] = []
        self.curves: dict[str, list[dict[str, float]]] = {category: [] for category in task.tests}
        self._truth = {category: ground_truth(images) for category, images in self.tests.items()}
        self._originals = {
            category: OriginalResolution(images.samples, images.preprocessing) if resolution == "original" else None
            for category, images in self.tests.items()
        }
        self.device = device
        self.seconds = 0.0
        self._rule, self._every, self._batch, self._maps, self._calibrate = rule, every, batch, maps, calibrate
        self._epoch = 0
        self._halved = False
        self._best: list[CategoryPrediction] = []
        self._best_merit = (-1.0, -1.0)

    def answers(self, progress: Progress) -> Iterator[CategoryPrediction]:
        """Fits, then yields an answer a category, and the oracle's beside it where it was asked for."""
        iterative = self.method.iterative
        clock = Clock(self.device)

        def watched(done: int, total: int, loss: float | None) -> None:
            with clock.excluded("fit"):
                # Work without a loss after epochs with one, as on a decoder for the eye, changes no prediction.
                trained = iterative and (loss is not None or not self.losses)
                self._epoch = done if trained else self._epoch
                if loss is not None:
                    if not math.isfinite(loss):
                        raise BenchError(f"A loss is finite; it was {loss} after {done} of {total}. Try a lower lr.")
                    self.losses.append(loss)
                progress(done, total, loss)
                if trained and self._rule != "last" and (done % self._every == 0 or done == total):
                    with _forked_randomness():
                        self._look()

        with clock("fit"):
            self.method.fit(self.train, watched)
        self.seconds = clock.seconds["fit"]
        if iterative and not self._epoch:
            raise BenchError("An iterative method calls progress after each epoch; this one never did. Mend its fit.")
        if self._rule != "oracle" or not iterative:  # without epochs there is nothing to choose from
            yield from map(self._calibrated, self._ask("last"))
        yield from self._best

    def asked(self) -> Iterator[CategoryPrediction]:
        """An answer a category, of a method that is fitted already."""
        yield from map(self._calibrated, self._ask("last"))

    def evaluate(self, answer: CategoryPrediction) -> Evaluation:
        """The metrics of an answer of this fit, at the resolution and with the threshold that were asked for."""
        threshold = answer.thresholds[0] if answer.thresholds else None
        return evaluate_category(answer.predictions, threshold=threshold, originals=self._originals[answer.category])

    def _look(self) -> None:
        """Repeats the authors' rule: the best sum of image and pixel AUROC on the test set, ties by the sum of APs."""
        found = list(self._ask("oracle"))
        points = [self.evaluate(answer).values for answer in found]
        for answer, point in zip(found, points, strict=True):
            self.curves[answer.category].append({"epoch": float(self._epoch), **point})
        merit = (_mean_sum(points, "auroc"), _mean_sum(points, "ap"))
        if merit > self._best_merit:
            self._best, self._best_merit = list(map(self._calibrated, found)), merit

    def _ask(self, selection: Selection) -> Iterator[CategoryPrediction]:
        for category, images in self.tests.items():
            clock = Clock(self.device)
            scores, maps = zip(*self._predicted(images, clock), strict=True)
            said = self._truth[category](np.concatenate(scores), np.concatenate(maps)).rounded(self._maps)
            yield CategoryPrediction(category, selection, self._epoch, clock.seconds["predict"], said)

    def _calibrated(self, answer: CategoryPrediction) -> CategoryPrediction:
        """With the thresholds that the images held out of training set: of their scores, and of their highest pixels.

        Neither is rounded, nor are the scores that it is held against.
        """
        if not self.calibration:
            return answer
        found = self._predicted(self.calibration[answer.category], Clock(self.device))
        scores, highest = zip(*((scores, maps.max(axis=(1, 2))) for scores, maps in found), strict=True)
        image, pixel = (metrics.threshold_at(np.concatenate(of), self._calibrate) for of in (scores, highest))
        return replace(answer, thresholds=(image, pixel))

    def _predicted(self, images: FileImages, clock: Clock) -> list[tuple[Floats, NDArray[np.float32]]]:
        """The answers to all images by batch; where the device runs out of memory, once more with half the batch."""
        try:
            return list(self._batches(images, clock))
        except torch.OutOfMemoryError:
            if self._halved or self._batch == 1:
                raise
        self._halved, self._batch = True, self._batch // 2
        _log.warning("The device ran out of memory in predict; from here on it gets %d at once.", self._batch)
        clock.seconds.clear()
        torch.cuda.empty_cache()
        return list(self._batches(images, clock))

    def _batches(self, images: FileImages, clock: Clock) -> Iterator[tuple[Floats, NDArray[np.float32]]]:
        """(b,) scores and (b, h, w) maps of each batch, checked."""
        for batch in images.batches(self._batch):
            given = batch.to(self.device)
            with clock("predict"), torch.no_grad():
                found = self.method.predict(given)
            check_prediction(found, given)
            yield found.scores.double().cpu().numpy(), found.maps.float().cpu().numpy()


def _mean_sum(points: list[dict[str, float]], name: str) -> float:
    return float(np.mean([point.get(f"image_{name}", 0.0) + point.get(f"pixel_{name}", 0.0) for point in points]))


def check_prediction(found: Prediction, images: torch.Tensor) -> None:
    """Raises BenchError where a prediction breaks the contract: (b,) scores, (b, h, w) maps, all finite."""
    count, _, height, width = images.shape
    if found.scores.shape != (count,) or found.maps.shape != (count, height, width):
        raise BenchError(
            f"A method answers {count} images of {height} x {width} with scores ({count},) and maps "
            f"({count}, {height}, {width}); this one gave {tuple(found.scores.shape)} and {tuple(found.maps.shape)}. "
            f"Mend its predict."
        )
    if not (torch.isfinite(found.scores).all() and torch.isfinite(found.maps).all()):
        raise BenchError("A method's scores and maps are finite; this one answered NaN or infinity. Mend its predict.")


def evaluate_category(
    answers: Predictions, *, threshold: float | None = None, originals: OriginalResolution | None = None
) -> Evaluation:
    """The metrics of one category. Defect images without a mask count for the image metrics only.

    threshold: of the scores, at which precision and the like are told. originals: judge the pixels of the images' own
    files, one image in memory at a time; None: those of the input.
    """
    image = metrics.evaluate(answers.scores, answers.is_anomalous, None, None)
    if threshold is not None and "image_auroc" in image.values:
        image.values.update(metrics.at_threshold(answers.scores, answers.is_anomalous, threshold))
    elif threshold is not None:
        image.undefined.update(dict.fromkeys(metrics.THRESHOLD_NAMES, image.undefined["image_auroc"]))
    known = np.flatnonzero(answers.has_pixel_labels)
    if not known.size:
        return image
    maps, masks = _pixels(answers, known, originals)
    pixel = metrics.evaluate(answers.scores[known], answers.is_anomalous[known], maps, masks)
    return Evaluation(
        _named(pixel.values, image=False) | _named(image.values, image=True),
        _named(pixel.undefined, image=False) | _named(image.undefined, image=True),
        pixel.error_bound,
    )


class _Asked(Sequence[V]):
    """As many things as there are `numbers`, each made when it is asked for and not kept."""

    def __init__(self, numbers: NDArray[np.intp], make: Callable[[int], V]) -> None:
        self._numbers, self._make = numbers, make

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> V:  # type: ignore[override]  # nobody cuts it
        return self._make(int(self._numbers[index]))


def _pixels(
    answers: Predictions, known: NDArray[np.intp], originals: OriginalResolution | None
) -> tuple[Sequence[NDArray[np.float32]] | None, Sequence[Bools]]:
    """The maps, where there are any, and the masks of the images whose pixel truth is known."""
    found, masks = answers.maps, answers.masks
    if originals is None:
        return (None if found is None else list(found[known])), list(masks[known])
    at_original = _Asked(known, originals.mask)
    return (None if found is None else _Asked(known, lambda i: originals.map(i, found[i]))), at_original


def representative_images(answers: Predictions) -> dict[str, int]:
    """Which images reports show, by VIEWS_RULE: name -> index."""
    order = np.argsort(answers.scores, kind="stable").tolist()
    defect = [i for i in order if answers.is_anomalous[i]]
    good = [i for i in order if not answers.is_anomalous[i]]
    found = {"worst": defect[0], "median": defect[len(defect) // 2], "best": defect[-1]} if defect else {}
    return found | ({"good": good[-1]} if good else {})


def _named(found: dict[str, V], *, image: bool) -> dict[str, V]:
    return {name: value for name, value in found.items() if name.startswith("image_") == image}


def ground_truth(images: FileImages) -> Callable[..., Predictions]:
    """What is known of the images before any method is asked: the function from (scores, maps) to their Answers."""
    samples = images.samples
    files = tuple(f"{sample.defect}/{sample.image.name}" for sample in samples)
    defects = tuple(sample.defect for sample in samples)
    known = np.array([bool(sample.masks) or not sample.is_anomalous for sample in samples])
    masks, soft = np.stack(images.masks()), np.stack(images.soft_masks())
    return lambda scores, maps: Predictions(files, defects, scores, maps, masks, known, soft)


@contextmanager
def _forked_randomness() -> Iterator[None]:
    """Leaves every generator as it found it, so that looking does not change the fit."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy_state)
