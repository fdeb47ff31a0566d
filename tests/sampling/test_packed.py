import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ctf.errors import InputError
from ctf.models import Transformer, TransformerConfig
from ctf.sampling import PackedTransformer, generate_tokens
from ctf.sampling.decode import SamplingSettings, decode
from ctf.sampling.packed import KeyValueCache, PackedBlock, attend_by_products
from ctf.sampling.products import Int8Product, PlainProduct, lay_out

ALL_FILTERS = SamplingSettings(cfg_scale=2.0, temperature=0.8, top_k=6, top_p=0.7)


@pytest.fixture
def make_model():
    def make(attention="causal", kv_heads=None):
        torch.manual_seed(0)
        sizes = {"layers": 2, "heads": 4, "dim": 32, "kv_heads": kv_heads, "ffn_multiple": 8}
        config = TransformerConfig(
            input_vocab=13, output_vocab=13, grid=(2, 3), num_classes=5, attention=attention, **sizes
        )
        transformer = Transformer(config)  # in training mode: a packed model has no dropout all the same
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
        return transformer

    return make


@pytest.fixture
def tokens():
    return torch.randint(0, 13, (3, 6), generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 5, 2])


def stepwise(packed, tokens, labels):
    """Logits at each position of given tokens, one step after another."""
    cache = KeyValueCache(packed.config, len(labels), packed.device, packed.dtype)
    inputs, steps = packed.label_embedding[labels], []
    for i in range(tokens.shape[1]):
        steps.append(packed.logits(packed.step(inputs, cache, i)))
        inputs = packed.token_embedding[tokens[:, i]]
    return torch.stack(steps, 1)


