"""Endless training batches with random access: stored tokens, and images that threads decode ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.images.crop import Crop, center_crop, random_crop
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_tensor
from ctf.images.urls import UnreachableError
from ctf.tokens.token_set import TokenSet
from ctf.training.objective import Batch

T = TypeVar("T")


class EpochSampler:
    """The images of batch s, which depend on the arguments and s alone: a run resumed at s sees the same batches as an
    uninterrupted one.

    Epoch after epoch forms one endless stream of images, each epoch shuffled by (key, epoch). Batch s holds the images
    s·B to (s + 1)·B − 1 of the stream. Each image occurs once in an epoch: a batch may end one epoch and begin the
    next.

    Args:
        num_images: n.
        batch_size: B, over all ranks together: a multiple of `world`, as the loop checks.
        key: integers ≥ 0 that the order depends on.
        rank: number of this process, which gets the `rank`-th of `world` equal parts of each batch.
        world: number of processes.
        choices: A; each image gets a uniform random number in [0, A) in each epoch.
    """

    def __init__(
        self, num_images: int, batch_size: int, key: list[int], rank: int, world: int, choices: int = 1
    ) -> None:
        self.num_images, self.batch_size, self.key, self.choices = num_images, batch_size, key, choices
        self.part = np.arange(batch_size).reshape(world, -1)[rank]  # [b] indices of this rank in a batch
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's images of batch `step` and their choices: int64 [b] both."""
        epochs, offsets = np.divmod(step * self.batch_size + self.part, self.num_images)
        images, choices = np.empty_like(epochs), np.empty_like(epochs)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            order, choice = self._epoch(int(epoch))
            images[now], choices[now] = order[offsets[now]], choice[offsets[now]]
        return images, choices

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng([*self.key, epoch])
        return generator.permutation(self.num_images), generator.integers(self.choices, size=self.num_images)


class TokenBatches:
    """`batches[step]` is (tokens int64 [b, N], labels int64 [b]), with a random augmentation per image and epoch.

    Args:
        token_set: the training tokens.
        batch_size, rank, world: as `EpochSampler`'s.
        seed: of the order and the augmentations, ≥ 0.
    """

    def __init__(self, token_set: TokenSet, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.token_set = token_set
        self.sampler = EpochSampler(len(token_set), batch_size, [seed], rank, world, token_set.num_augmentations)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        images, augmentations = self.sampler[step]
        return self.token_set.gather(images, augmentations), torch.from_numpy(self.token_set.labels[images])


class ImageBatches:
    """`batches[step]` is float32 (b, 3, H, W) in [-1, 1]. A corrupt image is replaced by the one after it in the set,
    and counted in `images.skipped`.

    Args:
        images: the training images.
        batch_size, rank, world: as `EpochSampler`'s.
        seed: of the order, the mirroring and the crops, ≥ 0.
        flip: mirror half of the images.
        crop: the `fraction` of `random_crop`; 0 takes the centre crop.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        seed: int,
        flip: bool = True,
        crop: float = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.seed, self.flip, self.crop = images, seed, flip, crop
        self.sampler = EpochSampler(len(images), batch_size, [seed, 0], rank, world)

    def __getitem__(self, step: int) -> Tensor:
        crops = [center_crop] * len(self.sampler.part)
        if self.crop:
            crops = [partial(random_crop, fraction=self.crop, draws=draws) for draws in self._uniforms(2, step, 3)]
        indices, _ = self.sampler[step]
        batch = np.stack([read_or_next(self.images, int(i), crop) for i, crop in zip(indices, crops, strict=True)])
        if self.flip:
            mirrored = self._uniforms(1, step, 1)[:, 0] < 0.5
            batch[mirrored] = batch[mirrored, :, ::-1]
        return to_tensor(batch)

    def _uniforms(self, purpose: int, step: int, count: int) -> np.ndarray:
        """Random numbers in [0, 1) for each image of batch `step`, (b, count), which do not depend on `world`."""
        generator = np.random.default_rng([self.seed, purpose, step])
        return generator.random((self.sampler.batch_size, count))[self.sampler.part]

    def stream(self, start: int) -> Iterator[Tensor]:
        """Batches `start`, `start` + 1, … without end; two threads decode four of them in advance."""
        return results_ahead((partial(self.__getitem__, step) for step in itertools.count(start)), 4, 2)


def on_device(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The batches on `device`. For a GPU a thread reads ahead into pinned memory, so that copies overlap with work."""
    if device.type == "cuda":
        calls = itertools.repeat(partial(_pinned, batches, device))
        batches = results_ahead(calls, 2, workers=1)
    for batch in batches:
        yield tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def _pinned(batches: Iterator[Batch], device: torch.device) -> Batch:
    with torch.cuda.device(device):  # a new thread would make a context on the first GPU
        return tuple(tensor.pin_memory() for tensor in next(batches))


def results_ahead(calls: Iterable[Callable[[], T]], count: int, workers: int) -> Generator[T, None, None]:
    """Results of endless calls, in order; threads compute `count` of them in advance."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for call in calls:
                pending.append(pool.submit(call))
                if len(pending) > count:
                    yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_or_next(images: ImageSet, index: int, crop: Crop = center_crop) -> np.ndarray:
    """Image `index`, or the first readable one after it in the set: uint8 (size, size, 3).

    Raises:
        InputError: a hundred in a row, or all of them, are corrupt.
    """
    tries = min(100, len(images))
    for offset in range(tries):
        try:
            return images.read((index + offset) % len(images), crop=crop)
        except UnreachableError:  # not corrupt: another run may read it, and would train on something else
            raise
        except InputError:
            continue
    raise InputError(f"{images.source}: {tries} images in a row are unreadable: fix or remove them")
