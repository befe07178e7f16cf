"""Twins of a network that share its tensors. `--compile`: its functions as torch.compile makes them."""

from collections.abc import Callable
from copy import copy, deepcopy
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.method import Setup

M = TypeVar("M", bound=nn.Module)

BACKEND: str | Callable[..., Any] = "inductor"
"""Of torch.compile."""


def compiled(network: M, setup: Setup, *names: str) -> M:
    """A twin that shares the network's tensors and whose functions of these names are compiled at their first call.

    Without `setup.compile` it is the network itself. On CUDA one graph of all kernels is launched at once, which is
    what makes a single image quick; where another shape comes, that shape is compiled too. What a function gives is
    copied out of the graph's memory, so it stays valid after the next call. Training goes on with the network as it is.
    """
    if not setup.compile:
        return network
    quick = copy(network)
    for name in names:
        setattr(quick, name, _kept(getattr(network, name), setup.device))
    return quick


def twin(network: M) -> M:
    """A copy of all modules that shares the network's tensors, so that some can be replaced in the copy alone."""
    return deepcopy(network, {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())})


def _kept(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function, compiled; its answers are the caller's own. Raises BenchError where it can't be compiled."""
    mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
    quick = torch.compile(function, backend=BACKEND, mode=mode)

    def ask(*tensors: Tensor) -> Any:
        try:
            found = quick(*tensors)
        except torch._dynamo.exc.TorchDynamoException as error:  # noqa: SLF001 - all that its compilers raise
            reason = " ".join(str(error).strip().splitlines()[:2])
            raise BenchError(f"This network can't be compiled here: {reason} Leave out --compile.") from error
        if mode is None:
            return found
        return found.clone() if isinstance(found, Tensor) else type(found)(tensor.clone() for tensor in found)

    return ask
