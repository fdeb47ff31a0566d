import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from ctf.errors import InputError
from ctf.models import Compute, PackedTransformer
from ctf.models.linear import Linear, PackedLinear
from ctf.models.transformer import compile_blocks

FLOAT32 = Compute("float32")
LABELS = torch.tensor([0, 5, 2])  # 5 is unconditional
#: Rows, and how often they are repeated.
HEIGHTS = [(3, 1), (2, 1), (3, 2), (2, 2)]
HEADS = pytest.mark.parametrize("kv_heads", [None, 2])


@torch.no_grad()
@HEADS
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("given_vocab", [0, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_steps_equal_the_whole_sequence(make_model, stepwise, tokens, given, kv_heads, rows, given_vocab, packed):
    model = make_model(kv_heads=kv_heads, given_vocab=given_vocab)
    repeats = -(-rows // 3)
    inputs = [x.repeat(repeats, *[1] * (x.ndim - 1))[:rows] for x in (tokens, LABELS, given)][: 3 if given_vocab else 2]
    steps = stepwise(PackedTransformer(model, FLOAT32) if packed else model, *inputs)
    torch.testing.assert_close(steps, model(*inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@HEADS
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_whole_sequences_equal_the_transformer(make_model, tokens, kv_heads, attention):
    model = make_model(attention=attention, kv_heads=kv_heads)
    packed = PackedTransformer(model, FLOAT32)
    torch.testing.assert_close(packed(tokens, LABELS), model(tokens, LABELS), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_its_head_a_packed_model_keeps_the_heads_weight(make_model):
    model = make_model(attention="full")
    packed = PackedTransformer(model, Compute("bfloat16"), head=False)
    assert torch.equal(packed.head.weight, model.head.weight)
    assert isinstance(packed.blocks[0].ffn.w13, PackedLinear)


@torch.no_grad()
@pytest.mark.parametrize(
    ("compute", "tolerance"),
    [(Compute("bfloat16"), 0.03), (Compute("float32", "int8"), 0.05), (Compute("bfloat16", "int8"), 0.06)],
    ids=str,
)
def test_converted_weights_are_close(make_model, stepwise, tokens, compute, tolerance):
    model = make_model()
    packed, exact = PackedTransformer(model, compute), model(tokens, LABELS)
    for logits in (stepwise(packed, tokens, LABELS), packed(tokens, LABELS).float()):
        assert 1e-4 < (logits - exact).norm() / exact.norm() < tolerance


@torch.no_grad()
def test_a_model_in_training_is_packed_without_dropout_and_goes_on_training(make_model, tokens):
    model = make_model(dropout=0.5, class_dropout=0.5)
    expected = model(tokens, LABELS)
    packed = PackedTransformer(model.train(), FLOAT32)
    torch.testing.assert_close(packed(tokens, LABELS), expected, rtol=1e-4, atol=1e-5)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_a_model_that_trains_compiled_is_packed_uncompiled(make_model, tokens):
    model = make_model(layers=1)
    expected = model(tokens, LABELS)
    compile_blocks(model)
    packed = PackedTransformer(model, FLOAT32)
    torch.testing.assert_close(packed(tokens, LABELS), expected, rtol=1e-4, atol=1e-5)
    assert model.blocks[0].compiled
    assert not packed.blocks[0].compiled


@torch.no_grad()
def test_weights_that_are_not_converted_are_shared_and_none_change(make_model):
    model = make_model(given_vocab=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = PackedTransformer(model, FLOAT32)
    for name in ("token_embedding", "given_embedding", "label_embedding", "norm"):
        assert getattr(packed, name).weight.data_ptr() == getattr(model, name).weight.data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model.blocks[0].attention.qkv, nn.Linear)


@torch.no_grad()
def test_packed_weights_do_not_follow_the_model(make_model, tokens):
    model = make_model()
    packed = PackedTransformer(model, FLOAT32)
    before = packed(tokens, LABELS)
    for block in model.blocks:
        block.attention.qkv.weight.mul_(2)
    assert torch.equal(packed(tokens, LABELS), before)


@pytest.mark.parametrize(("quantize", "numbers"), [(None, (3, 2)), ("int8", (3,))])
def test_compiled_steps_are_the_same_steps(make_model, stepwise, tokens, quantize, numbers):
    model = make_model(layers=1, kv_heads=2)
    eager, compiled = (PackedTransformer(model, Compute("float32", quantize, compile=c)) for c in (False, True))
    for rows in numbers:  # another number of rows, the same function
        logits = stepwise(compiled, tokens[:rows], LABELS[:rows])
        torch.testing.assert_close(logits, stepwise(eager, tokens[:rows], LABELS[:rows]), rtol=1e-4, atol=1e-4)


def test_compiling_without_a_compiler_is_refused(make_model, stepwise, tokens, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with pytest.raises(InputError, match="install a C"):
        stepwise(PackedTransformer(make_model(layers=1), Compute("float32", compile=True)), tokens, LABELS)


@torch.no_grad()
def test_blocks_share_one_compilation(monkeypatch, make_model, stepwise, tokens):
    """Packed as for a GPU: 24 blocks, all positions, and any number of rows after the second."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend=counter))
    packed = PackedTransformer(make_model(layers=24), FLOAT32)
    assert isinstance(packed.blocks[0].ffn.w2, Linear)
    batches = [(tokens[:rows].repeat(copies, 1), LABELS[:rows].repeat(copies)) for rows, copies in HEIGHTS]
    expected = [stepwise(packed, *batch) for batch in batches]
    torch.compiler.reset()
    compile_blocks(packed)
    counts = []
    for batch, right in zip(batches, expected, strict=True):
        torch.testing.assert_close(stepwise(packed, *batch), right, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    assert counts == [2, 4, 4, 4]  # what is before attention, and what is after it


@torch.no_grad()
@pytest.mark.parametrize("compiled", ["blocks", "steps"])
def test_a_compiled_model_has_no_reference_cycle(monkeypatch, make_model, stepwise, tokens, compiled):
    """Memory on a GPU is free at once, not at the next garbage collection."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    packed = PackedTransformer(make_model(layers=2), Compute("float32", compile=compiled == "steps"))
    if compiled == "blocks":
        compile_blocks(packed)
    stepwise(packed, tokens, LABELS)
    weights = packed.parameters() if compiled == "blocks" else []  # Dynamo keeps the frozen ones of a step
    parts = [weakref.ref(packed), *map(weakref.ref, weights)]
    gc.disable()
    try:
        del packed
        assert [part for part in parts if part() is not None] == []
    finally:
        gc.enable()


@torch.no_grad()
def test_many_models_are_compiled_in_one_process(monkeypatch, make_model, tokens):
    """Dynamo compiles a function at most eight times; models of other widths, and rows, must not add up."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend=counter))
    torch.compiler.reset()
    counts = []
    for width in (1, 2):
        model = make_model(dim=16 * width, layers=1)
        expected = [model(tokens[:rows], LABELS[:rows]) for rows in (3, 2, 1)]
        compile_blocks(model)
        for rows, right in zip((3, 2, 1), expected, strict=True):
            torch.testing.assert_close(model(tokens[:rows], LABELS[:rows]), right, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    assert counts == [6, 12]  # two halves: some rows, any number of rows, one row
