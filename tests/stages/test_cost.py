"""What a stage says that it reads and computes, beside what PyTorch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctf.codebook import cluster_codebook
from ctf.models import Compute, KeyValueCache, Transformer, TransformerConfig
from ctf.models.cache import attend_by_products
from ctf.sampling import Sampling
from ctf.stages import new_stage

BATCH = 3
GRID = (2, 3)
TOKENS, LABELS = torch.zeros(BATCH, 6, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
WIDTHS = {"float32": 4, "bfloat16": 2}
FLOAT32 = Compute("float32")
SAMPLING = {"plain": Sampling(), "guided": Sampling(cfg_scale=2.0)}


@pytest.fixture(params=[None, 2], ids=["all heads", "grouped heads"])
def make(request):
    """A stage over 24 tokens; a masked one is given 6 clusters of 4."""

    def make(kind, support="cluster"):
        given = cluster_codebook(torch.randn(24, 4), 6, "balanced") if kind == "masked" else None
        sizes = {"kv_heads": request.param, "ffn_multiple": 8}
        task = {"name": "a", "grid": GRID, "num_classes": 5, "codebook_size": 24}
        return new_stage(kind, "nano", given=given, support=support, **task, **sizes).eval()

    return make


def counted(call):
    """Operations that PyTorch counts; it does not know those of a CPU's fused attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def block_operations(stage, positions):
    """Of every matrix of the blocks at `positions` positions."""
    linears = [module for module in stage.transformer.blocks.modules() if isinstance(module, torch.nn.Linear)]
    return sum(counted(lambda m=m: m(torch.zeros(positions, m.in_features))) for m in linears)


def read_once(stage, matrix_width, head_width):
    """Bytes of all that is not looked up row by row; norms stay in float32."""
    widths = {name: head_width if "head" in name else matrix_width for name, _ in stage.named_parameters()}
    return sum(
        parameter.numel() * (widths[name] if parameter.ndim == 2 else 4)
        for name, parameter in stage.named_parameters()
        if "embedding" not in name
    )


@pytest.mark.parametrize(("kind", "support"), [("autoregressive", "cluster"), ("masked", "full")])
def test_forward_operations_are_those_of_a_forward_pass(make, kind, support):
    stage = make(kind, support)
    assert stage.forward_operations() == counted(lambda: stage.logits(TOKENS[:1], LABELS[:1]))


def test_support_of_a_cluster_multiplies_with_its_members_only(make):
    """24 tokens in 6 clusters: the same network with a head of 4 outputs."""
    stage = make("masked")
    config = {**vars(stage.config), "output_vocab": 4}
    narrow = Transformer(TransformerConfig(**config)).eval()
    assert stage.forward_operations() == counted(lambda: narrow(None, LABELS[:1], TOKENS[:1]))


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_decoding_reads_the_weights_and_the_filled_cache(make, sampling, dtype, quantize):
    stage, rows = make("autoregressive"), BATCH * (2 if sampling == "guided" else 1)
    cache = KeyValueCache(stage.config, rows, torch.device("cpu"), getattr(torch, dtype))
    width = 1 if quantize else WIDTHS[dtype]
    filled = [sum(t[:, : i + 1].clone().nbytes for t in (*cache.keys, *cache.values)) for i in range(6)]
    steps = stage.work(BATCH, SAMPLING[sampling], Compute(dtype, quantize))
    assert [step.bytes for step in steps] == [read_once(stage, width, width) + part for part in filled]


@pytest.mark.parametrize("sampling", SAMPLING)
def test_decoding_multiplies_all_rows_in_the_blocks_and_guided_ones_in_the_head(make, sampling):
    stage, rows = make("autoregressive"), BATCH * (2 if sampling == "guided" else 1)
    c, cache = stage.config, KeyValueCache(stage.config, rows, torch.device("cpu"), torch.float32)
    products = block_operations(stage, rows) + counted(lambda: stage.transformer.head(torch.zeros(BATCH, c.dim)))
    queries = torch.zeros(rows * c.num_kv_heads, c.heads // c.num_kv_heads, c.head_dim)
    attention = [
        sum(
            counted(lambda k=k, v=v, i=i: attend_by_products(queries, k[:, : i + 1], v[:, : i + 1]))
            for k, v in zip(cache.keys, cache.values, strict=True)
        )
        for i in range(6)
    ]
    steps = stage.work(BATCH, SAMPLING[sampling], FLOAT32)
    assert [step.operations for step in steps] == [products + part for part in attention]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("support", ["cluster", "full"])
def test_a_round_reads_the_weights_once_and_the_heads_members_in_float32(make, dtype, quantize, support):
    stage, width = make("masked", support), 1 if quantize else WIDTHS[dtype]
    (step,) = stage.work(BATCH, Sampling(), Compute(dtype, quantize))
    assert step.bytes == read_once(stage, width, 4 if support == "cluster" else width)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_round_multiplies_all_rows_in_the_blocks_and_guided_ones_in_the_head(make, sampling):
    stage, rows = make("masked", "full"), BATCH * (2 if sampling == "guided" else 1)
    network = stage.transformer
    head = counted(lambda: network.head(torch.zeros(BATCH, 6, stage.config.dim)))
    states = counted(lambda: network.hidden(None, LABELS[:1].repeat(rows), TOKENS[:1].repeat(rows, 1)))
    (step,) = stage.work(BATCH, SAMPLING[sampling], FLOAT32)
    assert step.operations == states + head
