"""TokenWriter: a token set written shard by shard, to be continued after an interruption."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ctf.errors import InputError
from ctf.files import atomic_path, check_writable, fingerprint, write_npy
from ctf.images.sources import numbered_classes
from ctf.tokenizer.interface import square_grid
from ctf.tokens.token_set import TokenIndex, TokenSet, check_range, labels_path, tokens_path


class TokenWriter:
    """Writes a token set to a folder.

    A shard is written as soon as it holds at least `shard_size` images, after the `add` that filled it; then
    the index is. What was added since the last whole shard is lost in an interruption: a new writer with
    the same settings continues after that shard, and `consumed` says how many inputs it need not see again.

        writer = TokenWriter(folder, TokenIndex(codebook_size=512, grid=[16, 16], …))
        for tokens, labels in stream_from(writer.consumed):
            writer.add(tokens, labels)
        writer.close()

    Args:
        folder: where to write; made with the first shard if missing.
        settings: an index of which only the settings count.

    Raises:
        InputError: the folder cannot be written, or holds a token set with other settings; the message names them.
    """

    def __init__(self, folder: str | Path, settings: TokenIndex) -> None:
        self.folder = Path(folder)
        self.index = dataclasses.replace(settings, shards=[], skipped=[], complete=False)
        self._tokens: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._skipped: list[str] = []
        if (self.folder / "index.json").exists():
            self.index = TokenIndex.load(self.folder)
            check_same_settings(self.folder, self.index, settings)
        else:
            check_writable(self.folder, "folder")

    @property
    def complete(self) -> bool:
        """Whether nothing is left to write."""
        return self.index.complete

    @property
    def consumed(self) -> int:
        """Inputs that the whole shards cover: the images in them and the unreadable ones between."""
        return self.index.num_images + len(self.index.skipped)

    @property
    def skipped(self) -> list[str]:
        """Names of all unreadable inputs so far."""
        return self.index.skipped + self._skipped

    def add(self, tokens: np.ndarray | Tensor, labels: np.ndarray | Tensor, skipped: Sequence[str] = ()) -> None:
        """Append the next images of the input.

        Args:
            tokens: integers [b, A, N] in [0, K).
            labels: integers [b] in [0, number of classes).
            skipped: names of inputs that could not be read, met since the last call.

        Raises:
            InputError: the set is complete, or shape, type or range are wrong.
        """
        if self.complete:
            raise InputError(f"{self.folder} is a complete token set: choose another folder or delete this one")
        tokens, labels = np.asarray(tokens), np.asarray(labels)
        shape = (len(labels), len(self.index.augmentations), self.index.num_tokens)
        if tokens.shape != shape or labels.ndim != 1 or tokens.dtype.kind not in "iu" or labels.dtype.kind not in "iu":
            raise InputError(
                f"tokens {tokens.dtype} {list(tokens.shape)} with labels {labels.dtype} {list(labels.shape)}: "
                f"{self.folder} takes integer tokens [b, {shape[1]}, {shape[2]}] and integer labels [b]"
            )
        size = self.index.codebook_size
        check_range(tokens, size, f"tokens for {self.folder}", "codebook size")
        check_range(labels, len(self.index.class_names), f"labels for {self.folder}", "number of classes")
        self._tokens.append(tokens.astype(np.min_scalar_type(size - 1)))
        self._labels.append(labels.astype(np.int64))
        self._skipped += skipped
        if sum(map(len, self._labels)) >= self.index.shard_size:
            self._flush()

    def close(self, skipped: Sequence[str] = ()) -> TokenSet:
        """Write what is left, mark the set complete and open it; `skipped` as in `add`.

        Raises:
            InputError: no image was added.
        """
        if not self.complete:
            self._skipped += skipped
            if sum(map(len, self._labels)):
                self._flush()
            if not self.index.num_images:
                raise InputError(f"{self.folder}: there were no images to write tokens of")
            self.index.skipped, self._skipped = self.skipped, []
            self.index.complete = True
            self.index.save(self.folder)
        return TokenSet.open(self.folder)

    def _flush(self) -> None:
        tokens, labels = np.concatenate(self._tokens), np.concatenate(self._labels)
        stem = f"{len(self.index.shards):05d}"
        for path, array in (tokens_path(self.folder, stem), tokens), (labels_path(self.folder, stem), labels):
            with atomic_path(path) as temporary:
                write_npy(temporary, array)
        self.index.shards.append({"stem": stem, "count": len(labels)})
        self.index.skipped = self.skipped
        self.index.save(self.folder)
        self._tokens, self._labels, self._skipped = [], [], []


def check_same_settings(folder: Path, found: TokenIndex, wanted: TokenIndex) -> None:
    """InputError that names the differences, if there are any."""
    differences = [
        f"{name} is {shorten(value)} there and {shorten(wanted.settings[name])} here"
        for name, value in found.settings.items()
        if value != wanted.settings[name]
    ]
    if differences:
        raise InputError(
            f"{folder} holds {'a' if found.complete else 'an incomplete'} token set with other settings: "
            f"{'; '.join(differences)}. Choose another folder or delete this one"
        )


def shorten(value: object) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" …")


def write_token_set(
    folder: str | Path,
    tokens: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    codebook_size: int,
    grid: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    augmentations: Sequence[str] | None = None,
    codebook: Tensor | None = None,
    source: str | None = None,
    split: str | None = None,
    image_size: int | None = None,
    shard_size: int = 8192,
) -> TokenSet:
    """Write tokens from elsewhere as a token set; what is not said here is as in `TokenIndex`.

    Args:
        folder: where to write; must not hold a token set.
        tokens: integers [n, A, N], or [n, N] for A = 1. A memory-mapped array is read shard by shard.
        labels: integers [n].
        codebook_size: K.
        grid: (h, w) with h·w = N; a square by default.
        class_names: by default "0", "1", … up to the largest label.
        augmentations: by default "none", or "0", "1", … if A > 1.
        codebook: [K, d], if known: `TokenSet.check_codebook` then tells it from others.

    Raises:
        InputError: the folder holds a token set; shapes, types or ranges are wrong; no images.
    """
    folder, labels = Path(folder), np.asarray(labels)
    if (folder / "index.json").exists():
        raise InputError(f"{folder} already holds a token set: choose another folder or delete this one")
    if tokens.ndim not in (2, 3) or labels.shape != tokens.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"tokens {list(tokens.shape)} with labels {labels.dtype} {list(labels.shape)}: "
            "give [n, A, N] or [n, N], and integers [n]"
        )
    if codebook is not None and len(codebook) != codebook_size:
        raise InputError(f"a codebook of {len(codebook)} for a codebook size of {codebook_size}: give the tokens' own")
    tokens = tokens if tokens.ndim == 3 else tokens[:, None]
    if augmentations is None:
        augmentations = ["none"] if tokens.shape[1] == 1 else [str(a) for a in range(tokens.shape[1])]
    settings = TokenIndex(
        codebook_size=codebook_size,
        grid=list(grid or square_grid(tokens.shape[2])),
        augmentations=list(augmentations),
        class_names=list(class_names or numbered_classes(int(labels.max(initial=0)) + 1)),
        shard_size=shard_size,
        codebook=None if codebook is None else fingerprint(codebook),
        source=source,
        split=split,
        image_size=image_size,
        inputs=len(tokens),
    )
    writer = TokenWriter(folder, settings)
    for start in range(0, len(tokens), shard_size):
        writer.add(tokens[start : start + shard_size], labels[start : start + shard_size])
    return writer.close()
