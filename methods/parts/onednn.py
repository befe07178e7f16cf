"""Linear layers on a CPU by oneDNN: torch asks another library for them, which on some processors takes longer."""

from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from bench.method import Setup

from .compiled import twin

M = TypeVar("M", bound=nn.Module)


def _product() -> Any:
    """What torch's own compiler puts in place of a linear layer: nothing promised, so it is tried; None without it."""
    try:
        product = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - there is no public way that copies no weights
        six = product(torch.full((1, 2), 2.0), torch.ones(1, 2), torch.full((1,), 2.0), "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    return product if six.tolist() == [[6.0]] else None


PRODUCT: Any = _product()


def by_onednn(network: M, setup: Setup) -> M:
    """A twin for predictions that shares the network's tensors and gives its answers to rounding, by oneDNN.

    It records no gradients. On a GPU, in half precision (where torch takes oneDNN by itself) and with `setup.compile`
    it is the network itself.
    """
    if PRODUCT is None or setup.device.type != "cpu" or setup.precision != "float32" or setup.compile:
        return network
    quick = twin(network)
    for module in quick.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
    return quick


class _Linear(nn.Linear):
    def forward(self, tokens: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if torch.compiler.is_compiling():  # as `bench export` does
            return super().forward(tokens)
        found: Tensor = PRODUCT(tokens, self.weight, self.bias, "none", [], "")
        return found


if PRODUCT is not None and PRODUCT not in flop_registry:

    @register_flop_formula(PRODUCT)
    def _flops(tokens: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        return 2 * prod(tokens) * weight[0]
