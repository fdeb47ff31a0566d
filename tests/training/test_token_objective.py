import math

import numpy as np
import pytest
import torch
from tiny_runs import COARSE_MAP, make_token_objective, make_token_set, run

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.images.pixels import to_bytes
from ctf.tokenizer import TokenizerConfig, VQTokenizer
from ctf.training.config import OptimizerConfig
from ctf.training.log import read_log


@pytest.mark.parametrize(
    ("stage", "support", "choices"),
    [("baseline", "full", 16), ("coarse", "full", 4), ("fine", "cluster", 4), ("fine", "full", 16)],
)
def test_the_loss_begins_at_chance_and_tokens_are_memorised(stage, support, choices, tmp_path):
    tokens = make_token_set(tmp_path / "tokens", images=4)
    objective = make_token_objective(tokens, stage, support=support, held_out=tokens)
    optimizer = OptimizerConfig(learning_rate=4e-3, weight_decay=0)
    figures = run(objective, tmp_path / "run", optimizer, steps=40, batch_size=4, log_every=1)
    assert read_log(tmp_path / "run" / "log.jsonl")[0]["loss"] == pytest.approx(math.log(choices), rel=1e-4)
    # Two images of a class begin alike, so that a causal model keeps log 2 in 4 for the first token.
    assert figures["held_out/loss"] < 0.35 * math.log(choices)
    assert figures["held_out/bits_per_token"] == pytest.approx(figures["held_out/loss"] / math.log(2))


@pytest.mark.parametrize("support", ["cluster", "full"])
def test_coarse_and_fine_add_up_to_the_likelihood_of_the_same_tokens(support, tokens):
    coarse = make_token_objective(tokens, "coarse", held_out=tokens)
    fine = make_token_objective(tokens, "fine", held_out=tokens, support=support)
    for objective in (coarse, fine):
        objective.module.requires_grad_(False)
        torch.nn.init.normal_(objective.module.head.weight, std=0.3)
        objective.module.eval()

    nats = 0.0
    for image, label in zip(tokens.gather(range(len(tokens))), torch.from_numpy(tokens.labels), strict=True):
        labels = COARSE_MAP.fine_to_coarse[image]
        p_coarse = coarse.module(labels[None], label[None])[0].softmax(-1)
        p_fine = fine.module(labels[None], label[None])[0].softmax(-1)
        for i in range(len(image)):
            alternatives = COARSE_MAP.members(int(labels[i])) if support == "cluster" else torch.arange(16)
            nats -= float(p_coarse[i, labels[i]].log() + (p_fine[i, image[i]] / p_fine[i, alternatives].sum()).log())
    with torch.no_grad():
        total = coarse.evaluate(coarse.module)["held_out/loss"] + fine.evaluate(fine.module)["held_out/loss"]
    assert total == pytest.approx(nats / (len(tokens) * 4), rel=1e-5)


@pytest.mark.parametrize("stage", ["baseline", "coarse", "fine"])
def test_sheets(stage, tokens):
    config = TokenizerConfig(32, (1,), 1, 1, 8, codebook_size=16, codebook_dim=4, patch_size=8)
    objective = make_token_objective(tokens, stage, tokenizer=VQTokenizer(config).eval())
    with torch.no_grad():
        sheet = objective.sheet(objective.module.eval())
    assert sheet.width > 2 * 16
    assert sheet.height > 16


def test_a_fine_sheet_shows_the_tokens_themselves_first(tokens):
    config = TokenizerConfig(32, (1,), 1, 1, 8, codebook_size=16, codebook_dim=4, patch_size=8)
    tokenizer = VQTokenizer(config).eval()
    objective = make_token_objective(tokens, "fine", tokenizer=tokenizer)
    with torch.no_grad():
        sheet = objective.sheet(objective.module.eval())
    painted = to_bytes(tokenizer.decode(tokens.gather([0])))[0]
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(sheet).astype(int), painted.shape)
    assert (np.abs(windows - painted) <= 1).all((-1, -2, -3)).any()  # 1: a batch of two rounds differently from one


def test_parts_that_do_not_belong_together(tokens, tmp_path):
    small = CoarseMap(torch.arange(8) % 2, "test", 0, "none")
    with pytest.raises(InputError, match="needs a coarse map"):
        make_token_objective(tokens, "coarse", coarse_map=None)
    with pytest.raises(InputError, match="codebook of 16, the coarse map is for 8"):
        make_token_objective(tokens, "coarse", coarse_map=small)
    with pytest.raises(InputError, match="differs from"):
        make_token_objective(tokens, held_out=make_token_set(tmp_path / "one", images=1))
    known, other = (make_token_set(tmp_path / str(i), codebook=torch.randn(16, 4)) for i in range(2))
    with pytest.raises(InputError, match="belong to different codebooks: cluster again"):
        make_token_objective(known, "coarse")
    with pytest.raises(InputError, match="belong to different codebooks: tokenize again"):
        make_token_objective(known, held_out=other)
    assert make_token_objective(known, held_out=tokens).held_out is tokens  # tokens of an unknown codebook go with any
