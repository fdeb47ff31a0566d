"""The codebook inside the tokenizer: nearest codeword, straight-through gradient, and its health."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What quantisation gives: `vectors` and `tokens` have the shape of the input, less the last axis for tokens."""

    vectors: Tensor  # (…, d), codewords with the straight-through gradient
    tokens: Tensor  # (…) int64
    features: Tensor  # (…, d), what was quantised: projected, detached
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
            if self.training:
                self.age += 1
                self.age[tokens.flatten()] = 0
            losses = F.mse_loss(e, z.detach()), F.mse_loss(z, e.detach())
            return Quantized(z + (e - z).detach(), tokens, z.detach(), *losses)

    def bypass(self, features: Tensor) -> Quantized:
        """Features (…, d) projected but not quantised; the losses are 0 and touch every parameter, as DDP asks."""
        z = self.project(features.float())
        nothing = 0.0 * self.weight.sum()
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
        self.age[dead] = 0
        return dead


def usage(counts: Tensor) -> float:
    """Fraction of codewords used at least once, from counts (K,)."""
    return (counts > 0).float().mean().item()


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of the token distribution, from counts (K,): K when all are used equally."""
    p = counts.double() / counts.sum()
    return math.exp(torch.special.entr(p).sum().item())
