import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_runs import logged, make_image_set, make_token_objective, make_token_set, run

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.images.pixels import to_bytes
from ctf.layout import Layout
from ctf.stages import new_stage
from ctf.tokenizer import TokenizerConfig, VQTokenizer
from ctf.tokens import TokenSet, tokenize_images
from ctf.training.config import OptimizerConfig
from ctf.training.token_objective import TokenObjective

FINER_MAP = CoarseMap(torch.arange(16) % 8, "test", 0, "none")
NAMES = pytest.mark.parametrize("name", ["baseline", "coarse", "fine"])


@pytest.fixture
def tokenizer():
    return VQTokenizer(TokenizerConfig(32, (1,), 1, 1, 8, codebook_size=16, codebook_dim=4, patch_size=8)).eval()


@pytest.mark.parametrize(
    ("name", "settings", "choices"),
    [
        ("baseline", {}, 16),
        ("coarse", {}, 4),
        ("fine", {}, 4),
        ("fine", {"support": "full"}, 16),
        ("fine", {"predicts": FINER_MAP}, 2),
    ],
)
def test_the_loss_begins_at_chance_and_tokens_are_memorised(name, settings, choices, tmp_path):
    tokens = make_token_set(tmp_path / "tokens", images=4)
    objective = make_token_objective(tokens, name, held_out=tokens, **settings)
    optimizer = OptimizerConfig(learning_rate=1e-2, weight_decay=0)
    metrics = run(objective, tmp_path / "run", optimizer, steps=60, batch_size=4, log_every=1)
    assert logged(tmp_path / "run")[0] == pytest.approx(math.log(choices), rel=1e-4)
    # Two images of a class begin alike, so that a causal model keeps log 2 in 4 for the first token.
    assert metrics["held_out/loss"] < 0.35 * math.log(choices)
    assert metrics["held_out/bits_per_token"] == pytest.approx(metrics["held_out/loss"] / math.log(2))


@pytest.mark.parametrize("support", ["cluster", "full"])
def test_an_evaluation_is_the_mean_likelihood_of_the_held_out_tokens(support, tokens):
    coarse = make_token_objective(tokens, "coarse", held_out=tokens)
    fine = make_token_objective(tokens, "fine", held_out=tokens, support=support)
    for objective in (coarse, fine):
        objective.module.eval().requires_grad_(False)
        torch.nn.init.normal_(objective.module.transformer.head.weight, std=0.3)

    images, labels = tokens.gather(range(len(tokens))), torch.from_numpy(tokens.labels)
    scores = [objective.module.scores(images, labels) for objective in (coarse, fine)]
    metrics = [objective.evaluate(objective.module) for objective in (coarse, fine)]
    expected = -sum(float(log_prob.mean()) for log_prob, _ in scores)
    assert sum(m["held_out/loss"] for m in metrics) == pytest.approx(expected, rel=1e-5)
    assert metrics[0]["held_out/accuracy"] == pytest.approx(float(scores[0][1].double().mean()))


@NAMES
def test_evaluation_needs_held_out_tokens_and_a_sheet_a_tokenizer(name, tokens):
    objective = make_token_objective(tokens, name)
    assert objective.evaluate(objective.module) == {}
    assert objective.sheet(objective.module) is None


@NAMES
@torch.no_grad()
def test_every_stage_makes_a_sheet(name, tokens, tokenizer):
    objective = make_token_objective(tokens, name, tokenizer=tokenizer)
    sheet = objective.sheet(objective.module.eval())
    assert sheet.width > 2 * 16
    assert sheet.height > 16


@pytest.mark.parametrize(("settings", "level"), [({}, None), ({"predicts": FINER_MAP}, FINER_MAP)])
@torch.no_grad()
def test_a_sheet_shows_the_images_of_given_labels(settings, level, tokens, tokenizer):
    objective = make_token_objective(tokens, "fine", tokenizer=tokenizer, **settings)
    sheet = objective.sheet(objective.module.eval())
    vectors = tokenizer.codebook[tokens.gather([0])]
    if level is not None:  # coarse labels look like the mean codeword of their cluster
        clusters = level.to_coarse(tokens.gather([0]))[0].tolist()
        means = torch.stack([tokenizer.codebook[level.members(m)].mean(0) for m in clusters])[None]
        vectors = tokenizer.project(means)
    decoded = to_bytes(tokenizer.decode_embeddings(vectors, objective.module.layout))[0]
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(sheet).astype(int), decoded.shape)
    assert (np.abs(windows - decoded) <= 1).all((-1, -2, -3)).any()  # 1: a batch of two rounds differently from one


def test_held_out_labels_are_matched_by_name(tokens, tmp_path):
    held_out = make_token_set(tmp_path / "held_out", class_names=["1", "0"])
    objective = make_token_objective(tokens, held_out=held_out)
    assert objective.held_out.labels.tolist() == (1 - held_out.labels).tolist()
    fewer = make_token_set(tmp_path / "fewer", images=1, class_names=["1"])
    assert make_token_objective(tokens, held_out=fewer).held_out.labels.tolist() == [1]


def test_mismatched_parts_are_refused(tokens, tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"has images of the class 'new', which is none of .*'s classes"):
        make_token_objective(tokens, held_out=make_token_set(tmp_path / "new", class_names=["0", "new"]))
    known, other = (make_token_set(tmp_path / str(i), codebook=torch.randn(16, 4)) for i in range(2))
    with pytest.raises(InputError, match="belong to different codebooks: cluster again"):
        make_token_objective(known, "coarse")
    with pytest.raises(InputError, match="belong to different codebooks: tokenize or cluster again"):
        make_token_objective(known, held_out=other)
    with pytest.raises(InputError, match="codebook"):
        make_token_objective(known, tokenizer=tokenizer)
    assert make_token_objective(known, held_out=tokens).held_out is tokens  # tokens of an unknown codebook go with any


def test_a_tokenizer_with_other_convolutions_between_scales_is_refused(tmp_path, scales_pipeline):
    tokenizer = scales_pipeline.tokenizer
    tokens = tokenize_images(make_image_set(size=16), tokenizer, tmp_path / "tokens")
    other = copy.deepcopy(tokenizer)
    other.quantizer.residual.convolutions[2].bias.data[0] += 1e-3

    def objective(tokenizer, tokens=tokens):
        facts = {"layout": tokens.layout, "num_classes": 1, "codebook_size": 24, "tokenizer": tokenizer}
        stage = new_stage("next_scale", "nano", name="baseline", codebook=tokens.fingerprint_of_codebook, **facts)
        return TokenObjective(stage, tokens, tokenizer=tokenizer)

    assert objective(tokenizer).num_images == 20
    with pytest.raises(InputError, match="was made with other convolutions between scales: use the tokenizer that"):
        objective(other)
    index = dataclasses.replace(tokens.index, residual=None)  # of a set from before, which does not say
    index.save(tokens.folder)
    assert objective(other, TokenSet.open(tokens.folder)).num_images == 20


@pytest.mark.parametrize("size", [{"codebook_size": 32}, {"layout": Layout((1, 4))}, {"num_classes": 3}])
def test_a_stage_of_other_sizes_is_refused(size, tokens):
    with pytest.raises(InputError, match="differs from what the stage is for in codebook size, layout or classes"):
        make_token_objective(tokens, **size)
