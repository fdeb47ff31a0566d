"""TokenSet: the tokens of n images × A augmentations, memory-mapped from a folder.

    index.json           a `TokenIndex`
    tokens-00000.npy     [n_i, A, N], the smallest unsigned integers that hold K − 1
    labels-00000.npy     [n_i] int64
    tokens-00001.npy     …

While the set is being written there is also `shard-00000.json` for each finished shard, and the index lists none yet.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ctf.classes import composed, renumbered
from ctf.codebook.coarse_map import codebook_fingerprint
from ctf.errors import InputError, first_line
from ctf.files import existing, read_json, write_json
from ctf.layout import Layout, with_layout
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.quantizer import perplexity, usage

FORMAT = "ctf tokens"
VERSION = 1
PROGRESS = ("shards", "skipped", "complete")
LARGEST_CODEBOOK = 1 << 24


@dataclass
class TokenIndex:
    """Settings of a token set and, once it is complete, its shards.

    Attributes:
        codebook_size: K; tokens are in [0, K).
        layout: where the N tokens of an image lie.
        augmentations: A names, e.g. ["none", "flip"] or "1.1/top-left", …
        class_names: the name of each label, in Unicode's form NFC.
        shard_size: shard i is what is readable of this many inputs, from i · shard_size on.
        codebook: `ctf.fingerprint.fingerprint` of the tokenizer's codebook; None for tokens from elsewhere.
        residual: `residual_fingerprint` of the tokenizer; None with one scale, or for tokens from elsewhere.
        source: where the images came from, in words; None if not known.
        split: which part of the source, e.g. "train"; None if it has no parts.
        image_size: pixels per side; None if not known.
        inputs: images in the source, unreadable ones included: a source that grew is another one.
        files: a fingerprint of names, sizes and times: a source whose files changed is another one; None if not known.
        shards: those that hold images, in order: {"stem": "00000", "count": n_i}.
        skipped: names of the input images that could not be read.
        complete: False while the set is being written or after an interruption.

    Raises:
        InputError: a size below 1, or values that no writer writes.
    """

    codebook_size: int
    layout: Layout
    augmentations: list[str]
    class_names: list[str]
    shard_size: int
    codebook: str | None = None
    residual: str | None = None
    source: str | None = None
    split: str | None = None
    image_size: int | None = None
    inputs: int | None = None
    files: str | None = None
    shards: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    complete: bool = False

    def __post_init__(self) -> None:
        self.layout = Layout(self.layout)
        sizes = self.codebook_size, self.shard_size, *(shard["count"] for shard in self.shards)
        names = *self.augmentations, *self.class_names, *self.skipped, *(shard["stem"] for shard in self.shards)
        numbers = *sizes, *(number for number in (self.image_size, self.inputs) if number is not None)
        known = self.codebook, self.residual, self.source, self.split, self.files
        texts = *names, *(text for text in known if text is not None)
        lists = self.augmentations, self.class_names, self.skipped
        if (
            not all(isinstance(number, int) for number in numbers)
            or not all(isinstance(text, str) for text in texts)
            or any(isinstance(values, str) for values in lists)
        ):
            raise InputError("sizes are whole numbers, and names are strings")
        if min(sizes) < 1 or self.codebook_size > LARGEST_CODEBOOK:
            raise InputError(
                f"codebook size {self.codebook_size}, shard size {self.shard_size}: "
                f"give whole numbers from 1, and a codebook size of at most {LARGEST_CODEBOOK:,}"
            )
        self.class_names = [composed(name) for name in self.class_names]

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that are fixed before writing begins."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in PROGRESS}

    def save(self, folder: Path) -> None:
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None or k != "residual"}
        write_json(folder / "index.json", {"format": FORMAT, "version": VERSION, **values})

    @classmethod
    def load(cls, folder: Path) -> TokenIndex:
        """Read `folder`/index.json.

        Raises:
            InputError: no such folder, not a token set, damaged, or one of a newer version.
        """
        existing(folder, "token set")
        path = folder / "index.json"
        if not path.exists():
            raise InputError(f"{folder} is not a token set (it has no index.json): make one with `ctf tokenize`")
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise InputError(f"{path} is not the index of a token set: make one with `ctf tokenize`")
        if (version := values.pop("version", None)) != VERSION:
            raise InputError(f"{path} is of version {version}, this ctf reads version {VERSION}: update ctf")
        try:
            return cls(**with_layout(values))
        except (TypeError, KeyError, InputError) as error:
            raise InputError(f"{path} is damaged ({error}): restore it or tokenize again") from None


class TokenSet:
    """Tokens [n, A, N] and labels [n] of n images in a folder, read on demand; `TokenSet.open` opens one.

    Attributes:
        folder: where it lies.
        codebook_size: K; tokens are in [0, K).
        layout: where the N tokens of an image lie.
        augmentations: the A names.
        class_names: the name of each label.
        labels: int64 [n].
        fingerprint_of_codebook: `ctf.fingerprint.fingerprint` of the tokenizer's codebook, or None if not known.
    """

    def __init__(self, folder: Path, index: TokenIndex, shards: list[np.ndarray], labels: np.ndarray) -> None:
        self.folder = folder
        self.index = index
        self.codebook_size = index.codebook_size
        self.layout = index.layout
        self.augmentations = index.augmentations
        self.class_names = index.class_names
        self.fingerprint_of_codebook = index.codebook
        self.labels = labels
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard) for shard in shards[:-1]])

    @classmethod
    def open(cls, folder: str | Path) -> TokenSet:
        """Open a token set. Labels are read; tokens stay on disk and are checked when they are read.

        Raises:
            InputError: no such folder, not a token set, still incomplete, or a shard that is missing,
                truncated or does not agree with the index.
        """
        folder = Path(folder)
        index = TokenIndex.load(folder)
        if not index.complete:
            raise InputError(
                f"{folder} is incomplete ({len(list(folder.glob('shard-*.json')))} shards so far): "
                "run the command that writes it once more and it continues from there"
            )
        if not index.shards:
            raise InputError(f"{folder} has no images: delete it and tokenize again")
        shape = (len(index.augmentations), index.layout.num_tokens)
        tokens = [read_integers(tokens_path(folder, s["stem"]), (s["count"], *shape), "r") for s in index.shards]
        labels = [read_integers(labels_path(folder, s["stem"]), (s["count"],)) for s in index.shards]
        token_set = cls(folder, index, tokens, np.concatenate(labels).astype(np.int64))
        check_range(token_set.labels, token_set.num_classes, f"labels of {folder}", "number of classes")
        return token_set

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        return f"{self.folder}: {len(self):,} images × {self.num_augmentations} × {self.num_tokens} tokens"

    def __repr__(self) -> str:
        return f"TokenSet({self})"

    @property
    def num_tokens(self) -> int:
        """N, tokens per image."""
        return self.layout.num_tokens

    @property
    def num_augmentations(self) -> int:
        """A, the number of augmentations."""
        return len(self.augmentations)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def in_classes(self, class_names: list[str], other: str) -> TokenSet:
        """The same tokens with labels that count in `class_names`, matched by name; `other` says whose they are.

        Raises:
            InputError: images of a class that is not among them.
        """
        if class_names == self.class_names:
            return self
        matched = copy.copy(self)
        matched.labels = renumbered(self.labels, self.class_names, class_names, str(self.folder), other)
        matched.class_names = class_names
        return matched

    @property
    def images_per_class(self) -> np.ndarray:
        """int64 [number of classes]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def plain(self) -> int:
        """The augmentation that changes least: none, or the centre of ten crops or shifts."""
        plain = [name for name in self.augmentations if name.split("/")[-1] in ("none", "center")]
        return self.augmentations.index(min(plain)) if plain else 0  # "1.05/center" < "1.1/center"

    def gather(self, indices: ArrayLike, augmentations: ArrayLike | None = None) -> Tensor:
        """Tokens of images `indices` [b] in [0, n) under `augmentations` [b], one for all, or `plain`: int64 [b, N].

        Raises:
            InputError: a shard holds a token that is not below K; the message names it.
        """
        indices = np.asarray(indices)
        augmentations = np.broadcast_to(self.plain if augmentations is None else augmentations, indices.shape)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        tokens = np.empty((len(indices), self.num_tokens), np.int64)
        for shard in np.unique(shard_of):
            rows = np.flatnonzero(shard_of == shard)
            tokens[rows] = self._shards[shard][indices[rows] - self._starts[shard], augmentations[rows]]
        if not in_range(tokens, self.codebook_size):  # once a batch, since batches of large sets touch many shards
            for shard in np.unique(shard_of):
                self._check(shard, tokens[shard_of == shard])
        return torch.from_numpy(tokens)

    def blocks(self, block_size: int = 1024) -> Iterator[Tensor]:
        """All tokens in the order of `labels`, as int64 [b, A, N] with b ≤ `block_size`. Raises as `gather` does."""
        for number, shard in enumerate(self._shards):
            for start in range(0, len(shard), block_size):
                block = shard[start : start + block_size].astype(np.int64)
                self._check(number, block)
                yield torch.from_numpy(block)

    def _check(self, shard: int, tokens: np.ndarray) -> None:
        """Refuse tokens of a shard that are out of range."""
        path = tokens_path(self.folder, self.index.shards[shard]["stem"])
        check_range(tokens, self.codebook_size, f"tokens of {path}", "codebook size")

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
        found = codebook_fingerprint(codebook)
        if len(codebook) != self.codebook_size:
            problem = f"holds tokens of a codebook of {self.codebook_size}, this codebook has {len(codebook)}"
        elif self.fingerprint_of_codebook not in (None, found):
            known = self.fingerprint_of_codebook
            problem = f"was made with another codebook (fingerprint {known}, this one has {found})"
        else:
            return
        raise InputError(f"{self.folder} {problem}: tokenize again, or use the tokenizer that made the tokens")

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """As `check_codebook`, and that convolutions between scales are those that made the tokens, where known."""
        self.check_codebook(tokenizer.codebook)
        if self.index.residual not in (None, tokenizer.residual_fingerprint):
            raise InputError(
                f"{self.folder} was made with other convolutions between scales: use the tokenizer that made the tokens"
            )

    def describe(self) -> dict[str, Any]:
        """What the set holds, ready for JSON. Reads every token, for the codebook's usage and perplexity."""
        counts = self.token_counts()
        per_class = self.images_per_class
        settings = ("augmentations", "layout", "codebook_size", "codebook", "source", "split", "image_size")
        return {
            "images": len(self),
            "classes": self.num_classes,
            "images_per_class": {
                "min": int(per_class.min()),
                "median": float(np.median(per_class)),
                "max": int(per_class.max()),
            },
            **{name: getattr(self.index, name) for name in settings},
            "codebook_usage": usage(counts),
            "codebook_perplexity": perplexity(counts),
            "skipped": len(self.index.skipped),
            "shards": len(self._shards),
            "bytes": sum(shard.nbytes for shard in self._shards),
        }


