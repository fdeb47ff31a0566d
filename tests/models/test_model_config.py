import dataclasses

import pytest
import torch

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models import MODEL_SIZES, Compute, Transformer, TransformerConfig

VALID = {
    "input_vocab": 8,
    "output_vocab": 8,
    "layout": Layout((2, 3)),
    "num_classes": 5,
    "layers": 1,
    "heads": 2,
    "dim": 16,
}


@pytest.mark.parametrize(("size", "vocab", "millions"), [("B", 16_384, 110.9), ("B", 512, 86.5), ("L", 16_384, 343)])
def test_published_parameter_counts(size, vocab, millions):
    config = TransformerConfig.of_size(
        size, input_vocab=vocab, output_vocab=vocab, layout=Layout.square(16), num_classes=1000
    )
    with torch.device("meta"):
        model = Transformer(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1 if size == "B" else 0) == millions


def test_every_size_is_valid():
    for size in MODEL_SIZES:
        config = TransformerConfig.of_size(size, input_vocab=8, output_vocab=8, layout=Layout.square(2), num_classes=1)
        assert config.ffn_dim % 256 == 0
        assert 0 <= config.ffn_dim - config.dim * 8 / 3 < 256


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_block_weights_are_those_of_the_products(kv_heads):
    config = TransformerConfig(**VALID | {"layers": 2, "heads": 4, "kv_heads": kv_heads})
    linears = [module for module in Transformer(config).blocks.modules() if isinstance(module, torch.nn.Linear)]
    assert config.block_weights == sum(linear.weight.numel() for linear in linears)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_vocab": 0},
        {"input_vocab": 0, "given_vocab": 4},
        {"input_vocab": 0, "given_vocab": 0, "attention": "full"},
        {"given_vocab": -1},
        {"num_classes": 0},
        {"layers": 0},
        {"heads": -2},
        {"dim": 0},
        {"dim": 18},
        {"dim": 12},
        {"kv_heads": 0},
        {"kv_heads": -1},
        {"heads": 4, "kv_heads": 3},
        {"ffn_multiple": 0},
        {"output_vocab": 9},
        {"output_vocab": 9, "attention": "groups"},
        {"input_vocab": 6, "output_vocab": 4, "attention": "full"},
        {"input_vocab": 0, "given_vocab": 4, "attention": "groups"},
        {"dropout": 1.5},
        {"class_dropout": -0.1},
        {"attention": "bidirectional"},
    ],
)
def test_impossible_sizes_are_refused(wrong):
    TransformerConfig(**VALID)
    with pytest.raises(InputError, match="model: "):
        TransformerConfig(**VALID | wrong)


def test_an_unknown_size_lists_those_that_exist():
    with pytest.raises(InputError, match=r"'G' does not exist: choose one of nano, .*3B"):
        TransformerConfig.of_size("G")


def test_a_layout_from_json_is_equal_to_the_original():
    config = TransformerConfig(**VALID)
    assert dataclasses.replace(config, layout=[[2, 3]]) == config


@pytest.mark.parametrize(
    ("dtype", "device", "used"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_a_gpu_computes_in_bfloat16_by_default(dtype, device, used):
    compute = Compute(dtype, decoder_dtype="bfloat16", compile=True)
    resolved = compute.on(torch.device(device))
    assert resolved.torch_dtype == used
    assert dataclasses.replace(resolved, dtype=dtype) == compute  # nothing else changes


@pytest.mark.parametrize(("name", "value"), [("dtype", "float16"), ("quantize", "int4"), ("decoder_dtype", "auto")])
def test_unknown_choices_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} '{value}' does not exist: choose one of"):
        Compute(**{name: value})
