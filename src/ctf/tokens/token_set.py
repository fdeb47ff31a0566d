"""TokenSet: the tokens of n images × A augmentations, memory-mapped; TokenBatches: what training sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ctf.errors import InputError
from ctf.files import fingerprint
from ctf.tokenizer.quantizer import perplexity, usage
from ctf.tokens.index import TokenIndex, labels_path, tokens_path


class TokenSet:
    """Tokens [n, A, N] and labels [n] of n images, read from a folder on demand: see `TokenSet.open`.

    Attributes:
        folder: where it lies.
        codebook_size: K; tokens are in [0, K).
        grid: (h, w), N = h·w.
        augmentations: the A names.
        class_names: the name of each label.
        labels: int64 [n].
        fingerprint_of_codebook: `ctf.files.fingerprint` of the tokenizer's codebook, or None if not known.
    """

    def __init__(self, folder: Path, index: TokenIndex, shards: list[np.ndarray], labels: np.ndarray) -> None:
        self.folder = folder
        self.index = index
        self.codebook_size = index.codebook_size
        self.grid = (index.grid[0], index.grid[1])
        self.augmentations = index.augmentations
        self.class_names = index.class_names
        self.fingerprint_of_codebook = index.codebook
        self.labels = labels
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard) for shard in shards[:-1]])

    @classmethod
    def open(cls, folder: str | Path) -> TokenSet:
        """Open a token set. Labels are read; tokens stay on disk until asked for and are not scanned (`verify` does).

        Raises:
            InputError: no such folder, not a token set, still incomplete, or a shard that is missing,
                truncated or does not agree with the index.
        """
        folder = Path(folder)
        index = TokenIndex.load(folder)
        if not index.complete:
            raise InputError(
                f"{folder} is incomplete ({index.num_images:,} images so far): "
                "run the command that writes it once more and it continues from there"
            )
        shape = (len(index.augmentations), index.num_tokens)
        tokens = [_read(tokens_path(folder, s["stem"]), (s["count"], *shape)) for s in index.shards]
        labels = [_read(labels_path(folder, s["stem"]), (s["count"],)) for s in index.shards]
        token_set = cls(folder, index, tokens, np.concatenate(labels).astype(np.int64))
        check_range(token_set.labels, token_set.num_classes, f"labels of {folder}", "number of classes")
        return token_set

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = f"{len(self)} images × {self.num_augmentations} augmentations × {self.num_tokens} tokens"
        return f"TokenSet({str(self.folder)!r}: {shape}, K = {self.codebook_size})"

    @property
    def num_tokens(self) -> int:
        """N, tokens per image."""
        return self.index.num_tokens

    @property
    def num_augmentations(self) -> int:
        """A."""
        return len(self.augmentations)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def gather(self, indices: ArrayLike, augmentations: ArrayLike = 0) -> Tensor:
        """Tokens of images `indices` [b] in [0, n) under `augmentations` [b], or one for all: int64 [b, N]."""
        indices = np.asarray(indices)
        augmentations = np.broadcast_to(augmentations, indices.shape)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        tokens = np.empty((len(indices), self.num_tokens), np.int64)
        for shard in np.unique(shard_of):
            rows = np.flatnonzero(shard_of == shard)
            tokens[rows] = self._shards[shard][indices[rows] - self._starts[shard], augmentations[rows]]
        return torch.from_numpy(tokens)

    def blocks(self, block_size: int = 1024) -> Iterator[Tensor]:
        """All tokens in the order of `labels`, as int64 [b, A, N] with b ≤ `block_size`."""
        for shard in self._shards:
            for start in range(0, len(shard), block_size):
                yield torch.from_numpy(shard[start : start + block_size].astype(np.int64))

    def token_counts(self) -> Tensor:
        """How often each codeword occurs, over all images and augmentations: int64 [K]. Reads the whole set."""
        counts = torch.zeros(self.codebook_size, dtype=torch.int64)
        for block in self.blocks():
            counts += torch.bincount(block.flatten(), minlength=self.codebook_size)
        return counts

    def check_codebook(self, codebook: Tensor) -> None:
        """Make sure that the tokens belong to `codebook` [K, d]; of tokens from elsewhere only K is known.

        Raises:
            InputError: they belong to another codebook.
        """
        if len(codebook) != self.codebook_size:
            raise InputError(
                f"{self.folder} holds tokens of a codebook of {self.codebook_size}, this codebook has {len(codebook)}: "
                "tokenize again, or use the tokenizer that made the tokens"
            )
        if self.fingerprint_of_codebook not in (None, found := fingerprint(codebook)):
            raise InputError(
                f"{self.folder} was made with another codebook (fingerprint {self.fingerprint_of_codebook}, "
                f"this one has {found}): tokenize again, or use the tokenizer that made the tokens"
            )

    def verify(self) -> None:
        """Read every token.

        Raises:
            InputError: a token is not below K; the message names the shard.
        """
        for record, shard in zip(self.index.shards, self._shards, strict=True):
            check_range(shard, self.codebook_size, str(tokens_path(self.folder, record["stem"])), "codebook size")

    def describe(self) -> dict[str, Any]:
        """What the set holds, ready for JSON. Reads every token, for the codebook's usage and perplexity."""
        counts = self.token_counts()
        per_class = np.bincount(self.labels, minlength=self.num_classes)
        return {
            "images": len(self),
            "classes": self.num_classes,
            "images_per_class": {
                "min": int(per_class.min()),
                "median": float(np.median(per_class)),
                "max": int(per_class.max()),
            },
            "augmentations": self.augmentations,
            "grid": list(self.grid),
            "codebook_size": self.codebook_size,
            "codebook_usage": usage(counts),
            "codebook_perplexity": perplexity(counts),
            "codebook": self.fingerprint_of_codebook,
            "source": self.index.source,
            "split": self.index.split,
            "image_size": self.index.image_size,
            "skipped": len(self.index.skipped),
            "shards": len(self._shards),
            "bytes": sum(shard.nbytes for shard in self._shards),
        }


