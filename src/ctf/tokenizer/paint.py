"""From tokens to pictures, many at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ctf.images.pixels import to_bytes
from ctf.tokenizer.vq_tokenizer import VQTokenizer

#: Images that the decoder paints together: enough to keep a GPU busy, few enough that their activations stay small.
ON_GPU = 8
#: Cores that paint, an image each.
CORES = 16


def painted_together(device: str) -> int:
    """How many images of a large batch are painted at the same time on a device of this type."""
    return min(torch.get_num_threads(), CORES) if device == "cpu" else ON_GPU


def paint(tokenizer: VQTokenizer, tokens: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> np.ndarray:
    """Tokens int64 (B, N) → images uint8 (B, H, W, 3); convolutions in `dtype`.

    On a CPU each image is painted alone by one core. That is as fast as all cores on a batch, and rounding then
    depends neither on the batch nor on the number of cores: an image is the same to the last bit.
    """
    device = tokens.device.type

    @torch.inference_mode()
    def decode(part: Tensor) -> np.ndarray:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return to_bytes(tokenizer.decode(part, grid))

    together = painted_together(device)
    if device != "cpu":
        return np.concatenate([decode(part) for part in tokens.split(together)])
    return np.concatenate(_on_one_core_each(decode, tokens.split(1), together))


def _on_one_core_each(
    decode: Callable[[Tensor], np.ndarray], parts: tuple[Tensor, ...], cores: int
) -> list[np.ndarray]:
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        painted = list(pool.map(decode, parts))
    torch.set_num_threads(threads)  # the limit is a thread's own, but later threads would start with it
    return painted