def tokens_path(folder: Path, stem: str) -> Path:
    return folder / f"tokens-{stem}.npy"


def labels_path(folder: Path, stem: str) -> Path:
    return folder / f"labels-{stem}.npy"


def in_range(values: np.ndarray, limit: int) -> bool:
    """Whether all integer `values` are in [0, limit)."""
    return not values.size or bool(values.min() >= 0 and values.max() < limit)


def check_range(values: np.ndarray, limit: int, what: str, limit_name: str) -> None:
    """InputError unless all integer `values` are in [0, limit)."""
    if not in_range(values, limit):
        raise InputError(
            f"{what} range from {values.min()} to {values.max()}: the {limit_name} is {limit}, "
            f"so they must lie in 0 to {limit - 1}"
        )


def read_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array in an .npy file, without unpickling.

    Raises:
        InputError: missing, truncated, or not such a file.
    """
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore it or make it again") from None
    except Exception as error:  # a damaged header fails with whatever it happens to hit
        reason = first_line(error)
        raise InputError(f"{path} is truncated or not an .npy file ({reason}): copy or make it again") from None
    if not isinstance(array, np.ndarray):  # a zip file of arrays
        raise InputError(f"{path} is not an .npy file but an archive of arrays: give one array")
    return array


def read_integers(path: Path, shape: tuple[int, ...], mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The integers in an .npy file. Raises InputError as `read_npy`, or where they are not of this shape."""
    array = read_npy(path, mmap_mode)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise InputError(
            f"{path} holds {array.dtype} {list(array.shape)}, expected integers {list(shape)}: copy or make it again"
        )
    return array
