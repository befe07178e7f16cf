"""The results of a fit, and their form in a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bench.record import Predictions, Selection


@dataclass(frozen=True, slots=True)
class CategoryPrediction:
    """The predictions of a fitted method for the test images of one category.

    Attributes:
        category: category of the test images.
        selection: the rule that chose the epoch.
        epoch: the epoch reported; 0 if the method has none.
        seconds: duration of the prediction of all test images of the category.
        predictions: predictions with the ground truth.
        thresholds: thresholds of an image's score and of a pixel, set on held-out good images; None without
            calibration.
    """

    category: str
    selection: Selection
    epoch: int
    seconds: float
    predictions: Predictions
    thresholds: tuple[float, float] | None = None


@dataclass(slots=True)
class FitResult:
    """The result of `Fit.fit`.

    Attributes:
        losses: mean loss of each epoch.
        seconds: duration by phase: "pretrain" if the method pretrains, "fit"; without the oracle's evaluations. If the
            fit continued from a checkpoint, they include the time before that checkpoint.
        epoch: the last epoch; 0 if the method has none.
        resumed_after: seconds of pretraining and fit before each time that the fit continued from a checkpoint.
        best: sums of the metrics of the best epoch on the test set, which is the higher, the better.
        oracle: the predictions of the best epoch on the test set, one per category; empty if it was not evaluated.
        metrics_by_epoch: for each category, the metrics of each epoch at which the test set was evaluated.
    """

    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    epoch: int = 0
    resumed_after: list[float] = field(default_factory=list)
    best: tuple[float, float] = (-1.0, -1.0)
    oracle: list[CategoryPrediction] = field(default_factory=list)
    metrics_by_epoch: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def state(self, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint; `seconds` is the duration by phase so far."""
        return {
            "losses": self.losses,
            "seconds": dict(seconds),
            "epoch": self.epoch,
            "resumed_after": self.resumed_after,
            "best": self.best,
            "oracle": [_prediction_state(prediction) for prediction in self.oracle],
            "metrics_by_epoch": {
                category: [{name: float(value) for name, value in point.items()} for point in points]
                for category, points in self.metrics_by_epoch.items()
            },
        }

    def load_state(self, state: Mapping[str, Any], ground_truth: Mapping[str, Predictions]) -> None:
        """Set what `state` returned, and note the resumption; `ground_truth` is that of each category."""
        self.losses, self.seconds, self.epoch = list(state["losses"]), dict(state["seconds"]), state["epoch"]
        self.resumed_after = [*state["resumed_after"], sum(self.seconds.values())]
        self.best, self.metrics_by_epoch = state["best"], dict(state["metrics_by_epoch"])
        self.oracle = [_prediction(saved, ground_truth[saved["category"]]) for saved in state["oracle"]]


def _prediction_state(prediction: CategoryPrediction) -> dict[str, Any]:
    predictions = prediction.predictions
    return {
        "category": prediction.category,
        "epoch": prediction.epoch,
        "seconds": prediction.seconds,
        "scores": torch.from_numpy(predictions.scores),
        "maps": None if predictions.maps is None else torch.from_numpy(predictions.maps),
        "thresholds": None if prediction.thresholds is None else [float(value) for value in prediction.thresholds],
    }


def _prediction(state: Mapping[str, Any], ground_truth: Predictions) -> CategoryPrediction:
    maps, thresholds = state["maps"], state["thresholds"]
    return CategoryPrediction(
        category=state["category"],
        selection="oracle",
        epoch=state["epoch"],
        seconds=state["seconds"],
        predictions=replace(ground_truth, scores=state["scores"].numpy(), maps=None if maps is None else maps.numpy()),
        thresholds=None if thresholds is None else (thresholds[0], thresholds[1]),
    )
