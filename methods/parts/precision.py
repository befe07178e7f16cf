"""Half precision by setting: of matrix products and convolutions; masks, losses and maps are float32 in any case."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.method import Precision, Setup


def autocast(setup: Setup) -> torch.autocast:
    """For a network in the precision that the setup asks for; does nothing at float32."""
    half = setup.precision != "float32"
    return torch.autocast(setup.device.type, getattr(torch, setup.precision) if half else torch.bfloat16, enabled=half)


class Centred(nn.Linear):
    """A linear layer in half precision that rounds only how the tokens of an image differ from their mean.

    The mean's own answer is float32, and so is the sum. Where the mean is long beside the differences, as that of
    features which are never negative, ordinary rounding would drown these. It is for a fitted layer, with which it
    shares its weight: `rounded` is that weight as it was when this was made.
    """

    rounded: Tensor

    def __init__(self, linear: nn.Linear, precision: Precision) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("rounded", linear.weight.detach().to(getattr(torch, precision)), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, in_features) -> (b, n, out_features), float32."""
        mean = tokens.mean(dim=1, keepdim=True)  # (b, 1, in_features)
        apart = F.linear((tokens - mean).to(self.rounded.dtype), self.rounded)
        with torch.autocast(tokens.device.type, enabled=False):
            return super().forward(mean) + apart
