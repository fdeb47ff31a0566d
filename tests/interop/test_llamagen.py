import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.interop import llamagen, translation
from ctf.layout import Layout
from ctf.models import TransformerConfig
from ctf.sampling.settings import Sampling
from ctf.stages import Autoregressive, Masked
from ctf.tokenizer import TOKENIZER_PRESETS, TokenizerConfig, VQTokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen"
SMALL = {"num_heads": 4, "layout": Layout.square(4)}


class Hostile:
    """Content of a malicious checkpoint: unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def gpt_state():
    return torch.load(GOLDEN / "gpt_mha.pt", weights_only=True)["model"]


@pytest.fixture
def tokenizer_state():
    return torch.load(GOLDEN / "vq8.pt", weights_only=True)["model"]


def official_gpt_shapes(layers, dim, ffn, vocab, classes, kv_dim=None):
    """Names and shapes of LlamaGen's GPT, written out from its documentation."""
    shapes = {
        "cls_embedding.embedding_table.weight": (classes + 1, dim),
        "tok_embeddings.weight": (vocab, dim),
        "norm.weight": (dim,),
        "output.weight": (vocab, dim),
    }
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (dim + 2 * (kv_dim or dim), dim),
            f"layers.{i}.attention.wo.weight": (dim, dim),
            f"layers.{i}.feed_forward.w1.weight": (ffn, dim),
            f"layers.{i}.feed_forward.w2.weight": (dim, ffn),
            f"layers.{i}.feed_forward.w3.weight": (ffn, dim),
            f"layers.{i}.attention_norm.weight": (dim,),
            f"layers.{i}.ffn_norm.weight": (dim,),
        }
    return shapes


def random_state(shapes, dtype=torch.float32):
    """Every entry its own piece of one random stream: a swapped pair of names cannot go unnoticed."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def values_unread(monkeypatch):
    """For tensors of the device "meta", which have shapes and no values to check."""
    monkeypatch.setattr(translation, "check_finite", lambda where, tensors: None)


def test_full_size_gpt_b_survives_export(tmp_path):
    state = random_state(official_gpt_shapes(12, 768, 2048, 16_384, 1000), torch.bfloat16)
    stage = llamagen.load_gpt(state)
    assert isinstance(stage, Autoregressive)
    assert (stage.name, stage.predicts, stage.given, stage.sampling) == ("baseline", None, None, Sampling(2.0))
    assert stage.config == TransformerConfig.of_size(
        "B", input_vocab=16_384, output_vocab=16_384, layout=Layout.square(16), num_classes=1000
    )
    assert stage.num_parameters() == sum(tensor.numel() for tensor in state.values())
    assert f"{stage.num_parameters() / 1e6:.2f}" == "110.89"
    llamagen.export_gpt(stage.bfloat16(), tmp_path / "B.pt")
    assert_same(torch.load(tmp_path / "B.pt", weights_only=True, mmap=True)["model"], state)
    again = llamagen.load_gpt(tmp_path / "B.pt")
    assert_same(again.state_dict(), {name: tensor.float() for name, tensor in stage.state_dict().items()})


@pytest.mark.parametrize(("name", "downsampling", "size"), [("vq16", 16, 72), ("vq8", 8, 70)])
def test_released_tokenizers_are_recognised(values_unread, name, downsampling, size):
    """By shapes on the device "meta"; the golden files show that the names are LlamaGen's."""
    with torch.device("meta"):
        state = llamagen.TOKENIZER.theirs(VQTokenizer(TOKENIZER_PRESETS[name]))
        tokenizer = llamagen.load_tokenizer(state | {"quantize.codebook_used": torch.zeros(65_536)})
    assert tokenizer.config == TOKENIZER_PRESETS[name]
    millions = round(sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6)
    assert (tokenizer.downsampling, millions) == (downsampling, size)  # published


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_golden_files_survive_export(tmp_path, gpt_state, tokenizer_state, suffix):
    gpt, tokenizer = tmp_path / f"gpt.{suffix}", tmp_path / f"vq.{suffix}"
    llamagen.export_gpt(llamagen.load_gpt(gpt_state, **SMALL), gpt)
    llamagen.export_tokenizer(llamagen.load_tokenizer(tokenizer_state), tokenizer)
    for path, state in ((gpt, gpt_state), (tokenizer, tokenizer_state)):
        assert_same(load_file(path) if suffix == "safetensors" else torch.load(path)["model"], state)
    assert_same(llamagen.load_gpt(gpt, **SMALL).state_dict(), llamagen.load_gpt(gpt_state, **SMALL).state_dict())