class TokenBatches:
    """Endless training batches with random access: `batches[step]` is (tokens int64 [b, N], labels int64 [b]).

    Batch `step` depends on the arguments and `step` alone, so a run resumed at step s sees what an
    uninterrupted one sees. The images form one endless stream, epoch after epoch, each in an order drawn
    from (seed, epoch), with one augmentation drawn uniformly per image; batch s of B images is the s-th
    cut of B. No image is left out or repeated within an epoch: a batch may end one epoch and begin the next.

    Args:
        token_set: what to draw from.
        batch_size: B, over all ranks together.
        seed: of the order and the augmentations, ≥ 0.
        rank: this process; it gets the `rank`-th of `world` equal parts of each batch.
        world: number of processes.

    Raises:
        InputError: `batch_size` is not a positive multiple of `world`.
    """

    def __init__(self, token_set: TokenSet, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1 or batch_size % world:
            raise InputError(
                f"batch size {batch_size} cannot be split over {world} processes: use a multiple of {world}"
            )
        self.token_set = token_set
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        part = self.batch_size // self.world
        positions = step * self.batch_size + self.rank * part + np.arange(part)
        epochs, offsets = np.divmod(positions, len(self.token_set))
        images, augmentations = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            order, augmentation = self._epoch(int(epoch))
            images[now], augmentations[now] = order[offsets[now]], augmentation[offsets[now]]
        return self.token_set.gather(images, augmentations), torch.from_numpy(self.token_set.labels[images])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the images and augmentation at each position, int64 [n] both; this and the last epoch are kept."""
        if epoch not in self._epochs:
            generator = np.random.default_rng([self.seed, epoch])
            n = len(self.token_set)
            drawn = generator.permutation(n), generator.integers(self.token_set.num_augmentations, size=n)
            self._epochs = {known: v for known, v in self._epochs.items() if known == epoch - 1} | {epoch: drawn}
        return self._epochs[epoch]


def check_range(values: np.ndarray, limit: int, what: str, limit_name: str) -> None:
    """InputError unless all integer `values` are in [0, limit)."""
    if values.size and (values.min() < 0 or values.max() >= limit):
        raise InputError(
            f"{what} range from {values.min()} to {values.max()}: the {limit_name} is {limit}, "
            f"so they must lie in 0 to {limit - 1}"
        )


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-map integers of the shape that the index promises."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore it or tokenize again") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is truncated or not an .npy file ({error}): restore it or tokenize again") from None
    if array.shape != shape or array.dtype.kind not in "iu":
        raise InputError(
            f"{path} holds {array.dtype} {list(array.shape)}, index.json says integers {list(shape)}: "
            "restore the shard that belongs to this set or tokenize again"
        )
    return array
