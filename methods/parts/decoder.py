"""A decoder from features to a picture for display; no score depends on it."""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (512, 256, 128, 64)


class Decoder(nn.Module):
    """Maps feature maps to images: four stages of two 3 x 3 convolutions without bias and ReLU, then one more to RGB.

    The first two stages end with a bilinear upsampling by 2 (align_corners=True); the output is resized to `size`
    (h, w) if the stride of the features is not 4. Source: AMI-Net's code, except that the second convolution of a
    stage keeps the width of the first: our choice.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1, bias=False),
                nn.ReLU(),
            )
            for before, after in zip((channels, *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[-1], 3, 3, padding=1, bias=False)

    @staticmethod
    def estimate_training_memory(channels: int, size: tuple[int, int], batch: int) -> int:
        """Return the estimated bytes in float32 of weights, gradients, Adam moments and one step on `batch` images."""
        n_features, n_weights, n_activations = size[0] * size[1] // 16, 27 * WIDTHS[-1], 0
        for before, after, scale in zip((channels, *WIDTHS[:-1]), WIDTHS, (1, 4, 16, 16), strict=True):
            n_weights += 9 * after * (before + after)
            n_activations += scale * n_features * (before + 3 * after)  # input, both convolutions, and a gradient
        return 4 * (4 * n_weights + batch * n_activations)

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, c, h / 4, w / 4) to (b, 3, h, w) in the units of the backbone's normalized input."""
        for number, stage in enumerate(self.stages):
            features = stage(features)
            if number < 2:
                features = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
        images: Tensor = self.head(features)  # (b, 3, h, w)
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=True)
        return images
