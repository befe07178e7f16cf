"""AMI-Net's trainable network: two embeddings of the same patches, one inpainted, the other clustered.

The symbols of the paper (Luo et al., arXiv 2412.11802): f1 and f3 are the two embeddings, f_sem the aggregation, f_in
the inpainting blocks, f2 the prediction, S the positions, R the discrepancy.
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Precision

from .compiled import twin
from .precision import Centred
from .transformer import Block, patchify, positions


class Inpainter(nn.Module):
    """Restores all patches of an image from those that are not hidden, and finds the centres of its clusters.

    entries: numbers a patch, patch * patch * channels.  grid: rows and columns of patches.
    width: of a token; `heads` and 4 divide it.  depth: blocks that inpaint.  aggregation_depth: blocks that cluster.
    learn_mask_token: False keeps the token that stands for a hidden patch at zero.
    final_norm: a LayerNorm behind each of the two stacks of blocks [C].

    At the paper's size, `Inpainter(28672, (16, 16), width=768, depth=8, heads=12, aggregation_depth=1, clusters=8)`, it
    has 129,891,328 trainable parameters. Raises BenchError where `heads` or 4 doesn't divide `width`.
    """

    positions: Tensor
    ASKED: ClassVar[tuple[str, ...]] = ("embed", "centres", "restore")  # at test, where `--compile` makes them quick

    def __init__(
        self,
        entries: int,
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
        super().__init__()
        # f1 above f3: two strided convolutions are one matrix product once the map is cut into patches.
        self.embedding = nn.Linear(entries, 2 * width)
        self.register_buffer("positions", positions(width, *grid)[None])  # (1, n, width)
        self.cluster_tokens = nn.Parameter(torch.empty(1, clusters, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=learn_mask_token)
        self.aggregation = nn.Sequential(*(Block(width, heads) for _ in range(aggregation_depth)))
        self.aggregation_norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.prediction = nn.Linear(width, entries)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for every linear layer and for f1; f3 and the biases of both keep PyTorch's default [C]."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.embedding:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.embedding.weight.chunk(2)[0])
        nn.init.normal_(self.cluster_tokens, std=0.02)

    def embed(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n, entries) -> E1, to be inpainted, and E2, to be clustered, each (b, n, width) and without positions."""
        first, second = self.embedding(patches).chunk(2, dim=2)
        return first, second

    def centres(self, semantic: Tensor) -> Tensor:
        """The centres that the cluster tokens find in E2 (b, n, width) of their own image: (b, clusters, width)."""
        asking = self.cluster_tokens.expand(len(semantic), -1, -1)
        tokens = torch.cat([asking, semantic + self.positions], dim=1)  # (b, clusters + n, width)
        *first, last = self.aggregation
        for block in first:
            tokens = block(tokens)
        found: Tensor = self.aggregation_norm(last(tokens, asking.shape[1]))  # nobody needs the other tokens' answers
        return found

    def distances(self, semantic: Tensor, centres: Tensor, *, squared: bool) -> Tensor:
        """R of every token E2 + S to every centre: (b, n, width), (b, clusters, width) -> (b, n, clusters)."""
        return discrepancy(semantic + self.positions, centres, squared=squared)

    def hide(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """E1 (b, n, width) with the mask token where `mask` (b, n) is True."""
        return torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens)

    def restore(self, tokens: Tensor) -> Tensor:
        """Tokens (b, n, width), some of them hidden -> all patches, (b, n, entries)."""
        restored: Tensor = self.prediction(self.norm(self.blocks(tokens + self.positions)))
        return restored

    def halved(self, precision: Precision) -> "Inpainter":
        """A twin for predictions under autocast, its matrices cast once; at float32 the network itself.

        E2 is some ten times as long as it differs from token to token, and the adaptive mask compares these
        differences: rounded whole, in bfloat16, several in a hundred tokens would change sides. So the embedding is
        `Centred`, and the aggregation stays float32.
        """
        if precision == "float32":
            return self
        quick = twin(self)
        quick.embedding = Centred(self.embedding, precision)
        for module in (*quick.blocks.modules(), quick.prediction):
            if isinstance(module, nn.Linear):
                for name, value in list(module.named_parameters()):
                    delattr(module, name)  # a buffer takes its place: it is no parameter beside the one it stands for
                    module.register_buffer(name, value.detach().to(getattr(torch, precision)))
        return quick

    def training_bytes(self, batch: int) -> int:
        """An estimate of what weights, gradients, both moments and one step on so many images need in float32."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        tokens, width = self.positions.shape[1:]
        # Of each token some 6 copies of its patch (features, answer, differences, gradients), and in each block 18
        # widths (norms, queries, keys, values, sums, and the four widths inside the mlp twice).
        token = 6 * self.prediction.out_features + 18 * width * (len(self.blocks) + len(self.aggregation))
        return 4 * (4 * weights + batch * tokens * token)


def token_grid(size: tuple[int, int], stride: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches of a feature map. Raises BenchError where the image's size doesn't come out even."""
    side = stride * patch  # pixels
    if size[0] % side or size[1] % side:
        raise BenchError(
            f"AMI-Net cuts images into squares of {side} pixels (the first stage's stride {stride}, times patch "
            f"{patch}); {size[0]} x {size[1]} can't be cut so. Choose multiples of {side}, or another patch."
        )
    return size[0] // side, size[1] // side


