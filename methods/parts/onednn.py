"""Linear layers on a CPU by oneDNN; by default torch uses another library, which is slower on some processors."""

from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from bench.method import Setup

from .compile import share_parameters

M = TypeVar("M", bound=nn.Module)


def _linear_operator() -> Any:
    """Return the operator that torch's compiler uses for linear layers, or None; it is not public, so it is tested."""
    try:
        operator = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - no public operator works without a weight copy
        output = operator(torch.full((1, 2), 2.0), torch.ones(1, 2), torch.full((1,), 2.0), "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    return operator if output.tolist() == [[6.0]] else None


LINEAR: Any = _linear_operator()


def with_onednn_linear(network: M, setup: Setup) -> M:
    """Return a copy for predictions that shares the network's tensors and computes its linear layers by oneDNN.

    Outputs are equal up to rounding; no gradients are recorded. On a GPU, in half precision (for which torch uses
    oneDNN by default) and with `setup.compile` the network itself is returned.
    """
    if LINEAR is None or setup.device.type != "cpu" or setup.precision != "float32" or setup.compile:
        return network
    copy = share_parameters(network)
    for module in copy.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDnnLinear
    return copy


class _OneDnnLinear(nn.Linear):
    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if torch.compiler.is_compiling():  # as in `bench export`
            return super().forward(tokens)
        output: Tensor = LINEAR(tokens, self.weight, self.bias, "none", [], "")
        return output


if LINEAR is not None and LINEAR not in flop_registry:

    @register_flop_formula(LINEAR)
    def _flops(tokens: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
        return 2 * prod(tokens) * weight[0]
