"""Optimization steps of a training loop: fused optimizer, loss scaling for float16, mean loss of an epoch."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.errors import BenchError
from bench.method import Setup

FUSED_DEVICES = ("cpu", "cuda")
"""Device types on which torch updates all parameters in one fused kernel."""


class TrainingStep:
    """An optimizer, its gradient scaler and the sum of the losses since the last call of `epoch_loss`.

    >>> training = TrainingStep(setup, torch.optim.Adam, network.parameters(), lr=1e-3)
    >>> for epoch in self.epochs(epochs, network, training):
    ...     for images in train.batches(batch):
    ...         training.minimize(loss_of(network, images), len(images))
    ...     progress(epoch, epochs, training.epoch_loss())

    Attributes:
        optimizer: the optimizer, for learning rate schedules: `training.optimizer.param_groups`, or a torch scheduler.
        terms: mean of each term of the loss per epoch: {"mse": [0.9, 0.4]}; empty if `minimize` gets no terms.
    """

    def __init__(
        self,
        setup: Setup,
        optimizer_class: Callable[..., Optimizer],
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        max_grad_norm: float = 0.0,
        **options: Any,
    ) -> None:
        """Create the optimizer.

        Args:
            setup: setup with device and precision.
            optimizer_class: class of the optimizer, for example torch.optim.AdamW.
            parameters: parameters to train, or parameter groups; parameters that require no gradient are left out.
            max_grad_norm: norm over all parameters to which gradients are clipped; 0 does not clip.
            options: arguments of the optimizer, for example lr and weight_decay.
        """
        if setup.device.type in FUSED_DEVICES and "fused" in inspect.signature(optimizer_class).parameters:
            options["fused"] = True
        self.optimizer = optimizer_class([entry for entry in parameters if _is_trainable(entry)], **options)
        self._scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision == "float16")
        self._max_grad_norm = max_grad_norm
        self.terms: dict[str, list[float]] = {}
        self._totals: dict[str, Tensor] = {"": torch.zeros((), device=setup.device)}  # "" is the loss itself
        self._count = 0
        self._epoch = 0

    def minimize(self, loss: Tensor, count: int, terms: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Take one optimization step on a scalar loss.

        Args:
            loss: mean over the batch.
            count: images in the batch, the weight of this loss in `epoch_loss`.
            terms: scalar terms of the loss by name, only for the attribute `terms`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if self._max_grad_norm:
            self._scaler.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        for name, value in (("", loss), *terms.items()):
            self._totals[name] = self._totals.get(name, 0) + value.detach() * count
        self._count += count

    def epoch_loss(self) -> float:
        """Return the mean loss per image since the last call; this is the only wait for the device in an epoch.

        Raises:
            BenchError: if the loss is not finite.
        """
        self._epoch += 1
        loss, *terms = torch.stack(list(self._totals.values())).double().div(self._count).tolist()
        check_finite(loss, self._epoch)
        for name, term in zip([*self._totals][1:], terms, strict=True):
            self.terms.setdefault(name, []).append(term)
        self._totals, self._count = {"": torch.zeros_like(self._totals[""])}, 0
        return float(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a fit needs to continue after an interruption, for `Method.epochs`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "terms": self.terms,
            "totals": self._totals,
            "count": self._count,
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Set what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.terms, self._totals, self._count = dict(state["terms"]), dict(state["totals"]), state["count"]
        self._epoch = state["epoch"]


def check_finite(loss: float, epoch: int) -> None:
    """Raise BenchError if the loss of an epoch is not finite."""
    if not math.isfinite(loss):
        raise BenchError(f"The loss must be finite, got {loss} in epoch {epoch}. Pass a lower --set lr=...")


def _is_trainable(entry: nn.Parameter | dict[str, Any]) -> bool:
    return isinstance(entry, dict) or entry.requires_grad
