"""Size and memory layout of the batches in which the passes of a network are computed at test time."""

import torch

CPU_BUDGET = 2**26
"""Bytes of one batch on a CPU, 64 MiB: larger batches of SSM and SCADN were slower, on one AMD EPYC."""


def passes_per_batch(device: torch.device, training_bytes: int) -> int:
    """Return the number of passes in one batch, at least 1: half of a GPU's memory, `CPU_BUDGET` on a CPU.

    Args:
        device: device of the network.
        training_bytes: bytes that one pass saves for the backward pass; without gradients it needs about a third.
    """
    on_gpu = device.type == "cuda"
    budget = torch.cuda.get_device_properties(device).total_memory // 2 if on_gpu else CPU_BUDGET
    return max(1, 3 * budget // training_bytes)


def convolution_format(device: torch.device) -> torch.memory_format:
    """Return the layout of images for convolutions without gradients: channels last on a CPU.

    Convolutions with few channels are faster in it; `benchmarks/batched_passes.py` measures layout and batches.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format
