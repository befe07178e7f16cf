"""How many passes of a network fit into one batch at test time."""

import torch


def passes_per_batch(device: torch.device, training_bytes: int) -> int:
    """Return the number of passes in one batch, at least 1: half of a GPU's memory, 512 MiB on a CPU.

    Args:
        device: of the network.
        training_bytes: that one pass keeps for gradients; without gradients it needs about a third.
    """
    on_gpu = device.type == "cuda"
    budget = torch.cuda.get_device_properties(device).total_memory // 2 if on_gpu else 2**29
    return max(1, 3 * budget // training_bytes)
