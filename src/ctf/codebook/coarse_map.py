"""CoarseMap: which cluster each token belongs to, eq. 5–7, as a value that is saved with the models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.files import contents_of_kind, save_tensors
from ctf.fingerprint import fingerprint

FORMAT = "1"


@dataclass(frozen=True, eq=False)
class CoarseMap:
    """The mapping φ from K tokens to M coarse labels (paper, section 4.1), both counted from 0.

    All tensors are on the CPU; the methods that take tokens work on the tokens' device. Two maps are equal when
    they map the tokens of one codebook equally, however they were made.

    Attributes:
        fine_to_coarse: (K,) int64, φ; every label in [0, M) occurs.
        method: how the clusters were made: "kmeans", "balanced", "ward", "random", "kmeans, weighted", or any
            other words.
        seed: the seed that they were made with.
        codebook_fingerprint: `codebook_fingerprint` of the codebook that was clustered.

    Raises:
        InputError: `fine_to_coarse` is not one label per token with every cluster non-empty.
    """

    fine_to_coarse: Tensor
    method: str
    seed: int
    codebook_fingerprint: str

    def __post_init__(self) -> None:
        labels = self.fine_to_coarse
        if labels.ndim != 1 or not len(labels) or labels.is_floating_point():
            raise InputError(
                f"a coarse map holds one integer label per token, not {labels.dtype} of shape {tuple(labels.shape)}"
            )
        labels = labels.detach().to("cpu", torch.int64).contiguous()
        # Labels of K or more leave a cluster empty, too; testing them first keeps `bincount` small.
        if int(labels.min()) < 0 or int(labels.max()) >= len(labels) or not bool(labels.bincount().all()):
            raise InputError("a coarse map's labels must be 0 … M − 1, each one used: number the clusters again")
        object.__setattr__(self, "fine_to_coarse", labels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CoarseMap):
            return NotImplemented
        same_codebook = self.codebook_fingerprint == other.codebook_fingerprint
        return same_codebook and torch.equal(self.fine_to_coarse, other.fine_to_coarse)

    def __hash__(self) -> int:
        return hash((self.codebook_fingerprint, self.fine_to_coarse.numpy().tobytes()))

    @property
    def num_fine(self) -> int:
        """K, the number of tokens."""
        return len(self.fine_to_coarse)

    @property
    def num_coarse(self) -> int:
        """M, the number of clusters."""
        return len(self.sizes)

    @cached_property
    def sizes(self) -> Tensor:
        """(M,) int64, the number of tokens in each cluster."""
        return self.fine_to_coarse.bincount()

    @cached_property
    def order(self) -> Tensor:
        """(K,) int64, all tokens: cluster by cluster, ascending within each."""
        return self.fine_to_coarse.argsort(stable=True)

    @cached_property
    def starts(self) -> Tensor:
        """(M,) int64, where each cluster begins in `order`."""
        return self.sizes.cumsum(0) - self.sizes

    @cached_property
    def index_in_cluster(self) -> Tensor:
        """(K,) int64, the position of each token among the members of its cluster."""
        index = torch.empty_like(self.order)
        index[self.order] = torch.arange(self.num_fine) - self.starts.repeat_interleave(self.sizes)
        return index

    @cached_property
    def member_table(self) -> Tensor:
        """(M, S) int64, the tokens of each cluster ascending, then its last token again as padding.

        S is the size of the largest cluster.
        """
        offsets = torch.arange(int(self.sizes.max())).minimum(self.sizes[:, None] - 1)  # (M, S)
        return self.order[self.starts[:, None] + offsets]

    def members(self, m: int) -> Tensor:
        """The tokens of cluster m, ascending: (sizes[m],) int64.

        Raises:
            InputError: m is not in [0, M).
        """
        if not 0 <= m < self.num_coarse:
            raise InputError(f"cluster {m}: this coarse map has the clusters 0 … {self.num_coarse - 1}")
        return self.order[self.starts[m] : self.starts[m] + self.sizes[m]]

    def means(self, codebook: Tensor) -> Tensor:
        """The mean codeword of each cluster: codebook (K, d) → (M, d), of its dtype and on its device."""
        return cluster_means(codebook.detach().cpu(), self.fine_to_coarse).to(codebook.device)

    def to_coarse(self, tokens: Tensor) -> Tensor:
        """φ(tokens), eq. 7: integers of any shape in [0, K) → int64 of the same shape, in [0, M).

        Raises:
            InputError: a token is out of range, or the tokens are not integers.
        """
        return self.fine_to_coarse.to(tokens.device)[self._checked(tokens)]  # Cᵢ = φ(Tᵢ), eq. 7

    def swap_within_cluster(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Replace each token by a uniformly random other one of its cluster (Fig. 1b); one that is alone stays.

        Integers of any shape in [0, K) → int64 of the same shape. The result depends on the tokens and the
        generator's state only.

        Raises:
            InputError: a token is out of range, or the tokens are not integers.
        """
        tokens = self._checked(tokens)
        device = tokens.device
        coarse = self.fine_to_coarse.to(device)[tokens]
        sizes = self.sizes.to(device)[coarse]
        # In float64, u < 1 gives ⌊u · n⌋ < n for every n, and no member is favoured measurably.
        u = torch.rand(tokens.shape, generator=generator, device=generator.device, dtype=torch.float64).to(device)
        step = 1 + (u * (sizes - 1)).long()  # 1 … size − 1 places further, counted in a circle
        offset = (self.index_in_cluster.to(device)[tokens] + step) % sizes
        return self.order.to(device)[self.starts.to(device)[coarse] + offset]

    def coarsened_by(self, other: CoarseMap) -> CoarseMap | None:
        """The map ψ from this map's M labels to the coarser ones of `other`, so that φ_other = ψ ∘ φ_self.

        None where there is none: a cluster of this map lies in several of `other`'s, or `other` maps the tokens of
        another codebook. ψ has `other`'s method, seed and fingerprint.
        """
        if (self.num_fine, self.codebook_fingerprint) != (other.num_fine, other.codebook_fingerprint):
            return None
        coarser = other.fine_to_coarse[self.order[self.starts]]  # (M,), `other`'s label of each cluster's first token
        if not torch.equal(coarser[self.fine_to_coarse], other.fine_to_coarse):
            return None
        return CoarseMap(coarser, other.method, other.seed, other.codebook_fingerprint)

    def check_codebook(self, codebook: Tensor) -> None:
        """Refuse a codebook (K, d) other than the one that was clustered.

        Raises:
            InputError: its size or its fingerprint differs.
        """
        found = codebook_fingerprint(codebook)
        if len(codebook) != self.num_fine:
            problem = f"for {self.num_fine} codewords, this codebook has {len(codebook)}"
        elif found != self.codebook_fingerprint:
            problem = f"for another codebook (fingerprint {self.codebook_fingerprint}, this one has {found})"
        else:
            return
        raise InputError(f"this coarse map was made {problem}: cluster this codebook with `ctf cluster`")

    def save(self, path: str | Path) -> None:
        """Write the map to one safetensors file; labels take the smallest signed integer type."""
        fits = (t for t in (torch.int8, torch.int16, torch.int32, torch.int64) if torch.iinfo(t).max >= self.num_coarse)
        metadata = {
            "ctf": "coarse_map",
            "format": FORMAT,
            "method": self.method,
            "seed": str(self.seed),
            "num_fine": str(self.num_fine),
            "num_coarse": str(self.num_coarse),
            "codebook_fingerprint": self.codebook_fingerprint,
        }
        save_tensors(path, {"fine_to_coarse": self.fine_to_coarse.to(next(fits))}, metadata)

    @classmethod
    def load(cls, path: str | Path, codebook: Tensor | None = None) -> CoarseMap:
        """Read what `save` wrote; with a codebook (K, d), make sure that the map belongs to it.

        Raises:
            InputError: missing, truncated, not a coarse map, or made for another codebook.
        """
        with contents_of_kind(path, "coarse_map") as (tensors, metadata):
            if (version := metadata["format"]) != FORMAT:
                raise InputError(f"it has format {version}, this version reads format {FORMAT}: update ctf")
            coarse_map = cls(
                tensors["fine_to_coarse"], metadata["method"], int(metadata["seed"]), metadata["codebook_fingerprint"]
            )
            if metadata["num_coarse"] != str(coarse_map.num_coarse) or metadata["num_fine"] != str(coarse_map.num_fine):
                raise InputError("the labels do not agree with the K and M written beside them")
            if codebook is not None:
                coarse_map.check_codebook(codebook)
        return coarse_map

    def _checked(self, tokens: Tensor) -> Tensor:
        """The tokens as int64, all in [0, K)."""
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise InputError(f"tokens are {tokens.dtype}, they must be integers in [0, {self.num_fine})")
        tokens = tokens.long()
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.num_fine):
            raise InputError(
                f"tokens range from {int(tokens.min())} to {int(tokens.max())}, this coarse map has {self.num_fine}"
            )
        return tokens


def cluster_means(points: Tensor, labels: Tensor, masses: Tensor | None = None) -> Tensor:
    """(K, d), (K,) labels of M non-empty clusters, (K,) masses or equal ones → (M, d), summed in float64."""
    weighted = points.double() if masses is None else points.double() * masses[:, None]
    sizes = labels.bincount(masses)
    sums = torch.zeros(len(sizes), points.shape[1], dtype=torch.float64).index_add_(0, labels, weighted)
    return (sums / sizes[:, None]).to(points.dtype)


def codebook_fingerprint(codebook: Tensor) -> str:
    """16 hexadecimal digits for a codebook (K, d), of its values in float32."""
    return fingerprint(codebook.float())
