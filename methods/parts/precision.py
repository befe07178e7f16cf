"""Half precision by setting: of matrix products and convolutions; masks, losses and maps are float32 in any case."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from bench.method import Precision, Setup

M = TypeVar("M", bound=nn.Module)


def autocast(setup: Setup) -> torch.autocast:
    """For a network in the precision that the setup asks for; does nothing at float32."""
    half = setup.precision != "float32"
    return torch.autocast(setup.device.type, getattr(torch, setup.precision) if half else torch.bfloat16, enabled=half)


def halved(network: M, precision: Precision) -> M:
    """A copy for predictions under autocast: its matrices are cast once, all else is float32. At float32 no copy."""
    if precision == "float32":
        return network
    copy = deepcopy(network).requires_grad_(requires_grad=False)
    for module in copy.modules():
        if isinstance(module, nn.Linear):
            module.to(getattr(torch, precision))
    return copy