def discrepancy(first: Tensor, second: Tensor, *, squared: bool) -> Tensor:
    """R(a, b) = |a - b| (1 - cos(a, b)), with |a - b|^2 where `squared`: (b, n, d), (b, m, d) -> (b, n, m), float32."""
    first, second = first.float(), second.float()
    # By differences: |a|^2 - 2ab + |b|^2 would lose the digits that the adaptive mask compares.
    apart = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    turned = 1 - F.normalize(first, dim=2) @ F.normalize(second, dim=2).mT
    scaled: Tensor = (apart.square() if squared else apart) * turned
    return scaled


def separation(centres: Tensor, *, squared: bool) -> Tensor:
    """The sum of R over all ordered pairs of an image's centres: (b, clusters, d) -> (b,); 0 for a single centre."""
    first, second = torch.triu_indices(centres.shape[1], centres.shape[1], offset=1, device=centres.device)
    # R is symmetric, so each pair stands for two; the diagonal is left out, where a norm has no gradient.
    total: Tensor = 2 * discrepancy(centres, centres, squared=squared)[:, first, second].sum(dim=1)
    return total


def jittered(tokens: Tensor, *, scale: float, generator: Generator | None) -> Tensor:
    """Tokens (b, n, width) with Gaussian noise in proportion to the norm of each, as in UniAD; scale 0 adds none."""
    if not scale:
        return tokens
    noise = torch.randn(tokens.shape, generator=generator, device=tokens.device, dtype=tokens.dtype)
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=2, keepdim=True)
    return tokens + noise * (scale / tokens.shape[2]) * norms


def turn(first: Tensor, second: Tensor) -> Tensor:
    """1 - cosine along the last axis, by dot product and norms: half of what F.cosine_similarity costs in training."""
    norms = torch.linalg.vector_norm(first, dim=-1) * torch.linalg.vector_norm(second, dim=-1)
    turned: Tensor = 1 - torch.linalg.vecdot(first, second) / norms.clamp(min=1e-12)
    return turned


def released_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` that the authors released, under the names of `Inpainter`; their backbone is left out.

    Nothing in the file is ever run. Raises BenchError where it isn't a dictionary with their `state_dict`.
    """
    try:
        released = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        own = {key.removeprefix("Roncon_model."): released[key].float() for key in released if key.startswith("Roncon")}
        embeds = [(own.pop(f"{key}.proj.weight"), own.pop(f"{key}.proj.bias")) for key in ("patch_embed", "auxi_embed")]
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise BenchError(
            f"A released AMI-Net is a .pth with a 'state_dict' of tensors and nothing that runs; {path} isn't: {why}. "
            "Fetch it anew from the authors' page."
        ) from error
    own["embedding.weight"] = torch.cat([patchify(kernel, kernel.shape[-1])[:, 0] for kernel, _ in embeds])
    own["embedding.bias"] = torch.cat([bias for _, bias in embeds])
    names = {"cls_token": "cluster_tokens", "pos_embed": "positions", "auxiliary": "aggregation"}
    names |= {"norm_auxi": "aggregation_norm", "inpainting_pred": "prediction"}
    roots = {key: key.split(".")[0] for key in own}
    return {names.get(root, root) + key.removeprefix(root): own[key] for key, root in roots.items()}
