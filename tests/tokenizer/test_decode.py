import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._inductor.decomposition import select_decomp_table

from ctf.errors import InputError
from ctf.images.pixels import to_bytes
from ctf.layout import Layout
from ctf.tokenizer import VQTokenizer, decode
from ctf.tokenizer.decode import decode_compiled, decode_images
from ctf.tokenizer.registry import load_tokenizer

LAYOUT = Layout((4, 6))


@pytest.fixture(scope="module")
def tokenizer() -> VQTokenizer:
    return load_tokenizer("emoji")


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return torch.randint(tokenizer.config.codebook_size, (7, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_depend_neither_on_the_batch_nor_on_the_cores(tokenizer, tokens, set_threads, dtype):
    together = decode_images(tokenizer, tokens, LAYOUT, dtype)
    assert together.shape == (7, 32, 48, 3)
    for threads in (1, 2, 3):
        set_threads(threads)
        assert np.array_equal(decode_images(tokenizer, tokens, LAYOUT, dtype), together)
        assert torch.get_num_threads() == threads
    for i in range(7):
        assert np.array_equal(decode_images(tokenizer, tokens[i : i + 1], LAYOUT, dtype)[0], together[i])


def test_it_is_the_decoder(tokenizer, tokens):
    decoded = to_bytes(tokenizer.decode(tokens, LAYOUT)).astype(int)
    assert np.abs(decode_images(tokenizer, tokens, LAYOUT, torch.float32) - decoded).max() <= 1
    assert np.abs(decode_images(tokenizer, tokens, LAYOUT, torch.bfloat16) - decoded).mean() < 2


def test_two_threads_decode_at_once(tokenizer, tokens, set_threads, monkeypatch):
    set_threads(3)
    alone = decode_images(tokenizer, tokens, LAYOUT, torch.float32)
    decode_one, started = tokenizer.decode, Event()
    monkeypatch.setattr(tokenizer, "decode", lambda *arguments: started.set() or decode_one(*arguments))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(decode_images, tokenizer, tokens, LAYOUT, torch.float32)
        started.wait()  # until it has set the number of threads
        second = pool.submit(decode_images, tokenizer, tokens, LAYOUT, torch.float32)
        assert all(np.array_equal(decoded.result(), alone) for decoded in (first, second))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3  # a new thread's: this one has its own


def test_the_number_of_threads_outlives_an_error(tokenizer, set_threads):
    set_threads(2)
    with pytest.raises(InputError, match="the codebook has"):
        decode_images(tokenizer, torch.full((2, 24), -1), LAYOUT, torch.float32)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


# --- compiled, as a GPU decodes ---


@pytest.fixture
def compiled_by(monkeypatch):
    """Compile with this backend, the whole decoder as one graph."""

    def compiled_by(backend):
        torch.compiler.reset()
        whole = torch.compile(decode._decode, dynamic=False, fullgraph=True, backend=backend)
        monkeypatch.setattr(decode, "_compiled", lambda: whole)

    yield compiled_by
    torch.compiler.reset()


def test_one_compilation_serves_all_pieces(compiled_by, make_tokenizer):
    """Whatever part of a batch they are, drawn in inference mode or not. At 16 images a CPU takes other kernels."""
    compiled_by(counter := CompileCounter())
    tokenizer = make_tokenizer()
    tokens = torch.randint(24, (15, 6), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        drawn = tokens.clone()
    for batch in (tokens, drawn):
        for piece in (*batch.split(7), batch[5:8], batch[:1], batch):
            found = decode_compiled(tokenizer, piece, Layout((2, 3)), torch.float32).numpy()
            expected = to_bytes(tokenizer.decode(piece, Layout((2, 3))))
            assert found.shape == expected.shape
            assert np.abs(found.astype(int) - expected).max() <= 1
    assert counter.frame_count == 1


DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_convolution_is_channels_last(compiled_by, tokenizer, tokens, device, dtype):
    """In the graph that Inductor is given, whose convolutions keep the format of their inputs."""
    formats = []

    def see(graph, inputs):
        nodes = [node for node in graph.graph.nodes if node.target is torch.ops.aten.convolution.default]
        images = [node.meta["val"] for node in nodes for node in (node, node.args[0])]
        formats.extend(image.is_contiguous(memory_format=torch.channels_last) for image in images)
        assert {image.dtype for image in images} == {dtype}
        return graph

    compiled_by(aot_autograd(fw_compiler=see, decompositions=select_decomp_table()))
    decode_compiled(copy.deepcopy(tokenizer).to(device), tokens.to(device), LAYOUT, dtype)
    modules = [module for part in tokenizer.decoder_parts() for module in part.modules()]
    assert len(formats) == 2 * sum(isinstance(module, torch.nn.Conv2d) for module in modules)
    assert all(formats)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 32, 70])
def test_a_gpu_decodes_what_a_cpu_decodes(tokenizer, count):
    tokens = torch.randint(tokenizer.codebook_size, (count, 24), generator=torch.Generator().manual_seed(1))
    expected = decode_images(tokenizer, tokens, LAYOUT, torch.float32).astype(int)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = decode_images(copy.deepcopy(tokenizer).cuda(), tokens.cuda(), LAYOUT, torch.float32)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


@pytest.mark.gpu
def test_a_gpu_waits_for_tokens_on_any_stream(tokenizer):
    """Threads decode at once, each from tokens that its own stream is still computing."""
    tokenizer = copy.deepcopy(tokenizer).cuda()
    alone = [torch.full((70, 24), i, device="cuda") for i in range(8)]
    expected = [decode_images(tokenizer, tokens, LAYOUT, torch.float32).astype(int) for tokens in alone]

    def decode_late(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.eye(2048, device="cuda")
            for _ in range(50):
                x = x @ x
            return decode_images(tokenizer, (x[:70, :1].sum(0) * i).long().expand(70, 24), LAYOUT, torch.float32)

    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(decode_late, range(8)), expected, strict=True):
            assert np.abs(found - right).max() <= 1


@pytest.mark.gpu
def test_a_gpu_refuses_tokens_out_of_range(tokenizer):
    with pytest.raises(InputError, match="the codebook has"):
        decode_images(copy.deepcopy(tokenizer).cuda(), torch.full((2, 24), -1).cuda(), LAYOUT, torch.float32)
