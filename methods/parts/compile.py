"""Copies of a network that share its tensors, and `--compile`: methods of a network compiled by torch.compile."""

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
"""Backend of torch.compile."""


def with_compiled_methods(network: M, setup: Setup, *names: str) -> M:
    """Return a copy of the network that shares its tensors and whose methods `names` are compiled at their first call.

    Without `setup.compile` the network itself is returned. On CUDA all kernels of a method are one CUDA graph, which
    reduces the latency of a single image; each shape of the input is compiled separately. Outputs are copied out of the
    graph's memory, so later calls do not overwrite them. Training continues with the network itself.
    """
    if not setup.compile:
        return network
    compiled = copy(network)
    for name in names:
        setattr(compiled, name, _compiled_function(getattr(network, name), setup.device))
    return compiled


def share_parameters(network: M) -> M:
    """Return a copy of all modules that shares the network's tensors, so that modules can be replaced in the copy."""
    return deepcopy(network, {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())})


def _compiled_function(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return the compiled function; its outputs are not overwritten. A call raises BenchError if compilation fails."""
    mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
    compiled = torch.compile(function, backend=BACKEND, mode=mode)

    def call(*tensors: Tensor) -> Any:
        try:
            output = compiled(*tensors)
        except torch._dynamo.exc.TorchDynamoException as error:  # noqa: SLF001 - base class of its compilers' errors
            reason = " ".join(str(error).strip().splitlines()[:2])
            raise BenchError(f"torch.compile failed for this network: {reason} Leave out --compile.") from error
        if mode is None:
            return output
        return output.clone() if isinstance(output, Tensor) else type(output)(tensor.clone() for tensor in output)

    return call
