"""The models against outputs of the LlamaGen implementation: see tests/golden/llamagen/README.md."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctf.interop import llamagen
from ctf.layout import Layout
from ctf.stages import generate_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "llamagen"
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def gpt():
    return llamagen.load_gpt(GOLDEN / "gpt_mha.pt", num_heads=4, layout=Layout.square(4))


def test_gpt_logits_loss_and_gradients(gpt):
    golden = load_file(GOLDEN / "gpt_mha.safetensors")
    logits = gpt.logits(golden["tokens"], golden["labels"])
    loss = gpt(golden["tokens"], golden["labels"]).mean()
    loss.backward()
    torch.testing.assert_close(logits, golden["logits"], **CLOSE)
    torch.testing.assert_close(loss[None], golden["loss"], **CLOSE)
    ours = {
        llamagen.official_names(name, llamagen.GPT_NAMES)[0]: p.grad for name, p in gpt.transformer.named_parameters()
    }
    gradients = {name.removeprefix("grad."): value for name, value in golden.items() if name.startswith("grad.")}
    assert len(gradients) == 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, **CLOSE)


@pytest.mark.parametrize("cfg_scale", [1, 2])
def test_greedy_generation(gpt, cfg_scale):
    golden = load_file(GOLDEN / "gpt_mha.safetensors")
    tokens = generate_tokens(gpt, golden["greedy_labels"], cfg_scale=float(cfg_scale), temperature=0.0)
    assert torch.equal(tokens, golden[f"greedy_cfg{cfg_scale}"])


@pytest.mark.parametrize("name", ["vq16", "vq8"])
@torch.no_grad()
def test_tokenizer_encodes_and_decodes(name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    tokenizer = llamagen.load_tokenizer(GOLDEN / f"{name}.pt")
    features = tokenizer.features(golden["images"])
    quantized = tokenizer.quantizer(features)
    torch.testing.assert_close(features, golden["pre_quant"].flatten(2).transpose(1, 2), **CLOSE)
    torch.testing.assert_close(quantized.vectors, golden["quantized"].flatten(2).transpose(1, 2), **CLOSE)
    assert torch.equal(tokenizer.encode(golden["images"]), golden["tokens"])
    torch.testing.assert_close(tokenizer.decode(golden["tokens"]), golden["reconstruction"], **CLOSE)
