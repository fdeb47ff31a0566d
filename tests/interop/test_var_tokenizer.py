"""VAR's tokenizer against the outputs of its public implementation, and its file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctf.errors import InputError
from ctf.interop import var
from ctf.layout import Layout
from ctf.tokenizer import MultiScaleConfig, MultiScaleTokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "var"
CLOSE = {"atol": 1e-4, "rtol": 0}
SETTINGS = json.loads((GOLDEN / "vq.json").read_text())
LAYOUT = Layout.square(*SETTINGS["patch_nums"])


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "vq.safetensors")


@pytest.fixture(scope="module")
def state():
    return torch.load(GOLDEN / "vq.pt", weights_only=True)


@pytest.fixture
def tokenizer():
    return var.load_tokenizer(GOLDEN / "vq.pt", SETTINGS["patch_nums"])


def as_maps(rows):
    return rows.transpose(1, 2).unflatten(2, LAYOUT.finest)


# ---------------------------------------------------------------------------------------------- golden vectors


@torch.no_grad()
def test_encoding(tokenizer, golden):
    torch.testing.assert_close(as_maps(tokenizer.features(golden["images"])), golden["features"], **CLOSE)
    assert torch.equal(tokenizer.encode(golden["images"]), golden["tokens"])


@torch.no_grad()
def test_sums_and_previews_after_each_scale(tokenizer, golden):
    vectors = tokenizer.embed(golden["tokens"])
    sums = tokenizer.quantizer.residual.partial_sums(vectors, LAYOUT)
    for scale, (part, f_hat) in enumerate(zip(LAYOUT.slices, sums, strict=True)):
        torch.testing.assert_close(f_hat, golden["f_hat"][scale], **CLOSE)
        preview = tokenizer.decode_embeddings(vectors[:, : part.stop], LAYOUT)
        torch.testing.assert_close(preview.clamp(-1, 1), golden["previews"][scale], **CLOSE)
    decoded = tokenizer.decode(golden["tokens"])
    torch.testing.assert_close(decoded, golden["reconstruction_unclamped"], **CLOSE)
    torch.testing.assert_close(decoded.clamp(-1, 1), golden["reconstruction"], **CLOSE)


@torch.no_grad()
def test_tokens_of_no_image(tokenizer, golden):
    tokens = golden["drawn_tokens"]
    f_hat = tokenizer.quantizer.residual(tokenizer.embed(tokens), LAYOUT)
    torch.testing.assert_close(f_hat, golden["drawn_f_hat"], **CLOSE)
    torch.testing.assert_close(tokenizer.decode(tokens), golden["drawn_unclamped"], **CLOSE)


@pytest.mark.parametrize("drawn", ["", "drawn_"])
@torch.no_grad()
def test_inputs_of_a_next_scale_transformer(tokenizer, golden, drawn):
    found = tokenizer.quantizer.residual.next_scale_input(tokenizer.embed(golden[f"{drawn}tokens"]), LAYOUT)
    torch.testing.assert_close(found, golden[f"{drawn}var_input"], **CLOSE)


@torch.no_grad()
def test_other_scales_with_the_same_weights(tokenizer, golden):
    layout = Layout.square(*SETTINGS["larger_patch_nums"])
    larger = var.load_tokenizer(GOLDEN / "vq.pt", SETTINGS["larger_patch_nums"])
    assert torch.equal(larger.encode(golden["larger_images"]), golden["larger_tokens"])
    f_hat = tokenizer.quantizer.residual(tokenizer.embed(golden["larger_tokens"]), layout)
    torch.testing.assert_close(f_hat, golden["larger_f_hat"], **CLOSE)
    decoded = tokenizer.decode(golden["larger_tokens"], layout)
    assert torch.equal(decoded, larger.decode(golden["larger_tokens"]))
    assert decoded.shape == golden["larger_images"].shape


def test_the_training_loss_and_its_gradients(tokenizer, golden):
    features = golden["features"].flatten(2).transpose(1, 2).clone().requires_grad_()
    quantized = tokenizer.quantizer(features)
    torch.testing.assert_close(as_maps(quantized.vectors), golden["straight_through"], **CLOSE)
    assert torch.equal(quantized.tokens, golden["tokens"])
    loss = quantized.codebook_loss + 0.25 * quantized.commitment_loss
    torch.testing.assert_close(loss, golden["vq_loss"][0], **CLOSE)
    loss.backward()
    torch.testing.assert_close(as_maps(features.grad), golden["grad.features"], **CLOSE)
    torch.testing.assert_close(tokenizer.quantizer.weight.grad, golden["grad.embedding"], **CLOSE)
    for number, convolution in enumerate(tokenizer.quantizer.residual.convolutions):
        expected = golden.get(f"grad.phi.{number}", torch.zeros_like(convolution.weight))  # 3 scales leave one unused
        torch.testing.assert_close(convolution.weight.grad, expected, **CLOSE)


# ---------------------------------------------------------------------------------------------------- the file


def test_within_a_training_checkpoint(state, golden, tmp_path):
    trainer = {"config": {}, "var_wo_ddp": {"word_embed.weight": torch.zeros(2, 2)}, "vae_local": state}
    torch.save({"epoch": 3, "trainer": trainer}, tmp_path / "ar-ckpt-last.pth")
    for file in (tmp_path / "ar-ckpt-last.pth", trainer, {"state_dict": state}):
        tokenizer = var.load_tokenizer(file, SETTINGS["patch_nums"])
        assert torch.equal(tokenizer.encode(golden["images"]), golden["tokens"])


def test_the_released_size_is_recognised(monkeypatch):
    """324 entries and 108.95 M parameters, of the device "meta", which has shapes and no values to check."""
    monkeypatch.setattr("ctf.interop.translation.check_finite", lambda where, tensors: None)
    with torch.device("meta"):
        released = var._tokenizer_translation(MultiScaleConfig()).theirs(MultiScaleTokenizer(MultiScaleConfig()))
        released[var.USAGE] = torch.zeros(10, 4096)
        assert len(released) == 324
        tokenizer = var.load_tokenizer(released)
    assert tokenizer.config == MultiScaleConfig()
    assert round(sum(p.numel() for p in tokenizer.parameters()) / 1e6, 2) == 108.95
    assert tokenizer.layout((256, 256)).num_tokens == 680


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


def unfit(state):
    """Files that are refused, and what is said of each."""
    shared = "quantize.quant_resi.qresi_ls."
    five = {f"{shared}4.{part}": state[f"{shared}3.{part}"] for part in ("weight", "bias")}
    single = {name.replace("qresi_ls.0", "qresi"): tensor for name, tensor in state.items() if "qresi_ls" not in name}
    single |= {f"quantize.quant_resi.qresi.{part}": state[f"{shared}0.{part}"] for part in ("weight", "bias")}
    return {
        "the scales share .*qresi_ls.0.* and 2 more; ctf reads four": {**state, **five},
        r"the scales share quantize\.quant_resi\.qresi; ctf reads four": single,
        r"lacks decoder\.mid\.attn_1\.qkv\.bias": without(state, "decoder.mid.attn_1.qkv.bias"),
        r"quant_conv\.weight is float32 \[8, 8, 1, 1\]": {**state, "quant_conv.weight": torch.zeros(8, 8, 1, 1)},
        "holds decoder.extra, which VAR's layout does not have": {**state, "decoder.extra": torch.zeros(1)},
        "quant_conv.bias holds NaN": {**state, "quant_conv.bias": torch.full((8,), torch.nan)},
        "is VAR's transformer, not VAR's tokenizer": {"word_embed.weight": torch.zeros(2, 2)},
        "is another model": {"encoder.conv_blocks.0.res.0.conv1.weight": torch.zeros(2, 2)},
    }


def test_files_that_are_refused(state):
    for message, file in unfit(state).items():
        with pytest.raises(InputError, match=message) as error:
            var.load_tokenizer(file, SETTINGS["patch_nums"])
        assert "\n" not in str(error.value)


def test_other_scales_than_the_released_ones_are_asked_for(state):
    with pytest.raises(InputError, match="has 3 scales, not VAR's 10: give their sides"):
        var.load_tokenizer(state)


def test_without_a_record_of_scales_they_are_the_released_ones(state):
    assert var.load_tokenizer(without(state, var.USAGE)).config.scales == MultiScaleConfig().scales