@pytest.mark.parametrize(
    ("layers", "dim", "ffn", "heads", "cfg_scale"),
    [
        (24, 1024, 2816, 16, 2.0),
        (36, 1280, 3584, 20, 1.75),  # XL, as in LlamaGen's table of results
        (48, 1536, 4096, 24, 2.0),
        (24, 3200, 8704, 32, 2.0),
    ],
)
def test_sizes_are_recognised(values_unread, layers, dim, ffn, heads, cfg_scale):
    with torch.device("meta"):  # the shapes alone: 3B would take 12 GB
        state = {k: torch.empty(shape) for k, shape in official_gpt_shapes(layers, dim, ffn, 16_384, 1000).items()}
        stage = llamagen.load_gpt(state, layout=Layout.square(24))
    config = stage.config
    assert (config.layers, config.dim, config.heads, config.layout) == (layers, dim, heads, Layout.square(24))
    assert config.ffn_dim == ffn
    assert stage.sampling == Sampling(cfg_scale=cfg_scale)


def test_moving_average_on_request(tokenizer_state):
    average = {name: tensor + 1 for name, tensor in tokenizer_state.items()}
    checkpoint = {"model": tokenizer_state, "ema": average}
    assert torch.equal(
        llamagen.load_tokenizer(checkpoint).decoder.conv_in.bias, tokenizer_state["decoder.conv_in.bias"]
    )
    loaded = llamagen.load_tokenizer(checkpoint, ema=True)
    assert torch.equal(loaded.decoder.conv_in.bias, average["decoder.conv_in.bias"])
    with pytest.raises(InputError, match="no moving average"):
        llamagen.load_tokenizer({"model": tokenizer_state}, ema=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path, gpt_state, dtype):
    half = {name: tensor.to(dtype) for name, tensor in gpt_state.items()}
    save_file(half, tmp_path / "gpt.safetensors")
    loaded = llamagen.load_gpt(tmp_path / "gpt.safetensors", **SMALL)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.transformer.head.weight, half["output.weight"].float())


def test_the_callers_tensors_stay_theirs(gpt_state):
    stage = llamagen.load_gpt(gpt_state, **SMALL)
    before = gpt_state["norm.weight"].clone()
    with torch.no_grad():
        stage.transformer.norm.weight.add_(1)
    assert torch.equal(gpt_state["norm.weight"], before)


def test_buffers_of_generation_are_ignored(gpt_state):
    buffers = {"freqs_cis": torch.zeros(17, 16, 2), "layers.0.attention.kv_cache.k_cache": torch.zeros(1)}
    llamagen.load_gpt({**gpt_state, **buffers}, **SMALL)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_query_attention(tmp_path, kv_heads):
    sizes = {"input_vocab": 64, "output_vocab": 64, "layout": (2, 2), "num_classes": 3}
    config = TransformerConfig(**sizes, layers=2, heads=4, dim=64, kv_heads=kv_heads)
    stage = Autoregressive(config, name="baseline").eval()
    torch.nn.init.normal_(stage.transformer.head.weight)
    llamagen.export_gpt(stage, tmp_path / "gqa.pt")
    state = torch.load(tmp_path / "gqa.pt")["model"]
    shapes = official_gpt_shapes(2, 64, 256, 64, 3, kv_dim=16 * kv_heads)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    loaded = llamagen.load_gpt(tmp_path / "gqa.pt", num_heads=4, layout=Layout.square(2))
    assert loaded.config.num_kv_heads == kv_heads
    tokens, labels = torch.randint(64, (2, 4)), torch.tensor([0, 3])
    assert torch.equal(loaded.logits(tokens, labels), stage.logits(tokens, labels))


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_hostile_payload_does_not_run(tmp_path, gpt_state, form):
    trap = tmp_path / "trap"
    content = {"model": gpt_state, "x": Hostile(trap)}
    if form == "plain":
        (tmp_path / "x.pt").write_bytes(pickle.dumps(content["x"], protocol=2))
    else:
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=form == "zip")
    for loader in (llamagen.load_gpt, llamagen.load_tokenizer):
        with pytest.raises(InputError, match=r"x\.pt" if form == "plain" else r"holds [a-z]+\.mkdir, which could run"):
            loader(tmp_path / "x.pt", allow_namespace=True)
    assert not trap.exists()


