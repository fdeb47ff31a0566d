"""The codebook inside the tokenizer: nearest codeword, straight-through gradient, and its health."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.layout import Layout


class Quantized(NamedTuple):
    """Result of quantising encoder features (B, H·W, d).

    With one scale N = H·W and each feature becomes its codeword. With several the tokens of all scales stand for the
    sum `vectors`.
    """

    vectors: Tensor  # (B, H·W, d), for the decoder, with the straight-through gradient
    tokens: Tensor  # (B, N) int64
    searched: Tensor  # (B, N, d), what each token was searched for, detached
    codebook_loss: Tensor  # scalar: moves codewords to features
    commitment_loss: Tensor  # scalar: moves features to codewords


class Quantizer(nn.Module):
    """K codewords of dimension d; with `l2_normalize`, search and output live on the unit sphere.

    `age[k]` counts the training steps since codeword k was last used: the measure of dead codewords.
    """

    age: Tensor

    def __init__(self, size: int, dim: int, l2_normalize: bool = True) -> None:
        super().__init__()
        self.l2_normalize = l2_normalize
        self.weight = nn.Parameter(self.project(torch.empty(size, dim).uniform_(-1 / size, 1 / size)))
        self.register_buffer("age", torch.zeros(size, dtype=torch.int64), persistent=False)

    def project(self, vectors: Tensor) -> Tensor:
        """To the space that the search uses: the unit sphere, or unchanged."""
        return F.normalize(vectors, dim=-1) if self.l2_normalize else vectors

    @property
    def codebook(self) -> Tensor:
        """(K, d), the vectors that the search compares with."""
        return self.project(self.weight.float())

    @torch.no_grad()
    def nearest(self, vectors: Tensor, block: int = 1 << 26) -> Tensor:
        """Tokens of the nearest codewords, eq. 2: (…, d) projected vectors → (…) int64, in float32.

        Rows are searched in blocks of at most `block` distances, so that memory stays bounded.
        """
        codebook = self.codebook
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        # ‖z − e‖² = ‖z‖² − 2⟨z, e⟩ + ‖e‖²; the first term does not change the order.
        bias = -0.5 * codebook.square().sum(1)
        rows = max(1, block // len(codebook))
        with torch.autocast(flat.device.type, enabled=False):  # bfloat16 would take 1 token in 28 wrong
            best = [torch.addmm(bias, part, codebook.T).argmax(1) for part in flat.split(rows)]
        return torch.cat(best).reshape(vectors.shape[:-1])

    def forward(self, features: Tensor) -> Quantized:
        """Quantise encoder features (…, d), computed in float32 under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            z = self.project(features.float())
            tokens = self.nearest(z)
            e = self.project(F.embedding(tokens, self.weight))
            self._mark_used(tokens)
            losses = F.mse_loss(e, z.detach()), F.mse_loss(z, e.detach())
            return Quantized(z + (e - z).detach(), tokens, z.detach(), *losses)

    def _mark_used(self, tokens: Tensor) -> None:
        if self.training:
            self.age += 1
            self.age.index_fill_(0, tokens.flatten(), 0)  # `self.age[…] = 0` would copy the 0 to a GPU, and wait

    def _zero(self) -> Tensor:
        """0 with a gradient for every parameter, as DDP asks."""
        return 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()

    def to_cluster(self, features: Tensor) -> Tensor:
        """The vectors (n, d) that a codebook for features (B, H·W, d) starts from."""
        return features.float().flatten(0, 1)

    def bypass(self, features: Tensor) -> Quantized:
        """Features (…, d) projected but not quantised; the losses are 0."""
        z = self.project(features.float())
        nothing = self._zero()
        tokens = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
        return Quantized(z, tokens, z.detach(), nothing, nothing)

    @torch.no_grad()
    def initialize(self, features: Tensor, seed: int = 0) -> None:
        """Start from data: mini-batch k-means over encoder features (n, d), n ≥ K."""
        from sklearn.cluster import MiniBatchKMeans

        z = self.project(features.float()).cpu()
        size = len(self.weight)
        generator = torch.Generator().manual_seed(seed)
        start = z[torch.randperm(len(z), generator=generator)[:size]]
        kmeans = MiniBatchKMeans(
            size, init=start.numpy(), n_init=1, max_iter=3, batch_size=4096, random_state=seed, reassignment_ratio=0
        )
        self.weight.copy_(torch.from_numpy(kmeans.fit(z.numpy()).cluster_centers_))
        self.age.zero_()

    @torch.no_grad()
    def restart_dead(self, features: Tensor, dead_after: int, generator: torch.Generator) -> Tensor:
        """Put codewords unused for more than `dead_after` steps onto random features (n, d).

        Returns the indices of the restarted codewords, at most n of them.
        """
        dead = (self.age > dead_after).nonzero().squeeze(1)[: len(features)]
        chosen = torch.randperm(len(features), generator=generator)[: len(dead)]
        self.weight[dead] = self.project(features[chosen.to(features.device)].to(self.weight))
        self.age.index_fill_(0, dead, 0)
        return dead


def count_tokens(counts: Tensor, tokens: Tensor, layout: Layout) -> None:
    """Add tokens (B, N) to counts (S, K) of each scale, in place."""
    for row, part in zip(counts, layout.slices, strict=True):
        found = tokens[:, part].flatten()
        row.index_add_(0, found, torch.ones_like(found))


def codebook_use(counts: Tensor) -> dict[str, float]:
    """`usage` and `perplexity` of counts (S, K): over all scales and, where there are several, of each from 0."""
    parts = {"": counts.sum(0)}
    if len(counts) > 1:
        parts |= {f"_scale_{scale}": row for scale, row in enumerate(counts)}
    measures = {"usage": usage, "perplexity": perplexity}
    return {name + scale: measure(row) for name, measure in measures.items() for scale, row in parts.items()}


def usage(counts: Tensor) -> float:
    """Fraction of codewords used at least once, from counts (K,)."""
    return (counts > 0).float().mean().item()


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of the token distribution, from counts (K,): K when all are used equally."""
    p = counts.double() / counts.sum()
    return math.exp(torch.special.entr(p).sum().item())
