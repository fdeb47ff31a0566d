import numpy as np
import pytest
import torch

from ctf.images.pixels import to_bytes
from ctf.tokenizer import VQTokenizer
from ctf.tokenizer.paint import paint
from ctf.tokenizer.pretrained import load_tokenizer


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
    together = paint(tokenizer, tokens, (4, 6), dtype)
    assert together.shape == (7, 32, 48, 3)
    for threads in (1, 2, 3):
        set_threads(threads)
        assert np.array_equal(paint(tokenizer, tokens, (4, 6), dtype), together)
        assert torch.get_num_threads() == threads
    for i in range(7):
        assert np.array_equal(paint(tokenizer, tokens[i : i + 1], (4, 6), dtype)[0], together[i])


def test_it_is_the_decoder(tokenizer, tokens):
    decoded = to_bytes(tokenizer.decode(tokens, (4, 6))).astype(int)
    assert np.abs(paint(tokenizer, tokens, (4, 6), torch.float32) - decoded).max() <= 1
    assert np.abs(paint(tokenizer, tokens, (4, 6), torch.bfloat16) - decoded).mean() < 2
