"""Half precision of matrix products and convolutions; masks, losses and maps are float32 in any case."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.method import Precision, Setup


def autocast(setup: Setup) -> torch.autocast:
    """Return the context for a network in the precision of the setup; it has no effect at float32."""
    half = setup.precision != "float32"
    return torch.autocast(setup.device.type, getattr(torch, setup.precision) if half else torch.bfloat16, enabled=half)


class MeanCenteredLinear(nn.Linear):
    """A linear layer that applies half precision only to the difference of each token from its image's mean token.

    The product with the mean token and the sum are float32. If the mean is long relative to the differences, as for
    non-negative features, rounding whole tokens would lose the differences. The layer shares the weight of a fitted
    layer; `rounded` is that weight in half precision, at the time of construction.
    """

    rounded: Tensor

    def __init__(self, linear: nn.Linear, precision: Precision) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("rounded", linear.weight.detach().to(getattr(torch, precision)), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, in_features) to (b, n, out_features), float32."""
        mean = tokens.mean(dim=1, keepdim=True)  # (b, 1, in_features)
        difference = F.linear((tokens - mean).to(self.rounded.dtype), self.rounded)
        with torch.autocast(tokens.device.type, enabled=False):
            return super().forward(mean) + difference
