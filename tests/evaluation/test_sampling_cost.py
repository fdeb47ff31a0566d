import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctf.evaluation.machine import Machine
from ctf.evaluation.sampling_cost import Work, decoding_steps, forward_operations, painting, refining, roofline
from ctf.models import Transformer, TransformerConfig
from ctf.sampling.packed import KeyValueCache, attend_by_products
from ctf.tokenizer import TokenizerConfig, VQTokenizer

BATCH = 3
LABELS = torch.zeros(BATCH, dtype=torch.int64)
WIDTHS = {"float32": 4, "bfloat16": 2}


@pytest.fixture(params=[None, 2], ids=["all heads", "grouped heads"])
def make_config(request):
    def make(attention="causal", input_vocab=24, output_vocab=24):
        sizes = {"layers": 3, "heads": 4, "dim": 32, "kv_heads": request.param, "ffn_multiple": 8}
        return TransformerConfig(input_vocab, output_vocab, (2, 3), num_classes=5, attention=attention, **sizes)

    return make


def counted(call):
    """Operations that PyTorch counts; it does not know those of a CPU's fused attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def product_operations(model, positions):
    """Of every matrix, the head's apart, at `positions` positions."""
    x = {module.in_features: torch.zeros(positions, module.in_features) for module in linears(model)}
    return sum(counted(lambda m=m: m(x[m.in_features])) for m in linears(model) if m is not model.head)


def linears(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


def read_once(model, matrix_width):
    """Bytes of all that is not looked up row by row; norms stay in float32."""
    return sum(
        parameter.numel() * (matrix_width if parameter.ndim == 2 else 4)
        for name, parameter in model.named_parameters()
        if "embedding" not in name
    )


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_forward_operations_are_those_of_a_forward_pass(attention):
    config = TransformerConfig(24, 24, (2, 3), 5, layers=3, heads=4, dim=32, ffn_multiple=8, attention=attention)
    model = Transformer(config).eval()
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    assert forward_operations(config, 24) == counted(lambda: model(tokens, LABELS[:1]))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_decoding_reads_the_weights_and_the_filled_cache(make_config, guided, dtype, quantize):
    config = make_config()
    cache = KeyValueCache(config, BATCH * (2 if guided else 1), torch.device("cpu"), getattr(torch, dtype))
    weights = read_once(Transformer(config), 1 if quantize else WIDTHS[dtype])
    steps = decoding_steps(config, BATCH, guided, dtype, quantize)
    filled = [sum(t[:, : i + 1].clone().nbytes for t in (*cache.keys, *cache.values)) for i in range(6)]
    assert [step.bytes for step in steps] == [weights + part for part in filled]


@pytest.mark.parametrize("guided", [False, True])
def test_decoding_multiplies_all_rows_in_the_blocks_and_guided_ones_in_the_head(make_config, guided):
    config, rows = make_config(), BATCH * (2 if guided else 1)
    model, cache = Transformer(config), KeyValueCache(config, rows, torch.device("cpu"), torch.float32)
    products = product_operations(model, rows) + counted(lambda: model.head(torch.zeros(BATCH, 32)))
    group = config.heads // config.num_kv_heads
    queries = torch.zeros(rows * config.num_kv_heads, group, config.head_dim)
    attention = [
        sum(
            counted(lambda k=k, v=v, i=i: attend_by_products(queries, k[:, : i + 1], v[:, : i + 1]))
            for k, v in zip(cache.keys, cache.values, strict=True)
        )
        for i in range(6)
    ]
    steps = decoding_steps(config, BATCH, guided)
    assert [step.operations for step in steps] == [products + part for part in attention]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_refining_reads_the_weights_once_and_the_head_in_float32(make_config, dtype, quantize):
    config = make_config("full", input_vocab=6)
    model = Transformer(config)
    head = model.head.weight.nbytes
    del model.head
    expected = read_once(model, 1 if quantize else WIDTHS[dtype]) + head
    assert refining(config, 6, BATCH, dtype, quantize).bytes == expected


def test_refining_multiplies_with_the_members_of_one_cluster():
    """24 tokens in 6 clusters: a head of 4 outputs."""
    sizes = {"layers": 3, "heads": 4, "dim": 32, "ffn_multiple": 8, "attention": "full"}
    narrow = Transformer(TransformerConfig(6, 4, (2, 3), num_classes=5, **sizes)).eval()
    expected = counted(lambda: narrow(torch.zeros(BATCH, 6, dtype=torch.int64), LABELS))
    assert refining(TransformerConfig(6, 24, (2, 3), num_classes=5, **sizes), 6, BATCH).operations == expected


@pytest.mark.parametrize(("multipliers", "patch_size"), [((1,), 4), ((1, 2), 1)])
def test_painting_is_what_the_decoder_does_with_a_batch(multipliers, patch_size):
    sizes = {"base_channels": 32, "channel_multipliers": multipliers, "z_channels": 32, "patch_size": patch_size}
    config = TokenizerConfig(**sizes, encoder_blocks=1, decoder_blocks=1, codebook_size=16, codebook_dim=4)
    tokenizer = VQTokenizer(config).eval()
    work = painting(config, (2, 3), BATCH)
    assert work.operations == counted(lambda: tokenizer.decode(torch.zeros(BATCH, 6, dtype=torch.int64), (2, 3)))
    parts = {"decoder", "post_quant_conv"}
    assert work.bytes == sum(p.nbytes for name, p in tokenizer.named_parameters() if name.split(".")[0] in parts)


def test_roofline_takes_the_slower_of_both_at_each_step():
    machine = Machine("", 1, memory_bandwidth=10.0, matrix_rate=100.0, products="", software="", date="")
    assert roofline([Work(20, 100), Work(20, 500)], machine) == 2 + 5
