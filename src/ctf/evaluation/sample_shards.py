"""Batches of a sample set on their way: a file each, written by one process or several, whatever is killed when."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from ctf.errors import InputError
from ctf.evaluation.manifest import Manifest
from ctf.files import atomic_path


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started; alone without it.

    Attributes:
        rank: from 0; 0 leads: it alone speaks and puts the batches together.
        count: how many there are.
        parent: torchrun's process id.
    """

    rank: int
    count: int
    parent: int

    @classmethod
    def here(cls) -> Processes:
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), os.getppid())

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def check_launcher(self) -> None:
        """Raises InputError if torchrun, which would end this process if another failed, is gone itself."""
        if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != self.parent:
            raise InputError("torchrun was ended: run the same command again, finished batches are kept")


def own_device(device: str) -> str:
    """ "cuda" is another GPU for each process on a machine; any other name is what it says."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device


class Shards:
    """The folder `<out>.parts`: a manifest, and a file for each finished batch.

    Batch k holds the images from k · batch_size on, whoever computes it: numbers may differ in the last bit with the
    composition of a batch, so batches are never cut anew.

    Raises:
        InputError: the folder holds batches of other samples; the message names what differs.
    """

    def __init__(self, out: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = self.folder_of(out), manifest
        path = self.folder / "manifest.json"
        if path.exists() and (differences := manifest.differences(Manifest.load(path))):
            raise InputError(
                f"{self.folder} holds unfinished samples with other settings: {'; '.join(differences)}. "
                "Choose another --out or delete the parts"
            )

    @staticmethod
    def folder_of(out: Path) -> Path:
        return Path(f"{out}.parts")

    def __len__(self) -> int:
        return -(-self.manifest.count // self.manifest.batch_size)

    def path(self, k: int) -> Path:
        return self.folder / f"batch-{k:06d}.npy"

    def images(self, k: int) -> range:
        """The indices of the images of batch k."""
        start = k * self.manifest.batch_size
        return range(start, min(start + self.manifest.batch_size, self.manifest.count))

    def finished(self) -> int:
        """How many images are there, whoever made them."""
        there = set(os.listdir(self.folder)) if self.folder.exists() else set()
        return sum(len(self.images(k)) for k in range(len(self)) if self.path(k).name in there)

    def add(self, k: int, images: np.ndarray) -> None:
        """Write batch k, uint8 (b, H, W, 3), atomically."""
        # Not earlier than with the first batch, so that settings which the pipeline refuses leave nothing behind.
        if not (self.folder / "manifest.json").exists():
            self.manifest.save(self.folder / "manifest.json")
        encoded = BytesIO()  # numpy's own way into a file does not say that the disk is full
        np.save(encoded, images)
        with atomic_path(self.path(k)) as temporary:
            temporary.write_bytes(encoded.getbuffer())

    def batches(self) -> Iterator[np.ndarray]:
        """All batches in order.

        Raises:
            InputError: one is damaged, as after a power cut.
        """
        for k in range(len(self)):
            try:
                yield np.load(self.path(k))
            except (EOFError, ValueError):
                raise InputError(f"{self.path(k)} is damaged: delete it and run the same command again") from None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
