from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ctf.errors import InputError
from ctf.images.pixels import to_bytes
from ctf.tokenizer import VQTokenizer
from ctf.tokenizer.decode import decode_images
from ctf.tokenizer.registry import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> VQTokenizer:
    return load_tokenizer("emoji")


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return torch.randint(tokenizer.config.codebook_size, (7, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def set_threads():
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_depend_neither_on_the_batch_nor_on_the_cores(tokenizer, tokens, set_threads, dtype):
    together = decode_images(tokenizer, tokens, (4, 6), dtype)
    assert together.shape == (7, 32, 48, 3)
    for threads in (1, 2, 3):
        set_threads(threads)
        assert np.array_equal(decode_images(tokenizer, tokens, (4, 6), dtype), together)
        assert torch.get_num_threads() == threads
    for i in range(7):
        assert np.array_equal(decode_images(tokenizer, tokens[i : i + 1], (4, 6), dtype)[0], together[i])


def test_it_is_the_decoder(tokenizer, tokens):
    decoded = to_bytes(tokenizer.decode(tokens, (4, 6))).astype(int)
    assert np.abs(decode_images(tokenizer, tokens, (4, 6), torch.float32) - decoded).max() <= 1
    assert np.abs(decode_images(tokenizer, tokens, (4, 6), torch.bfloat16) - decoded).mean() < 2


def test_two_threads_decode_at_once(tokenizer, tokens):
    threads = torch.get_num_threads()
    alone = decode_images(tokenizer, tokens, (4, 6), torch.float32)
    with ThreadPoolExecutor(2) as pool:
        for decoded in pool.map(lambda _: decode_images(tokenizer, tokens, (4, 6), torch.float32), range(4)):
            assert np.array_equal(decoded, alone)
    assert torch.get_num_threads() == threads


def test_the_number_of_threads_outlives_an_error(tokenizer, set_threads):
    set_threads(2)
    with pytest.raises(InputError, match="the codebook has"):
        decode_images(tokenizer, torch.full((2, 24), -1), (4, 6), torch.float32)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
