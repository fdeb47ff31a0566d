"""From tokens to 8-bit images, many at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctf.device import gpu_compiles
from ctf.images.pixels import to_bytes, to_uint8
from ctf.layout import Layout
from ctf.tokenizer.interface import Tokenizer

#: Images that a GPU decodes together: enough for the convolutions over 16 × 16 positions to fill it, few enough for a
#: VQ-16 to take 3 GiB at 256 × 256 pixels in bfloat16.
ON_GPU = 32
#: CPU cores that decode, an image each.
CORES = 16
#: PyTorch's number of threads belongs to the whole process: one batch at a time changes it.
THREADS = Lock()


def decoded_together(device_type: str) -> int:
    """How many images of a large batch are decoded at the same time on a device of this type."""
    return min(torch.get_num_threads(), CORES) if device_type == "cpu" else ON_GPU


def decode_images(tokenizer: Tokenizer, tokens: Tensor, layout: Layout, dtype: torch.dtype) -> np.ndarray:
    """Tokens int64 (B, N) → images uint8 (B, H, W, 3); convolutions in `dtype`.

    On a CPU each image is decoded alone by one core. That is as fast as all cores on a batch, and rounding then
    depends neither on the batch nor on the number of cores: an image is the same to the last bit.

    On a CUDA GPU `ON_GPU` images are decoded together, and the decoder is compiled, as the stages are, whatever
    `Compute.compile` says: norms, activations and casts between two convolutions are fused, and all of it stays in
    channels-last format, which GroupNorm leaves in eager mode.
    """
    if tokens.is_cuda:
        return _decode_on_gpu(tokenizer, tokens, layout, dtype)

    @torch.inference_mode()
    def decode(part: Tensor) -> np.ndarray:
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            return to_bytes(tokenizer.decode(part, layout))

    if tokens.device.type != "cpu":
        return np.concatenate([decode(part) for part in tokens.split(ON_GPU)])
    with THREADS:
        threads, cores = torch.get_num_threads(), decoded_together("cpu")
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return np.concatenate(list(pool.map(decode, tokens.split(1))))
        finally:
            torch.set_num_threads(threads)  # the limit is a thread's own, but later threads would start with it


def _decode_on_gpu(tokenizer: Tokenizer, tokens: Tensor, layout: Layout, dtype: torch.dtype) -> np.ndarray:
    """On a stream of high priority, beside what others run, such as the first stage of the next batch.

    A piece is copied to pinned memory while the next one is decoded; the host waits for the last copy only.
    """
    tokenizer.check_tokens(tokens, layout)
    decoding, copying = _streams(tokens.device)
    decoding.wait_stream(torch.cuda.current_stream(tokens.device))
    tokens.record_stream(decoding)
    pieces = []
    for part in tokens.split(ON_GPU):
        with torch.cuda.stream(decoding):
            images = decode_compiled(tokenizer, part, layout, dtype)
        copying.wait_stream(decoding)
        with torch.cuda.stream(copying):
            copy = torch.empty(images.shape, dtype=torch.uint8, pin_memory=True).copy_(images, non_blocking=True)
        pieces.append((images, copy))  # the images too: what is freed is overwritten, copied or not
    copying.record_event().synchronize()
    return np.concatenate([copy.numpy() for _, copy in pieces])  # pinned memory is for the next batch


@lru_cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """To decode and to copy on, for all calls: memory that was freed on a stream is used again on it only."""
    return torch.cuda.Stream(device, priority=-1), torch.cuda.Stream(device)


@torch.inference_mode()
def decode_compiled(tokenizer: Tokenizer, tokens: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Tokens int64 (b, N), checked, → images uint8 (b, H, W, 3); arguments as those of `decode_images`.

    One compilation serves every b, the only size that is dynamic. Dynamo keeps eight in a process, of one tokenizer
    each, or layout, or dtype; a ninth runs uncompiled.
    """
    # A copy, since Dynamo distinguishes views, and tensors made outside inference mode. It specialises on b = 1.
    batch = tokens.repeat(2 if len(tokens) == 1 else 1, 1)
    torch._dynamo.maybe_mark_dynamic(batch, 0)
    with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
        return _compiled()(tokenizer, batch, layout)[: len(tokens)]


@lru_cache
def _compiled() -> Any:
    return torch.compile(_decode, dynamic=False) if gpu_compiles() else _decode  # only what is marked is dynamic


def _decode(tokenizer: Tokenizer, tokens: Tensor, layout: Layout) -> Tensor:
    return to_uint8(tokenizer.decode_embeddings(tokenizer.embed(tokens), layout))
