import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctf.errors import InputError
from ctf.models import Transformer, TransformerConfig
from ctf.pipeline import Pipeline
from ctf.sampling import memory
from ctf.sampling.memory import block_weights, sampling_memory
from ctf.sampling.packed import KeyValueCache, PackedTransformer
from ctf.tokenizer import TokenizerConfig

B = TransformerConfig.of_size("B", input_vocab=16_384, output_vocab=16_384, grid=(16, 16), num_classes=1000)


def test_predicted_peak_is_within_a_tenth_of_the_measured_one():
    script = Path(__file__).with_name("peak_memory.py")
    done = subprocess.run([sys.executable, script, "128"], capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout.splitlines()[-1])
    assert peak["predicted"] == pytest.approx(peak["measured"], rel=0.1)


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_parts_are_what_the_tensors_take(kv_heads):
    settings = {"grid": (4, 4), "num_classes": 3, "layers": 2, "heads": 4, "dim": 32, "kv_heads": kv_heads}
    config = TransformerConfig(input_vocab=7, output_vocab=7, **settings)
    model = Transformer(config)
    products = [m.weight.numel() for block in model.blocks for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert block_weights(config) == sum(products)

    cache = KeyValueCache(config, 10, torch.device("cpu"), torch.bfloat16)
    predicted = sampling_memory(5, TokenizerConfig(), config, dtype=torch.bfloat16)
    assert predicted.decoding == sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) + 5 * 7 * 18
    assert predicted.packed == 2 * (sum(products) + 7 * 32)

    int8 = PackedTransformer(model, 10, quantize="int8")
    stored = sum(layer.weight.numel() for block in int8.blocks for layer in (block.qkv, block.out, block.w13, block.w2))
    assert sampling_memory(5, TokenizerConfig(), config, quantize="int8").packed == stored + 7 * 32


def test_a_gpu_keeps_float32_weights_and_its_recorded_cache():
    cpu, gpu = (sampling_memory(64, TokenizerConfig(), B, device=device) for device in ("cpu", "cuda"))
    assert (cpu.packed, gpu.packed) == (4 * (block_weights(B) + 16_384 * 768), 0)
    assert cpu.peak == memory.LIBRARIES + cpu.packed + cpu.decoding
    assert gpu.peak == memory.LIBRARIES + gpu.decoding + gpu.painting


@pytest.fixture
def pipeline_of_size_b(monkeypatch, make_pipeline):
    """Asks for memory as GPT-B with VQ-16 does: 0.66 GiB for one image, 2.7 GiB for 64."""
    monkeypatch.setattr(Pipeline, "memory", lambda self, batch, cfg_scale: sampling_memory(batch, TokenizerConfig(), B))
    return make_pipeline("baseline")


@pytest.mark.parametrize(("free", "expected"), [(0.9, 1), (1.5, 16), (3.0, 32), (100.0, 256)])
def test_largest_batch_takes_at_most_four_fifths(monkeypatch, pipeline_of_size_b, free, expected):
    monkeypatch.setattr("ctf.pipeline.available_memory", lambda device: free * 2**30)
    batch = pipeline_of_size_b.largest_batch()
    assert batch == expected
    assert sampling_memory(batch, TokenizerConfig(), B).peak <= 0.8 * free * 2**30
    assert batch == 256 or sampling_memory(2 * batch, TokenizerConfig(), B).peak > 0.8 * free * 2**30


def test_no_room_for_one_image(monkeypatch, pipeline_of_size_b):
    monkeypatch.setattr("ctf.pipeline.available_memory", lambda device: 2**28)
    with pytest.raises(InputError, match=r"one image takes 0\.7 GiB and 0\.2 GiB are free"):
        pipeline_of_size_b.largest_batch()
