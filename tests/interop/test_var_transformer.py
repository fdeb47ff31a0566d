"""VAR's transformers against outputs of its implementation: see tests/golden/var/README.md."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctf.codebook import CoarseMap, codebook_fingerprint
from ctf.errors import InputError
from ctf.interop.var import TRANSLATION, load_tokenizer, load_var
from ctf.layout import Layout
from ctf.models.next_scale import NextScaleTransformer
from ctf.models.next_scale_config import NextScaleConfig
from ctf.stages import generate_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "var"
CLOSE = {"rtol": 0.0, "atol": 1e-4}
MODELS = ["var_adaln", "var_shared", "ctf"]
#: Parameters of VAR's published sizes, and the sides of their scales.
SIDES = {"256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), "512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
PARAMETERS = {
    "d12": 133_186_960,
    "d16": 310_283_520,
    "d20": 600_917_136,
    "d24": 1_033_399_360,
    "d30": 2_010_020_356,
    "d36-s": 2_353_893_904,
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GOLDEN / "vq.pt", (1, 2, 4))


@pytest.fixture(scope="module", params=MODELS)
def golden(request, tokenizer):
    """A stage of each file, and what VAR computes with it."""
    values, predicts = load_file(GOLDEN / f"{request.param}.safetensors"), None
    if "fine_to_coarse" in values:
        fingerprint = codebook_fingerprint(tokenizer.codebook)
        predicts = CoarseMap(values["fine_to_coarse"], "golden", 0, fingerprint)
    stage = load_var(GOLDEN / f"{request.param}.pt", tokenizer, predicts=predicts)
    return stage, values, values.get("fine_tokens", values["tokens"])


def test_inputs_logits_loss_and_gradients(golden):
    stage, values, tokens = golden
    loss = stage(tokens, values["labels"]).mean()
    loss.backward()
    torch.testing.assert_close(stage.inputs(values["tokens"]), values["var_input"], **CLOSE)
    torch.testing.assert_close(stage.logits(tokens, values["labels"]), values["logits"], **CLOSE)
    torch.testing.assert_close(loss[None], values["loss"], **CLOSE)
    ours = {TRANSLATION.official(name)[0]: p.grad for name, p in stage.transformer.named_parameters()}
    gradients = {name.removeprefix("grad."): value for name, value in values.items() if name.startswith("grad.")}
    assert len(gradients) >= 7
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, **CLOSE)
    stage.zero_grad()


@pytest.mark.parametrize("cfg", ["0", "1", "1.5", "4"])
def test_greedy_tokens_and_images(golden, tokenizer, cfg):
    stage, values, _ = golden
    settings = {"cfg_scale": 1 + float(cfg), "cfg_schedule": "steps", "temperature": 0}
    tokens = generate_tokens(stage, values["greedy_labels"], [0, 1, 2], **settings)
    assert torch.equal(tokens, values[f"greedy_cfg{cfg}"])
    with torch.no_grad():
        images = tokenizer.decode_embeddings(stage.vectors[tokens], stage.layout) / 2 + 0.5
    torch.testing.assert_close(images.clamp(0, 1), values[f"greedy_cfg{cfg}_image"], **CLOSE)


def test_training_checkpoints(tmp_path, tokenizer):
    parts = {"var_wo_ddp": torch.load(GOLDEN / "var_adaln.pt", weights_only=True), "vae_local": {}, "config": {}}
    torch.save({"epoch": 3, "iter": 0, "trainer": parts, "args": {}}, tmp_path / "ar-ckpt-last.pth")
    stage, released = load_var(tmp_path / "ar-ckpt-last.pth", tokenizer), load_var(GOLDEN / "var_adaln.pt", tokenizer)
    assert all(
        torch.equal(a, b) for a, b in zip(stage.state_dict().values(), released.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_sizes(size):
    layout = Layout.square(*SIDES["512" if size == "d36-s" else "256"])
    with torch.device("meta"):
        config = NextScaleConfig.of_size(size, output_vocab=4096, layout=layout, num_classes=1000, codeword_dim=32)
        assert sum(p.numel() for p in NextScaleTransformer(config).parameters()) == PARAMETERS[size]


SCALE = "blocks.0.attn.scale_mul_1H11"


@pytest.mark.parametrize(
    ("lacking", "changed", "message"),
    [
        ("lvl_1L", {}, "no table lvl_1L"),
        ("blocks.0.ffn", {}, "lacks blocks.0.ffn"),
        ("-", {"blocks.2.attn.q_bias": torch.zeros(64)}, "lacks blocks.2"),  # a file of another depth
        (SCALE, {}, "normalised queries"),
        ("-", {SCALE: torch.zeros(1, 5, 1, 1)}, "5 heads do not fit a width of 64"),
        ("-", {"word_embed.weight": torch.zeros(64, 9)}, "vectors of 9 numbers"),
        ("-", {"head.weight": torch.zeros(65, 64)}, "predicts 65 labels"),
        ("-", {"head.bias": torch.full((64,), torch.nan)}, "NaN|finite"),
    ],
)
def test_files_that_do_not_match_are_refused(tokenizer, lacking, changed, message):
    state = torch.load(GOLDEN / "var_adaln.pt", weights_only=True)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(lacking)} | changed
    with pytest.raises(InputError, match=message) as error:
        load_var(state, tokenizer)
    assert "\n" not in str(error.value)


def test_a_tokenizer_is_no_transformer(tokenizer):
    with pytest.raises(InputError, match="is VAR's tokenizer, not VAR's transformer"):
        load_var(GOLDEN / "vq.pt", tokenizer)


@pytest.mark.parametrize("scales", [(1, 3, 4), (1, 2, 3, 4)])
def test_other_scales_are_refused(scales):
    with pytest.raises(InputError, match=r"has the scales 1x1,2x2,4x4, the tokenizer 1x1,.*: open it with"):
        load_var(GOLDEN / "var_adaln.pt", load_tokenizer(GOLDEN / "vq.pt", scales))