@torch.inference_mode()
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_steps_equal_the_whole_sequence(make_model, tokens, kv_heads, rows):
    transformer = make_model(kv_heads=kv_heads).eval()
    packed = PackedTransformer(transformer, rows)
    torch.testing.assert_close(stepwise(packed, tokens, LABELS), transformer(tokens, LABELS), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_whole_sequences_equal_the_transformer(make_model, tokens, kv_heads, attention):
    transformer = make_model(attention, kv_heads).eval()
    packed = PackedTransformer(transformer, 18)
    expected = transformer.hidden(tokens, LABELS)
    torch.testing.assert_close(packed.hidden(tokens, LABELS), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed.logits(expected), transformer.head(expected), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("dtype", "quantize", "tolerance"),
    [(torch.bfloat16, None, 0.03), (torch.float32, "int8", 0.05), (torch.bfloat16, "int8", 0.06)],
)
def test_cheaper_weights_are_close(make_model, tokens, dtype, quantize, tolerance):
    transformer = make_model().eval()
    packed = PackedTransformer(transformer, 3, dtype, quantize)
    exact = transformer(tokens, LABELS)
    for logits in (stepwise(packed, tokens, LABELS), packed.logits(packed.hidden(tokens, LABELS))):
        assert logits.dtype == torch.float32
        assert 1e-4 < (logits - exact).norm() / exact.norm() < tolerance


def test_int8_product_is_integer_arithmetic():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(40, 24, generator=generator), torch.randn(5, 24, generator=generator)
    x[3] *= 1000  # a loud row leaves the others alone
    x[4] = 0
    per_output, per_row = weight.abs().amax(1) / 127, x.abs().amax(1).clamp_min(1e-12) / 127
    integers = (x / per_row[:, None] + 0.5).floor().long() @ (weight / per_output[:, None]).round().long().T
    product = Int8Product(weight, rows=5)
    torch.testing.assert_close(product(x), integers * per_row[:, None] * per_output, rtol=1e-5, atol=1e-6)
    for i in range(5):
        assert torch.equal(product(x[i : i + 1])[0], product(x)[i])


def test_int8_images_depend_on_their_seed_only(causal_model):
    labels, seeds = torch.tensor([0, 1, 2, 3]), [5, 6, 7, 8]
    packed = PackedTransformer(causal_model, 8, quantize="int8")
    together = generate_tokens(packed, labels, seeds, cfg_scale=2.0)
    for i in range(4):
        assert torch.equal(generate_tokens(packed, labels[i : i + 1], seeds[i : i + 1], cfg_scale=2.0)[0], together[i])


def test_int8_elsewhere_than_on_a_cpu():
    with pytest.raises(InputError, match="needs a CPU"):
        lay_out(torch.empty(4, 4, device="meta"), 1, "int8")


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_compiled_steps_draw_the_same_tokens(causal_model, quantize):
    labels, seeds = torch.tensor([0, 4, 2]), [3, 0, 7]
    eager, compiled = (PackedTransformer(causal_model, 6, quantize=quantize, compile=c) for c in (False, True))
    for cfg_scale in (2.0, 1.0):  # other rows, the same function
        expected = generate_tokens(eager, labels, seeds, cfg_scale)
        assert torch.equal(generate_tokens(compiled, labels, seeds, cfg_scale), expected)


def test_nothing_to_compile_with(causal_model, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with pytest.raises(InputError, match="install a C"):
        generate_tokens(PackedTransformer(causal_model, 4, compile=True), torch.tensor([0, 1]), [0, 1], cfg_scale=2.0)


def test_packing_once_is_packing_each_time(causal_model):
    packed = PackedTransformer(causal_model, 6)
    labels, seeds = torch.tensor([0, 4, 2]), [3, 0, 7]
    expected = generate_tokens(causal_model, labels, seeds, cfg_scale=1.5)
    for _ in range(2):
        assert torch.equal(generate_tokens(packed, labels, seeds, cfg_scale=1.5), expected)


def test_attention_by_products_is_the_fused_kernel():
    q, keys, values = torch.randn(6, 4, 8), torch.randn(6, 5, 8), torch.randn(6, 5, 8)
    fused = torch.nn.functional.scaled_dot_product_attention(q, keys, values)
    torch.testing.assert_close(attend_by_products(q, keys, values), fused)


class Synchronisations(TorchDispatchMode):
    """Collects operations that would make the host wait for a GPU: values read, or shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        boolean_index = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
            for i in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else [])
        )
        if boolean_index or any(word in name for word in self.NAMES):
            self.found.append(name)
        self.operations += 1
        return function(*args, **(kwargs or {}))


def test_the_counter_of_synchronisations_counts():
    x = torch.arange(3.0)
    with Synchronisations() as counter:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        bool(x[0] > 0)
    assert len(counter.found) == 4


@pytest.mark.parametrize(
    "settings", [ALL_FILTERS, SamplingSettings(1.0, 0.0, 0, 1.0), SamplingSettings(2.0, 1.0, 0, 1.0)], ids=str
)
def test_the_loop_never_waits_for_the_device(causal_model, settings):
    packed = PackedTransformer(causal_model, 6)
    labels = torch.tensor([0, 1, 2] * (1 if settings.cfg_scale == 1 else 2))
    with torch.inference_mode(), Synchronisations() as counter:
        decode(packed, settings, labels, torch.rand(3, 8, dtype=torch.float64))
    assert counter.found == []
    assert counter.operations > 8 * 2 * 10  # it saw the steps of the loop


@pytest.mark.parametrize("settings", [ALL_FILTERS, SamplingSettings(1.0, 0.0, 0, 1.0)], ids=str)
def test_the_gpu_path_on_tensors_without_values(monkeypatch, make_model, settings):
    """Plain products and fused attention, as on a GPU; reading any value raises."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    transformer = make_model(kv_heads=2)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        packed = PackedTransformer(transformer, 6)
        assert isinstance(packed.head, PlainProduct)
        labels = torch.zeros(3 * (1 if settings.cfg_scale == 1 else 2), dtype=torch.int64)
        tokens = decode(packed, settings, labels, torch.rand(3, 6, dtype=torch.float64))
    assert tokens.shape == (3, 6)


@torch.inference_mode()
def test_blocks_share_one_compilation(monkeypatch, make_model):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    packed = PackedTransformer(make_model(), 2)
    counter = CompileCounter()
    torch.compiler.reset()
    before = torch.compile(PackedBlock.before, fullgraph=True, backend=counter)
    x = torch.randn(2, 1, 32)
    for position in range(3):
        for block in packed.blocks:
            got = before(block, x, packed.rotary[position : position + 1])
            for part, expected in zip(got, block.before(x, packed.rotary[position : position + 1]), strict=True):
                assert torch.equal(part, expected)
    assert counter.frame_count == 1
