"""A transformer of image patches, a decoder of their tokens, and a mixture density network, as in VT-ADL."""

from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import patchify

CODE = 8
"""Side and channels of what the decoder starts from: 8 x 8 x 8 numbers."""

DECODED = 512
"""Side of a decoded image in pixels."""

DECODER_LAYERS = ((2, 3, 2, 1), (4, 9, 3, 1), (4, 7, 5, 1), (2, 9, 2, 0), (1, 6, 1, 0))
"""Of each transposed convolution but the last: channels in units of the width, kernel, stride and padding."""

SMALLEST = 2.0**-52
"""To which smaller inputs of the density network are set: the rounding of float64."""


class TokenAttention(nn.Module):
    """Multi-head self-attention without bias; products are scaled by the whole width, not by that of a head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, width) to the same shape."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, scale=tokens.shape[2] ** -0.5)
        output: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return output


class TokenBlock(nn.Module):
    """Pre-norm attention and MLP, both with a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), TokenAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, width) to the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        output: Tensor = tokens + self.mlp(self.norm2(tokens))
        return output


class TokenEncoder(nn.Module):
    """Patches to tokens: a linear layer, learned position embeddings and blocks; no class token.

    Its linear layers start with He's weights and without bias.
    """

    def __init__(self, n_tokens: int, patch: int, width: int, depth: int, heads: int, hidden: int) -> None:  # noqa: PLR0917
        super().__init__()
        self.patch = patch
        self.pos_embed = nn.Parameter(torch.randn(1, n_tokens + 1, width))
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.embedding = nn.Linear(3 * patch**2, width)
        self.blocks = nn.Sequential(*(TokenBlock(width, heads, hidden) for _ in range(depth)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, h / patch * w / patch, width)."""
        tokens = self.embedding(patchify(images, self.patch))  # (b, n, width)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        output: Tensor = self.blocks(tokens)[:, 1:]  # without the class token
        return output


class CapsuleDecoder(nn.Module):
    """All tokens to one capsule of 512 numbers, and transposed convolutions from 8 x 8 x 8 to 512 x 512 pixels.

    With one output capsule the weights of dynamic routing are a softmax over one entry, so the capsule is a linear map
    of all tokens whose length is squashed below 1.
    """

    def __init__(self, n_tokens: int, token_width: int, width: int) -> None:
        super().__init__()
        self.capsule = nn.Parameter(0.01 * torch.randn(CODE**3, n_tokens * token_width))
        layers: list[nn.Module] = []
        channels = CODE
        for factor, kernel, stride, padding in DECODER_LAYERS:
            outputs = factor * width
            layers += [
                nn.ConvTranspose2d(channels, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU(),
            ]  # fmt: skip
            channels = outputs
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 11), nn.Tanh())

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, n, token_width) to (b, 3, 512, 512) in [-1, 1]."""
        vector = F.linear(tokens.flatten(1), self.capsule)  # (b, 512)
        length = vector.norm(dim=1, keepdim=True)
        image: Tensor = self.layers((vector * length / (1 + length.square())).unflatten(1, (CODE, CODE, CODE)))
        return image


class MixtureDensity(nn.Module):
    """Predicts from a token the weights, means and logarithms of variances of Gaussians, with linear layers.

    Negative inputs are cut off, and a logarithm is a softplus, so a variance is 1 or more.
    """

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.weights = nn.Linear(width, components, bias=False)
        self.means = nn.Linear(width, width * components, bias=False)
        self.variances = nn.Linear(width, width * components, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (b, n, width) to log weights (b, n, k), means and log variances, (b, n, width, k) each."""
        inputs, shape = tokens.clamp(min=SMALLEST), (tokens.shape[2], -1)
        log_variances = F.softplus(self.variances(inputs)).unflatten(2, shape)
        return self.weights(inputs).log_softmax(dim=2), self.means(inputs).unflatten(2, shape), log_variances


def component_nll(tokens: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """Return the negative log-likelihood of tokens (b, n, d) under each Gaussian (b, n, d, k): (b, n, k).

    As in the code of VT-ADL, log 2 pi is counted once, not once per dimension.
    """
    squared = (tokens[..., None] - means).square()
    return 0.5 * (log(2 * pi) + (log_variances + squared * log_variances.neg().exp()).sum(dim=2))


def weighted_nll(log_weights: Tensor, nll: Tensor) -> Tensor:
    """Return the sum of the components' negative log-likelihoods (b, n, k) by their weights, (b, n)."""
    return (log_weights.exp() * nll).sum(dim=2)


def mixture_nll(log_weights: Tensor, nll: Tensor) -> Tensor:
    """Return the negative log-likelihood of the mixture, (b, n): at most `weighted_nll`."""
    return -(log_weights - nll).logsumexp(dim=2)
