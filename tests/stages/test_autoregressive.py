"""Decoding against a naive loop: the whole sequence at each step, no cache, guidance on logits."""

import pytest
import torch
from stage_cases import LABELS, SEEDS, N, guided_logits, scale_at

from ctf.layout import Layout
from ctf.sampling import Random, Sampling, draw
from ctf.stages import generate_tokens

SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.7},
    {"top_k": 3},
    {"top_k": 1},
    {"top_p": 0.6},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.7},
]
KIND = "autoregressive"


def naive_tokens(stage, labels, seeds, given, place=0, cfg_scale=1.0, cfg_schedule="constant", **filters):
    uniform, tokens = Random(seeds, place).uniform(N), torch.zeros(len(labels), N, dtype=torch.int64)
    for i in range(N):
        scale = scale_at(i, N, i / N, cfg_scale, cfg_schedule)
        logits = guided_logits(stage, tokens, labels, given, scale)[:, i]
        tokens[:, i] = draw(logits, uniform[:, i], Sampling(**filters))
    return tokens


@pytest.mark.parametrize(
    "guidance",
    [
        *({"cfg_scale": s} for s in (0.0, 1.0, 2.5)),
        *({"cfg_scale": 2.5, "cfg_schedule": s} for s in ("steps", "known")),
    ],
    ids=str,
)
@pytest.mark.parametrize(("number", "settings"), [*enumerate(SETTINGS)], ids=str)
def test_against_naive_decoding(make, coarse, guidance, number, settings):
    """Without given labels, and with them in one of four ways."""
    settings = {**guidance, **settings}
    for task in "all tokens", ["fine", "fine, full", "middle", "middle, full"][number % 4]:
        stage, given, place = make(KIND, task), None if task == "all tokens" else coarse, int(task != "all tokens")
        expected = naive_tokens(stage, LABELS, SEEDS, given, place=place, **settings)
        tokens = generate_tokens(stage, LABELS, SEEDS, given, place=place, **settings)
        assert torch.equal(tokens, expected)


def test_a_stage_generates_with_its_defaults_unless_settings_are_given(make):
    own = Sampling(cfg_scale=2.0, temperature=0.5, top_k=4)
    stage = make(KIND, sampling=own)
    tokens = stage.generate(LABELS, Random(SEEDS))
    settings = {"cfg_scale": 2.0, "temperature": 0.5, "top_k": 4}
    assert torch.equal(tokens, generate_tokens(stage, LABELS, SEEDS, **settings))
    assert torch.equal(stage.generate(LABELS, Random(SEEDS), Sampling()), generate_tokens(stage, LABELS, SEEDS))


def test_tokens_can_be_trained_on(make):
    stage = make(KIND)
    stage(generate_tokens(stage, LABELS, SEEDS), LABELS).sum().backward()
    assert stage.transformer.token_embedding.weight.grad is not None


@torch.no_grad()
def test_cells_with_one_centre_are_told_apart_by_what_they_see(make_stage):
    """The next token after position 0 and after position 5, whose inputs and coordinates are equal."""
    stage, tokens = make_stage(KIND, layout=Layout.square(1, 3), codebook_size=4), torch.zeros(1, 10, dtype=torch.int64)
    coordinates = stage.layout.coordinates
    assert coordinates[0][1:] == coordinates[5][1:]
    logits = stage.logits(tokens, torch.tensor([1]))[0]
    assert (logits[1] - logits[6]).abs().max() > 1e-3
