"""TokenWriter: a token set written in shards that do not depend on each other."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ctf.codebook.coarse_map import codebook_fingerprint
from ctf.errors import InputError
from ctf.files import atomic_path, check_writable, read_json, write_json, write_npy
from ctf.images.records import numbered_classes
from ctf.layout import Layout, square_layout
from ctf.tokens.token_set import TokenIndex, TokenSet, check_range, labels_path, read_integers, tokens_path


class TokenWriter:
    """Writes a token set to a folder: its shards in any order, by any number of processes.

    Shard i holds what is readable of `shard_size` inputs, from i · `shard_size` on, so its bytes do not depend on who
    writes it and when. It is finished once `shard-<i>.json` lies beside its two files; `close` completes the index
    when all are. After an interruption a new writer with the same settings has only the missing shards to write.

        writer = TokenWriter(folder, TokenIndex(codebook_size=512, layout=Layout.square(16), inputs=50_000, …))
        for shard in writer.missing():
            writer.add(shard, *tokens_and_labels(writer.inputs(shard)))
        writer.close()

    Args:
        folder: where to write; made with the first shard if missing.
        settings: an index of which only the settings count; `inputs` must be among them.

    Raises:
        InputError: the folder cannot be written, or holds a token set with other settings; the message names them.
    """

    def __init__(self, folder: str | Path, settings: TokenIndex) -> None:
        if settings.inputs is None:
            raise InputError(f"{folder}: a token set is cut into shards by the number of its inputs: give it")
        self.folder = Path(folder)
        self.index = dataclasses.replace(settings, shards=[], skipped=[], complete=False)
        self._num_inputs = settings.inputs
        if not self._is_begun():
            check_writable(self.folder, "folder")

    def __len__(self) -> int:
        """The number of shards, including those without one readable input."""
        return -(-self._num_inputs // self.index.shard_size)

    @property
    def complete(self) -> bool:
        """Whether this process or another has closed the set."""
        return self._is_begun() and TokenIndex.load(self.folder).complete

    def inputs(self, shard: int) -> range:
        """The inputs that a shard covers."""
        start = shard * self.index.shard_size
        return range(start, min(start + self.index.shard_size, self._num_inputs))

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """The shards of process `rank` of `world` that are not finished."""
        missing = [shard for shard in range(rank, len(self), world) if self._finished(shard) is None]
        return [] if self.complete else missing  # read last: closing removes `shard-<i>.json`

    def is_finished(self, shard: int) -> bool:
        """Whether this process or another has written the shard."""
        return self._finished(shard) is not None or self.complete

    def written(self, shard: int) -> int:
        """When a finished shard that holds images was written, in ns."""
        return tokens_path(self.folder, _stem(shard)).stat().st_mtime_ns

    def begin(self) -> None:
        """Write the index, again if a process began it that does not know the files."""
        if not self._is_begun() or (self.index.files and TokenIndex.load(self.folder).files is None):
            self.index.save(self.folder)

    def add(
        self, shard: int, tokens: np.ndarray | Tensor, labels: np.ndarray | Tensor, skipped: Sequence[str] = ()
    ) -> None:
        """Write a shard.

        Args:
            shard: its number.
            tokens: integers [b, A, N] in [0, K).
            labels: integers [b] in [0, number of classes).
            skipped: names of the shard's other inputs, which could not be read.

        Raises:
            InputError: the set is complete, or number, shape, type or range are wrong.
        """
        if self.complete:
            raise InputError(f"{self.folder} is a complete token set: choose another folder or delete this one")
        tokens, labels = np.asarray(tokens), np.asarray(labels)
        shape = (len(labels), *self._shape)
        if tokens.shape != shape or labels.ndim != 1 or tokens.dtype.kind not in "iu" or labels.dtype.kind not in "iu":
            raise InputError(
                f"tokens {tokens.dtype} {list(tokens.shape)} with labels {labels.dtype} {list(labels.shape)}: "
                f"{self.folder} takes integer tokens [b, {shape[1]}, {shape[2]}] and integer labels [b]"
            )
        if len(labels) + len(skipped) != len(self.inputs(shard)):
            raise InputError(
                f"{len(labels)} images and {len(skipped)} unreadable ones for shard {shard} of {self.folder}: "
                f"give all of its {len(self.inputs(shard))}"
            )
        size = self.index.codebook_size
        check_range(tokens, size, f"tokens for {self.folder}", "codebook size")
        check_range(labels, len(self.index.class_names), f"labels for {self.folder}", "number of classes")
        self.begin()
        if len(labels):
            _save(tokens_path(self.folder, _stem(shard)), tokens.astype(np.min_scalar_type(size - 1), copy=False))
            _save(labels_path(self.folder, _stem(shard)), labels.astype(np.int64, copy=False))
        write_json(self._record(shard), {"count": len(labels), "skipped": list(skipped)})

    def close(self) -> TokenSet:
        """Write the index of the finished shards and open the set.

        Raises:
            InputError: a shard is missing, no image was readable, or another process wrote other settings.
        """
        if not self.complete:
            records = [self._finished(shard) for shard in range(len(self))]
            found = {_stem(shard): record for shard, record in enumerate(records) if record is not None}
            if len(found) < len(self):
                raise InputError(f"{self.folder} has {len(found)} of {len(self)} shards: write the others first")
            shards = [{"stem": stem, "count": record["count"]} for stem, record in found.items() if record["count"]]
            if not shards:
                raise InputError(f"{self.folder}: there were no images to write tokens of")
            skipped = [name for record in found.values() for name in record["skipped"]]
            dataclasses.replace(self.index, shards=shards, skipped=skipped, complete=True).save(self.folder)
        # With the temporary files of processes that were killed.
        for path in [*self.folder.glob("shard-*.json"), *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        return TokenSet.open(self.folder)

    def remove(self) -> None:
        """Delete the index and the shards, and nothing else of the folder."""
        (self.folder / "index.json").unlink(missing_ok=True)
        for shard in range(len(self)):
            self._record(shard).unlink(missing_ok=True)
            for path_of in (tokens_path, labels_path):
                path_of(self.folder, _stem(shard)).unlink(missing_ok=True)

    @property
    def _shape(self) -> tuple[int, int]:
        """(A, N)."""
        return len(self.index.augmentations), self.index.layout.num_tokens

    def _record(self, shard: int) -> Path:
        return self.folder / f"shard-{_stem(shard)}.json"

    def _is_begun(self) -> bool:
        """Whether the folder holds this set, complete or not; InputError if it holds another one."""
        if not (self.folder / "index.json").exists():
            return False
        check_same_settings(self.folder, TokenIndex.load(self.folder), self.index)
        return True

    def _finished(self, shard: int) -> dict[str, Any] | None:
        """The count and the skipped names of a finished shard; None if it is missing or damaged, as by a power cut."""
        if not self._record(shard).exists():
            return None
        try:
            record = read_json(self._record(shard))
            if count := record["count"]:
                read_integers(tokens_path(self.folder, _stem(shard)), (count, *self._shape), "r")
                read_integers(labels_path(self.folder, _stem(shard)), (count,))
        except InputError:
            return None
        return record


def _stem(shard: int) -> str:
    return f"{shard:05d}"


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        write_npy(temporary, array)


def check_same_settings(folder: Path, found: TokenIndex, wanted: TokenIndex) -> None:
    """InputError that names the differences, if there are any."""
    theirs, ours = found.settings, wanted.settings
    differences = [
        f"{name} is {shorten(value)} there and {shorten(ours[name])} here"
        for name, value in theirs.items()
        if value != ours[name] and name != "files" and (name, value) != ("residual", None)
    ]
    if differences:
        raise InputError(
            f"{folder} holds {'a' if found.complete else 'an incomplete'} token set with other settings: "
            f"{'; '.join(differences)}. Choose another folder or delete this one"
        )
    if found.files != wanted.files and None not in (found.files, wanted.files):
        raise InputError(
            f"{folder} holds tokens of {found.source} as it was: names, sizes or dates of its files have changed "
            f"since. Choose another folder, or delete {folder} to tokenize again"
        )


def known_codebook(codebook: Tensor | None, size: int) -> str | None:
    """The fingerprint of a codebook [K, d], if there is one. Raises InputError: it has not K = `size` codewords."""
    if codebook is None:
        return None
    if len(codebook) != size:
        raise InputError(f"a codebook of {len(codebook)} for a codebook size of {size}: give the tokens' own")
    return codebook_fingerprint(codebook)


def shorten(value: object) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" …")


def write_token_set(
    folder: str | Path,
    tokens: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    codebook_size: int,
    layout: Layout | None = None,
    class_names: Sequence[str] | None = None,
    augmentations: Sequence[str] | None = None,
    codebook: Tensor | None = None,
    source: str | None = None,
    split: str | None = None,
    image_size: int | None = None,
    shard_size: int = 8192,
) -> TokenSet:
    """Write tokens from elsewhere as a token set; the other arguments are fields of `TokenIndex`.

    Args:
        folder: where to write; must not hold a token set.
        tokens: integers [n, A, N], or [n, N] for A = 1. A memory-mapped array is read shard by shard.
        labels: integers [n].
        codebook_size: K.
        layout: where the N tokens of an image lie; a square by default.
        class_names: by default "0", "1", … up to the largest label.
        augmentations: by default "none", or "0", "1", … if A > 1.
        codebook: [K, d], if known: `TokenSet.check_codebook` then tells it from others.

    Raises:
        InputError: the folder holds a token set; shapes, types or ranges are wrong; no images.
    """
    folder, labels = Path(folder), np.asarray(labels)
    if (folder / "index.json").exists():
        part = "a" if TokenIndex.load(folder).complete else "part of a"
        raise InputError(f"{folder} already holds {part} token set: choose another folder or delete this one")
    if tokens.ndim not in (2, 3) or labels.shape != tokens.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"tokens {list(tokens.shape)} with labels {labels.dtype} {list(labels.shape)}: "
            "give [n, A, N] or [n, N], and integers [n]"
        )
    if tokens.ndim == 3 and tokens.shape[1] == tokens.shape[2] > 1 and layout is None and augmentations is None:
        raise InputError(
            f"tokens {list(tokens.shape)} may be a square of tokens, or augmentations: give [n, N], or the layout"
        )
    tokens = tokens if tokens.ndim == 3 else tokens[:, None]
    if augmentations is None:
        augmentations = ["none"] if tokens.shape[1] == 1 else [str(a) for a in range(tokens.shape[1])]
    settings = TokenIndex(
        codebook_size=codebook_size,
        layout=layout or square_layout(tokens.shape[2]),
        augmentations=list(augmentations),
        class_names=list(class_names or numbered_classes(int(labels.max(initial=0)) + 1)),
        shard_size=shard_size,
        codebook=known_codebook(codebook, codebook_size),
        source=source,
        split=split,
        image_size=image_size,
        inputs=len(tokens),
    )
    writer = TokenWriter(folder, settings)
    try:
        for shard in writer.missing():
            rows = writer.inputs(shard)
            writer.add(shard, tokens[rows.start : rows.stop], labels[rows.start : rows.stop])
        return writer.close()
    except BaseException:  # half a set would be in the way of the next try
        writer.remove()
        raise
