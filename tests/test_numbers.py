"""Tokens, bits and losses equal those of an earlier version: see tests/golden/ctf/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training.tiny_runs import make_image_set

from ctf.evaluation import bits_per_token
from ctf.images import open_images, to_tensor
from ctf.interop import llamagen
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.stages import generate_tokens, new_stage
from ctf.tokenizer import TokenizerConfig
from ctf.tokens import write_token_set
from ctf.training import LoopConfig, OptimizerConfig, TokenizerTraining, train
from ctf.training.token_objective import TokenObjective
from ctf.training.tokenizer_objective import TokenizerObjective

GOLDEN = Path(__file__).parent / "golden"
NUMBERS = json.loads((GOLDEN / "ctf" / "numbers.json").read_text())
SEEDS = [0, 7, 2**40]
SETTINGS = {
    "plain": {"cfg_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "filtered": {"cfg_scale": 1.0, "temperature": 0.9, "top_k": 200, "top_p": 0.9},
    "guided": {"cfg_scale": 3.0, "temperature": 0.9, "top_k": 0, "top_p": 0.9},
}
FINE = {
    "plain": {"fine_temperature": 1.0},
    "filtered": {"fine_temperature": 0.8, "fine_top_k": 20, "fine_top_p": 0.95},
    "guided": {"fine_temperature": 0.8, "fine_cfg_scale": 1.5},
}
LOOP = LoopConfig(
    batch_size=4,
    steps=20,
    log_every=1,
    evaluate_every=0,
    checkpoint_every=0,
    precision="float32",
    device="cpu",
    seed=3,
)


@pytest.fixture(scope="module")
def emoji():
    return Pipeline.from_pretrained("emoji")


def assert_same_tokens(tokens, name):
    """Two of the three images must be equal: a random number between two tokens may choose the other on another CPU."""
    assert (tokens == torch.tensor(NUMBERS[name])).all(1).sum() >= 2


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_of_the_bundled_model_are_golden(emoji, name):
    tokens = emoji.generate_tokens(torch.tensor([3, 17, 42]), SEEDS, **SETTINGS[name], **FINE[name])
    assert_same_tokens(tokens, f"emoji, {name}")


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_of_a_llamagen_baseline_are_golden(name):
    gpt = llamagen.load_gpt(GOLDEN / "llamagen" / "gpt_mha.pt", num_heads=4, layout=Layout.square(4))
    settings = {**SETTINGS[name], "top_k": SETTINGS[name]["top_k"] // 10}
    assert_same_tokens(generate_tokens(gpt, torch.tensor([0, 5, 9]), SEEDS, **settings), f"llamagen, {name}")


def test_bits_per_token_are_golden(emoji, tmp_path):
    test = open_images("emoji-subgroups-by-design", "test")
    chosen = np.linspace(0, len(test) - 1, 64).astype(int)
    tokens = emoji.tokenizer.encode(to_tensor(np.stack([test.read(int(i)) for i in chosen])))
    codebook = emoji.tokenizer.codebook
    token_set = write_token_set(
        tmp_path, tokens, test.labels[chosen], 16_384, (8, 8), test.class_names, codebook=codebook
    )
    found = bits_per_token(emoji, token_set, progress=False)
    known = NUMBERS["bits per token"]
    assert {name: found[name] for name in known} == pytest.approx(known, rel=1e-3)


def losses(objective, folder):
    """The loss of each of 20 steps."""
    found = []

    class Recorded(type(objective)):
        def loss(self, *arguments):
            value, more = super().loss(*arguments)
            found.append(float(value.detach()))
            return value, more

    objective.__class__ = Recorded
    train(objective, folder, OptimizerConfig(learning_rate=1e-3, warmup_steps=3), LOOP, LOOP)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "level", "support"),
    [
        ("baseline", "autoregressive", None, "cluster"),
        ("coarse", "autoregressive", "predicts", "cluster"),
        ("fine, cluster", "masked", "given", "cluster"),
        ("fine, full", "masked", "given", "full"),
    ],
)
def test_losses_of_stages_are_golden(emoji, tmp_path, name, kind, level, support):
    drawn = np.random.default_rng(0).integers(0, 16_384, (16, 64))
    labels, codebook, names = np.arange(16) % 54, emoji.tokenizer.codebook, [str(i) for i in range(54)]
    tokens = write_token_set(tmp_path / "tokens", drawn, labels, 16_384, (8, 8), names, codebook=codebook)
    facts = {level: emoji.stages[0].predicts} if level else {}
    torch.manual_seed(3)
    sizes = {"layout": Layout.square(8), "num_classes": 54, "codebook_size": 16_384}
    stage = new_stage(kind, "nano", name="stage", support=support, **sizes, **facts)
    found = losses(TokenObjective(stage, tokens), tmp_path / "run")
    assert found == pytest.approx(NUMBERS[f"losses, {name}"], rel=1e-3)


def test_losses_of_a_tokenizer_are_golden(tmp_path):
    model = TokenizerConfig(32, (1, 2), 1, 1, z_channels=16, codebook_size=32, codebook_dim=4, patch_size=4)
    config = TokenizerTraining(
        out="", image_size=32, warmup_without_codebook=5, restart_after=3, restart_until=1.0, model=model, loop=LOOP
    )
    torch.manual_seed(3)
    found = losses(TokenizerObjective(config, 20, make_image_set(), None), tmp_path)
    assert found == pytest.approx(NUMBERS["losses, tokenizer"], rel=0.02)  # k-means and restarts amplify rounding
