"""AMI-Net's trainable network: two embeddings of the same patches, one to be inpainted, one to be clustered.

Symbols of the paper (Luo et al., arXiv 2412.11802): f1 and f3 are the two embeddings, f_sem is the aggregation, f_in
the inpainting blocks, f2 the prediction, S the position embeddings, R the discrepancy.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Precision

from .compile import share_parameters
from .precision import MeanCenteredLinear
from .transformer import Block, patchify, sincos_pos_embed


class Restoration(NamedTuple):
    """Results for b images at test time: n patches each, of k * k features with c channels."""

    patches: Tensor  # (b, n, k * k * c) frozen features
    restored: Tensor  # (b, n, k * k * c)
    distances: Tensor  # (b, n) distance of each token to its nearest center
    clusters: Tensor  # (b, n) index of that center
    masks: Tensor  # (passes, b, n), True for the tokens that a pass masks


class Inpainter(nn.Module):
    """Restores all patches of an image from those that are not masked, and computes the centers of its clusters.

    At the paper's size, `Inpainter(28672, (16, 16), width=768, depth=8, heads=12, aggregation_depth=1, clusters=8)`, it
    has 129,891,328 trainable parameters.
    """

    pos_embed: Tensor
    INFERENCE_METHODS: ClassVar[tuple[str, ...]] = ("embed", "centers", "restore")  # compiled with `--compile`

    def __init__(
        self,
        patch_dim: int,
        grid: tuple[int, int],
        *,
        width: int,
        depth: int,
        heads: int,
        aggregation_depth: int,
        clusters: int,
        learn_mask_token: bool = True,
        final_norm: bool = True,
    ) -> None:
        """Create the layers with random weights.

        Args:
            patch_dim: values per patch: patch * patch * channels.
            grid: rows and columns of patches.
            width: embedding dimension; must be a multiple of `heads` and of 4.
            depth: number of inpainting blocks.
            heads: number of attention heads.
            aggregation_depth: number of blocks that compute the centers.
            clusters: number of clusters of an image.
            learn_mask_token: False keeps the token of a masked patch at zero.
            final_norm: adds a LayerNorm after each of the two stacks of blocks (authors' code).

        Raises:
            BenchError: if `heads` or 4 does not divide `width`.
        """
        super().__init__()
        # f1 above f3: two strided convolutions are one matrix product after the map is cut into patches.
        self.embedding = nn.Linear(patch_dim, 2 * width)
        self.register_buffer("pos_embed", sincos_pos_embed(width, *grid)[None])  # (1, n, width)
        self.cluster_tokens = nn.Parameter(torch.empty(1, clusters, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=learn_mask_token)
        self.aggregation = nn.Sequential(*(Block(width, heads) for _ in range(aggregation_depth)))
        self.aggregation_norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.prediction = nn.Linear(width, patch_dim)
        self._initialize()

    def _initialize(self) -> None:
        """Use Xavier for linear layers and for f1; f3 and the biases of both have PyTorch's default (authors' code)."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.embedding:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.embedding.weight.chunk(2)[0])
        nn.init.normal_(self.cluster_tokens, std=0.02)

    def embed(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, n, patch_dim) to E1 for inpainting and E2 for clustering, each (b, n, width), without pos_embed."""
        first, second = self.embedding(patches).chunk(2, dim=2)
        return first, second

    def centers(self, semantic: Tensor) -> Tensor:
        """Return the cluster centers (b, clusters, width) of E2 (b, n, width), separately for each image."""
        queries = self.cluster_tokens.expand(len(semantic), -1, -1)
        tokens = torch.cat([queries, semantic + self.pos_embed], dim=1)  # (b, clusters + n, width)
        *first, last = self.aggregation
        for block in first:
            tokens = block(tokens)
        centers: Tensor = self.aggregation_norm(last(tokens, queries.shape[1]))  # other outputs are not needed
        return centers

    def distances(self, semantic: Tensor, centers: Tensor, *, squared: bool) -> Tensor:
        """Return R of every token E2 + S (b, n, width) to every center (b, clusters, width): (b, n, clusters)."""
        return discrepancy(semantic + self.pos_embed, centers, squared=squared)

    def mask_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Replace E1 (b, n, width) by the mask token where `mask` (b, n) is True."""
        return torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens)

    def restore(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, n, width), some of them masked, to all patches (b, n, patch_dim)."""
        restored: Tensor = self.prediction(self.norm(self.blocks(tokens + self.pos_embed)))
        return restored

    def half_precision_copy(self, precision: Precision) -> "Inpainter":
        """Return a copy for predictions under autocast with its matrices cast once; at float32 the network itself.

        E2 is about ten times as long as the differences between its tokens, and the adaptive mask compares these
        differences: if E2 were rounded to bfloat16, several percent of the tokens would change their mask. So the
        embedding is a MeanCenteredLinear, and the aggregation stays float32.
        """
        if precision == "float32":
            return self
        half = share_parameters(self)
        half.embedding = MeanCenteredLinear(self.embedding, precision)
        for module in (*half.blocks.modules(), half.prediction):
            if isinstance(module, nn.Linear):
                for name, value in list(module.named_parameters()):
                    delattr(module, name)  # a buffer replaces it, so that parameters are not counted twice
                    module.register_buffer(name, value.detach().to(getattr(torch, precision)))
        return half

    def estimate_training_memory(self, batch: int) -> int:
        """Return the estimated bytes in float32 of weights, gradients, Adam moments and one step on `batch` images."""
        n_weights = sum(parameter.numel() for parameter in self.parameters())
        tokens, width = self.pos_embed.shape[1:]
        # Each token saves about 6 copies of its patch (features, output, differences, gradients), and 18 * width values
        # per block: norms, queries, keys, values, sums, and 2 * 4 * width values inside the MLP.
        values = 6 * self.prediction.out_features + 18 * width * (len(self.blocks) + len(self.aggregation))
        return 4 * (4 * n_weights + batch * tokens * values)


def token_grid(size: tuple[int, int], stride: int, patch: int) -> tuple[int, int]:
    """Return rows and columns of patches of a feature map. Raises BenchError if the image size is not a multiple."""
    side = stride * patch  # pixels
    if size[0] % side or size[1] % side:
        raise BenchError(
            f"Height and width must be multiples of {side} pixels (stride {stride} of the first stage, times patch "
            f"{patch}), got {size[0]} x {size[1]}. Change the size of the images or --set patch=VALUE."
        )
    return size[0] // side, size[1] // side


def discrepancy(first: Tensor, second: Tensor, *, squared: bool) -> Tensor:
    """Return R(a, b) = |a - b| (1 - cos(a, b)), |a - b|^2 if `squared`: (b, n, d), (b, m, d) -> (b, n, m), float32.

    1 - cos(a, b) is computed as |a/|a| - b/|b||^2 / 2, which is equal in exact arithmetic. Tokens are long and nearly
    parallel (norms of several hundred, 1 - cos of about 1e-4), so in float32 the difference of 1 and a dot product, as
    in the authors' code, has a relative error of about 1e-3: enough to change masks.
    """
    first, second = first.float(), second.float()
    distance = _distances(first, second)
    one_minus_cosine = _distances(F.normalize(first, dim=2), F.normalize(second, dim=2)).square() / 2
    scaled: Tensor = (distance.square() if squared else distance) * one_minus_cosine
    return scaled


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Return Euclidean distances (b, n, m), from differences: |a|^2 - 2ab + |b|^2 would cancel."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def inter_cluster_distance(centers: Tensor, *, squared: bool) -> Tensor:
    """Return the sum of R over all ordered pairs of an image's centers: (b, clusters, d) -> (b,); 0 for one center."""
    first, second = torch.triu_indices(centers.shape[1], centers.shape[1], offset=1, device=centers.device)
    # R is symmetric, so each pair counts twice; the diagonal is left out, because the norm has no gradient at 0.
    total: Tensor = 2 * discrepancy(centers, centers, squared=squared)[:, first, second].sum(dim=1)
    return total


