"""What `index.json` of a token set says, and the names of the files beside it.

A token set is a folder:

    index.json           this index
    tokens-00000.npy     [n_i, A, N], the smallest unsigned integers that hold K − 1
    labels-00000.npy     [n_i] int64
    tokens-00001.npy     …

The index lists whole shards only: a shard's two files are there before the index names it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ctf.errors import InputError
from ctf.files import existing, read_json, write_json

FORMAT = "ctf tokens"
VERSION = 1
PROGRESS = ("shards", "skipped", "complete")


class Shard(TypedDict):
    """One pair of files: `stem` is "00000" in `tokens-00000.npy`, `count` its number of images n_i."""

    stem: str
    count: int


@dataclass
class TokenIndex:
    """Settings of a token set, and how far its writing has come.

    Attributes:
        codebook_size: K; tokens are in [0, K).
        grid: [h, w] with N = h·w tokens per image, row by row.
        augmentations: A names, e.g. ["none", "flip"] or "1.1/top-left", …
        class_names: the name of each label.
        shard_size: images after which a shard is written.
        codebook: `ctf.files.fingerprint` of the tokenizer's codebook; None for tokens from elsewhere.
        source: where the images came from, in words; None if not known.
        split: which part of the source, e.g. "train"; None if it has no parts.
        image_size: pixels per side; None if not known.
        inputs: images in the source, unreadable ones included: a source that grew is another one.
        shards: the whole shards, in order.
        skipped: names of the input images that could not be read, among those that the shards cover.
        complete: False while the set is being written or after an interruption.
    """

    codebook_size: int
    grid: list[int]
    augmentations: list[str]
    class_names: list[str]
    shard_size: int
    codebook: str | None = None
    source: str | None = None
    split: str | None = None
    image_size: int | None = None
    inputs: int | None = None
    shards: list[Shard] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def num_tokens(self) -> int:
        """N = h·w."""
        return math.prod(self.grid)

    @property
    def num_images(self) -> int:
        return sum(shard["count"] for shard in self.shards)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the progress of writing."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in PROGRESS}

    def save(self, folder: Path) -> None:
        write_json(folder / "index.json", {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> TokenIndex:
        """Read `folder`/index.json.

        Raises:
            InputError: no such folder, not a token set, or one of a newer version.
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
            return cls(**values)
        except TypeError as error:
            raise InputError(f"{path} is damaged ({error}): restore it or tokenize again") from None


def tokens_path(folder: Path, stem: str) -> Path:
    return folder / f"tokens-{stem}.npy"


def labels_path(folder: Path, stem: str) -> Path:
    return folder / f"labels-{stem}.npy"
