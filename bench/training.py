"""Optimization steps of a training loop: fused optimizer, loss scaling for float16, mean loss of an epoch."""

import inspect
import math
from collections.abc import Callable, Iterable
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
    >>> for epoch in range(1, epochs + 1):
    ...     for images in train.batches(batch):
    ...         training.minimize(loss_of(network, images), len(images))
    ...     progress(epoch, epochs, training.epoch_loss())

    Attributes:
        optimizer: for learning rate schedules: `training.optimizer.param_groups`, or a torch scheduler over it.
    """

    def __init__(
        self,
        setup: Setup,
        kind: Callable[..., Optimizer],
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        max_grad_norm: float = 0.0,
        **options: Any,
    ) -> None:
        """Create the optimizer.

        Args:
            setup: gives device and precision.
            kind: class of the optimizer, as torch.optim.AdamW.
            parameters: to be trained, or parameter groups; parameters that require no gradient are left out.
            max_grad_norm: norm over all parameters to which gradients are clipped; 0 does not clip.
            options: arguments of the optimizer, as lr and weight_decay.
        """
        if setup.device.type in FUSED_DEVICES and "fused" in inspect.signature(kind).parameters:
            options["fused"] = True
        self.optimizer = kind([entry for entry in parameters if _is_trainable(entry)], **options)
        self._scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision == "float16")
        self._max_grad_norm = max_grad_norm
        self._total = torch.zeros((), device=setup.device)
        self._count = 0
        self._epoch = 0

    def minimize(self, loss: Tensor, count: int) -> None:
        """Take one optimization step on a scalar loss.

        Args:
            loss: mean over the batch.
            count: images in the batch, the weight of this loss in `epoch_loss`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if self._max_grad_norm:
            self._scaler.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._total += loss.detach() * count
        self._count += count

    def epoch_loss(self) -> float:
        """Return the mean loss per image since the last call; this is the only wait for the device in an epoch.

        Raises:
            BenchError: if the loss is not finite.
        """
        self._epoch += 1
        loss = float(self._total) / self._count
        check_finite(loss, self._epoch)
        self._total, self._count = torch.zeros_like(self._total), 0
        return loss


def check_finite(loss: float, epoch: int) -> None:
    """Raise BenchError if the loss of an epoch is not finite."""
    if not math.isfinite(loss):
        raise BenchError(f"The loss must be finite, got {loss} in epoch {epoch}. Pass a lower --set lr=...")


def _is_trainable(entry: nn.Parameter | dict[str, Any]) -> bool:
    return isinstance(entry, dict) or entry.requires_grad
