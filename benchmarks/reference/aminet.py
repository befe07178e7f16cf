"""A plain port of AMI-Net, the reference of `benchmarks/aminet.py`.

Written from the paper (https://arxiv.org/abs/2412.11802) and from what the authors' code does
(https://github.com/luow23/AMI-Net at 3350be0), step by step with the layers of torch: two strided convolutions embed
the patches, torch resizes and pools the features, a Python loop computes the masks, SciPy smooths the maps. It is not
optimized and shares no code with `methods/`. Its parameters have the names of the released checkpoints.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 4  # side of a token in features
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embed(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, PATCH, PATCH)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features).flatten(2).transpose(1, 2)  # (b, n, width)


class AMINet(nn.Module):
    """AMI-Net.

    Args:
        backbone: maps normalized images to stage maps.
        channels: number of channels of all stage maps together.
        side: side of the grid of tokens.
        width, heads, depth, clusters: sizes of the network.
        mean, std: normalization of the backbone.
    """

    def __init__(
        self, backbone: nn.Module, channels: int = 1792, *, side: int = 16, width: int = 768, heads: int = 12,
        depth: int = 8, clusters: int = 8, mean: Sequence[float] = MEAN, std: Sequence[float] = STD,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.side, self.clusters = backbone, side, clusters
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.patch_embed, self.auxi_embed = Embed(channels, width), Embed(channels, width)
        self.pos_embed = nn.Parameter(position_table(width, side)[None], requires_grad=False)
        self.cls_token = nn.Parameter(torch.randn(1, clusters, width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.auxiliary, self.norm_auxi = nn.ModuleList([Block(width, heads)]), nn.LayerNorm(width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm, self.inpainting_pred = nn.LayerNorm(width), nn.Linear(width, PATCH * PATCH * channels)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith("backbone"):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.view(width, -1))

    def features(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) RGB in [0, 1] to (b, channels, 64, 64): resized, pooled and concatenated."""
        stages = self.backbone((images - self.mean) / self.std)
        resized = [F.interpolate(x, stages[0].shape[2:], mode="bilinear", align_corners=True) for x in stages]
        return torch.cat([F.avg_pool2d(x, 3, 1, 1) for x in resized], dim=1)

    def centers(self, semantic: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(semantic), -1, -1), semantic + self.pos_embed], dim=1)
        for block in self.auxiliary:
            x = block(x)
        return self.norm_auxi(x[:, : self.clusters])

    def distances(self, semantic: Tensor, centers: Tensor) -> Tensor:
        return discrepancy(semantic + self.pos_embed, centers)  # (b, n, clusters)

    def inpaint(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map tokens (b, n, width) and mask (b, n), True if masked, to restored features (b, channels, 64, 64)."""
        x = torch.where(mask[:, :, None], self.mask_token, tokens) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.inpainting_pred(self.norm(x)).reshape(len(x), self.side, self.side, PATCH, PATCH, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, self.side * PATCH, self.side * PATCH)

    def losses(self, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the losses; gradients are computed for the backbone as well, as in the authors' training."""
        features = self.features(images)
        semantic = self.auxi_embed(features)
        centers = self.centers(semantic)
        restored = self.inpaint(self.patch_embed(features), mask)
        mse = (restored - features).square().mean()
        cosine = (1 - F.cosine_similarity(patches(restored), patches(features), dim=2)).mean()
        intra = self.distances(semantic, centers).amin(dim=2).mean()
        inter = 0.0
        for i in range(self.clusters):
            for j in range(self.clusters):
                if i != j:
                    inter = inter + discrepancy(centers[:, i : i + 1], centers[:, j : j + 1]).mean()
        inter = inter / (self.clusters * (self.clusters - 1))
        total = mse + 5 * cosine + intra - 0.1 * inter
        return {"total": total, "mse": mse, "cosine": cosine, "intra": intra, "inter": inter}

    def predict(self, images: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return scores (b,) and maps (b, h, w)."""
        features = self.features(images)
        tokens, semantic = self.patch_embed(features), self.auxi_embed(features)
        distances, clusters = self.distances(semantic, self.centers(semantic)).min(dim=2)
        restored = self.inpaint(tokens, adaptive_mask(distances, clusters, self.clusters))
        difference = (features - restored).square().mean(dim=1)
        cosine = 1 - F.cosine_similarity(features, restored, dim=1)
        size = images.shape[2:]
        factors = [
            F.interpolate(factor[:, None], size, mode="bilinear", align_corners=True)[:, 0].detach().numpy()
            for factor in (difference, cosine)
        ]
        first, second = (np.stack([gaussian_filter(values, 4) for values in factor]) for factor in factors)
        maps = first * second
        return maps.reshape(len(maps), -1).std(axis=1), maps


def adaptive_mask(distances: Tensor, clusters: Tensor, n_clusters: int, lambda_: float = 0.5) -> Tensor:
    mask = torch.zeros(distances.shape, dtype=torch.bool)
    for image in range(len(distances)):
        for cluster in range(n_clusters):
            members = [n for n in range(distances.shape[1]) if clusters[image, n] == cluster]
            if len(members) > 1:
                values = distances[image, members]
                limit = values.mean() + lambda_ * values.std()
                for n in members:
                    mask[image, n] = distances[image, n] >= limit
    return mask


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Map (b, n, d) and (b, m, d) to (b, n, m): the distance times one minus the cosine."""
    distance = (a[:, :, None] - b[:, None]).norm(dim=3)
    return distance * (1 - F.cosine_similarity(a[:, :, None], b[:, None], dim=3))


def patches(features: Tensor) -> Tensor:
    b, c, h, w = features.shape
    cells = features.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, PATCH * PATCH * c)


def position_table(width: int, side: int) -> Tensor:
    omega = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    rows, columns = np.mgrid[:side, :side]
    angles = [np.outer(position.ravel(), omega) for position in (columns, rows)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(table).float()