def test_a_namespace_is_refused_unless_allowed(tmp_path, gpt_state):
    path = tmp_path / "gpt.pt"
    torch.save({"model": gpt_state, "args": argparse.Namespace(lr=1e-4)}, path)
    with pytest.raises(InputError, match=r"argparse\.Namespace.*allow_namespace=True"):
        llamagen.load_gpt(path, **SMALL)
    loaded = llamagen.load_gpt(path, **SMALL, allow_namespace=True).transformer
    assert torch.equal(loaded.head.weight, gpt_state["output.weight"])
    with pytest.raises(InputError, match="allow_namespace"):  # allowed for that one call only
        llamagen.load_gpt(path, **SMALL)


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "layers.1.ffn_norm.weight"), r"lacks layers\.1\.ffn_norm\.weight:"),
        (lambda s: without(s, "cls_embedding.embedding_table.weight"), r"lacks cls_embedding\.embedding_table"),
        (lambda s: {**s, "lora.weight": torch.zeros(1)}, r"holds lora\.weight, which"),
        (lambda s: {**s, **{f"a.{i}": torch.zeros(1) for i in range(9)}}, r"holds a\.0, a\.1, a\.2 and 6 more"),
        (lambda s: {**s, "norm.weight": torch.ones(64)}, r"norm\.weight is float32 \[64\].*floats \[128\]"),
        (lambda s: {**s, "norm.weight": torch.ones(128).char()}, r"norm\.weight is int8 \[128\]"),
        (lambda s: {**s, "layers.0.attention.wqkv.weight": torch.zeros(400, 128)}, "4 heads do not fit .* 400 × 128"),
        (lambda s: {"cls_embedding.cap_proj.fc1.weight": torch.zeros(2, 2), **s}, r"text-conditional \(t2i\)"),
        (lambda s: {"weight": torch.zeros(2)}, r"not a LlamaGen GPT: it has no tok_embeddings\.weight"),
        (lambda s: {**s, "norm.weight": torch.full((128,), torch.nan)}, r"norm\.weight holds NaN or infinity"),
        (lambda s: {"model": {}}, "holds no weights"),
        (lambda s: {"epoch": 3}, "holds no weights"),
    ],
)
def test_gpt_refuses(gpt_state, change, message):
    with pytest.raises(InputError, match=message) as error:
        llamagen.load_gpt(change(gpt_state), **SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "encoder.mid.1.k.bias"), r"lacks encoder\.mid\.1\.k\.bias:"),
        (lambda s: without(s, "encoder.conv_in.weight"), r"lacks encoder\.conv_in\.weight"),
        (lambda s: {**s, "encoder.mid.1.k.bias": torch.zeros(3)}, r"encoder\.mid\.1\.k\.bias is float32 \[3\]"),
        (lambda s: {**s, "loss.weight": torch.zeros(1)}, r"holds loss\.weight, which"),
    ],
)
def test_tokenizer_refuses(tokenizer_state, change, message):
    with pytest.raises(InputError, match=message):
        llamagen.load_tokenizer(change(tokenizer_state))


def test_hub_ids(tmp_path, monkeypatch):
    """Offline, with the layout of the hub's own cache: one file that is there and one that is not."""
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    snapshot = repository / "snapshots" / ("a" * 40) / "c2i"
    snapshot.mkdir(parents=True)
    (snapshot / "gpt.pt").write_bytes((GOLDEN / "gpt_mha.pt").read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert llamagen.load_gpt("owner/name:c2i/gpt.pt", **SMALL).config.layers == 3
    with pytest.raises(InputError, match=r"missing\.pt of owner/name cannot be had"):
        llamagen.load_gpt("owner/name:missing.pt")


def test_export_refuses_what_the_layout_cannot_hold(tmp_path):
    gpt = {"input_vocab": 8, "output_vocab": 8, "num_classes": 3, "layers": 1, "heads": 2, "dim": 64}
    gpt["layout"] = Layout.square(2)
    masked = Masked(TransformerConfig(**gpt | {"input_vocab": 1, "attention": "full"}), name="baseline")
    with pytest.raises(InputError, match="stage baseline is masked"):
        llamagen.export_gpt(masked, tmp_path / "x.pt")
    turned = Autoregressive(TransformerConfig(rope_base=500.0, **gpt), name="baseline")
    with pytest.raises(InputError, match="rope_base=500"):
        llamagen.export_gpt(turned, tmp_path / "x.pt")
    oblong = Autoregressive(TransformerConfig(**gpt | {"layout": Layout((2, 1))}), name="baseline")
    with pytest.raises(InputError, match="has tokens of 2 × 1: LlamaGen's GPT holds one square of them"):
        llamagen.export_gpt(oblong, tmp_path / "x.pt")
    fine = TransformerConfig(given_vocab=4, **gpt)
    given = CoarseMap(torch.arange(8) % 4, "random", 0, "0" * 16)
    with pytest.raises(InputError, match="given_vocab=4"):
        llamagen.export_gpt(Autoregressive(fine, name="fine", given=given, support="full"), tmp_path / "x.pt")
    folded = TokenizerConfig(base_channels=32, channel_multipliers=(1,), codebook_size=8, patch_size=4)
    with pytest.raises(InputError, match="patch_size=4"):
        llamagen.export_tokenizer(VQTokenizer(folded), tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
