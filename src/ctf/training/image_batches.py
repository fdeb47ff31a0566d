"""Endless batches of training images, decoded ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from ctf.errors import InputError
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_tensor


class ImageBatches:
    """Batch s is a function of (seed, s): resuming at s gives what an uninterrupted run would see.

    Each epoch is a permutation of all images; a corrupt image is replaced by the one after it in the
    set, and counted in `images.skipped`.

    Args:
        images: what to draw from.
        batch_size: over all ranks together.
        seed: of the order and of the mirroring.
        flip: mirror half of the images.
        rank: this process gets the `rank`-th of `world` equal parts of each batch.
        world: number of processes.
    """

    def __init__(
        self, images: ImageSet, batch_size: int, seed: int, flip: bool = True, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.batch_size, self.seed, self.flip = images, batch_size, seed, flip
        self.rank, self.world = rank, world
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, step: int) -> Tensor:
        """float32 (batch_size / world, 3, H, W) in [-1, 1]."""
        part = self.batch_size // self.world
        positions = step * self.batch_size + self.rank * part + np.arange(part)
        batch = np.stack([read_or_next(self.images, self._index(int(position))) for position in positions])
        if self.flip:
            draws = np.random.default_rng([self.seed, 1, step]).random(self.batch_size)  # the same for any `world`
            mirrored = draws[self.rank * part : (self.rank + 1) * part] < 0.5
            batch[mirrored] = batch[mirrored, :, ::-1]
        return to_tensor(batch)

    def stream(self, start: int, ahead: int = 4, workers: int = 2) -> Iterator[Tensor]:
        """Batches `start`, `start` + 1, … without end, `ahead` of them decoded in advance."""
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[Future[Tensor]] = deque()
            while True:
                while len(pending) < ahead:
                    pending.append(pool.submit(self.__getitem__, start))
                    start += 1
                yield pending.popleft().result()

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.images))
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.images))
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1} | {epoch: order}
        return int(order[offset])


def read_or_next(images: ImageSet, index: int) -> np.ndarray:
    """Image `index`, or the first readable one after it in the set: uint8 (size, size, 3).

    Raises:
        InputError: a hundred in a row, or all of them, are corrupt.
    """
    tries = min(100, len(images))
    for offset in range(tries):
        try:
            return images.read((index + offset) % len(images))
        except InputError:
            continue
    raise InputError(f"{images.source}: {tries} images in a row are unreadable: mend or remove them")