def mask_statistics(restorations: Iterable[Restoration], n_clusters: int) -> dict[str, float]:
    """Return the means over images of "clusters_used", the clusters with tokens, and of the "masked_fraction"."""
    n_used, fractions = [], []
    for restoration in restorations:
        n_used.append(F.one_hot(restoration.clusters, n_clusters).amax(dim=1).sum(dim=1).float())  # (b,)
        fractions.append(restoration.masks[-1].float().mean(dim=1))  # (b,)
    return {"clusters_used": float(torch.cat(n_used).mean()), "masked_fraction": float(torch.cat(fractions).mean())}


def jittered(tokens: Tensor, *, scale: float, generator: Generator | None) -> Tensor:
    """Add Gaussian noise in proportion to the norm of each of the tokens (b, n, width), as in UniAD; 0 adds none."""
    if not scale:
        return tokens
    noise = torch.randn(tokens.shape, generator=generator, device=tokens.device, dtype=tokens.dtype)
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=2, keepdim=True)
    return tokens + noise * (scale / tokens.shape[2]) * norms


def released_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.pth` released by the authors with the names of `Inpainter`, without their backbone.

    No code in the file is executed.

    Raises:
        BenchError: if the file is not a dictionary with their `state_dict`.
    """
    try:
        released = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        tensors = {
            key.removeprefix("Roncon_model."): released[key].float() for key in released if key.startswith("Roncon")
        }
        embeddings = [
            (tensors.pop(f"{key}.proj.weight"), tensors.pop(f"{key}.proj.bias"))
            for key in ("patch_embed", "auxi_embed")
        ]
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BenchError(
            f"A released AMI-Net must be a .pth with a 'state_dict' of tensors and no code; cannot read {path}: "
            f"{reason}. Download it again from the authors' page."
        ) from error
    tensors["embedding.weight"] = torch.cat([patchify(kernel, kernel.shape[-1])[:, 0] for kernel, _ in embeddings])
    tensors["embedding.bias"] = torch.cat([bias for _, bias in embeddings])
    names = {"cls_token": "cluster_tokens", "auxiliary": "aggregation"}
    names |= {"norm_auxi": "aggregation_norm", "inpainting_pred": "prediction"}
    roots = {key: key.split(".")[0] for key in tensors}
    return {names.get(root, root) + key.removeprefix(root): tensors[key] for key, root in roots.items()}
