"""From features back to a picture: for a person's eye only, no score depends on it."""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (512, 256, 128, 64)


class Decoder(nn.Module):
    """Feature maps to images: four stages of two 3 x 3 convolutions without bias and ReLU, then one more to RGB.

    The first two stages end in doubling the size, bilinearly and corner to corner; what comes out is resized to `size`
    (h, w) where the features' stride isn't 4. Source: AMI-Net's code; that the second convolution of a stage keeps the
    first one's width is our reading.
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
        self.colour = nn.Conv2d(WIDTHS[-1], 3, 3, padding=1, bias=False)

    @staticmethod
    def training_bytes(channels: int, size: tuple[int, int], batch: int) -> int:
        """An estimate of what weights, gradients, both moments and one step on so many images need in float32."""
        places, weights, kept = size[0] * size[1] // 16, 27 * WIDTHS[-1], 0
        for before, after, grown in zip((channels, *WIDTHS[:-1]), WIDTHS, (1, 4, 16, 16), strict=True):
            weights += 9 * after * (before + after)
            kept += grown * places * (before + 3 * after)  # what came, both convolutions, and a gradient
        return 4 * (4 * weights + batch * kept)

    def forward(self, maps: Tensor) -> Tensor:
        """(b, c, h / 4, w / 4) -> (b, 3, h, w) in the units of the backbone's normalised input."""
        for number, stage in enumerate(self.stages):
            maps = stage(maps)
            if number < 2:
                maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
        images: Tensor = self.colour(maps)  # (b, 3, h, w)
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=True)
        return images
