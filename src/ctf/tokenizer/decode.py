"""From tokens to 8-bit images, many at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ctf.images.pixels import to_bytes
from ctf.tokenizer.interface import Tokenizer

#: Images that a GPU decodes together: enough to keep it busy, few enough that their activations stay small.
ON_GPU = 8
#: CPU cores that decode, an image each.
CORES = 16
#: PyTorch's number of threads belongs to the whole process: one batch at a time changes it.
THREADS = Lock()


def decoded_together(device_type: str) -> int:
    """How many images of a large batch are decoded at the same time on a device of this type."""
    return min(torch.get_num_threads(), CORES) if device_type == "cpu" else ON_GPU


def decode_images(tokenizer: Tokenizer, tokens: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> np.ndarray:
    """Tokens int64 (B, N) → images uint8 (B, H, W, 3); convolutions in `dtype`.

    On a CPU each image is decoded alone by one core. That is as fast as all cores on a batch, and rounding then
    depends neither on the batch nor on the number of cores: an image is the same to the last bit.
    """
    device = tokens.device.type

    @torch.inference_mode()
    def decode(part: Tensor) -> np.ndarray:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return to_bytes(tokenizer.decode(part, grid))

    if device != "cpu":
        return np.concatenate([decode(part) for part in tokens.split(decoded_together(device))])
    with THREADS:
        threads, cores = torch.get_num_threads(), decoded_together(device)
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return np.concatenate(list(pool.map(decode, tokens.split(1))))
        finally:
            torch.set_num_threads(threads)  # the limit is a thread's own, but later threads would start with it
