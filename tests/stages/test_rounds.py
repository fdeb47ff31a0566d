"""Rounds of a masked stage against a loop written out: all labels through the network, with a word for hidden ones."""

import math

import pytest
import torch
from stage_cases import EVERY_TASK, LABELS, LAYOUT, SEEDS, SETTINGS, TASKS, N, guided_logits, in_pairs, scale_at

from ctf.layout import Layout
from ctf.sampling import Random, Sampling, draw
from ctf.sampling.orders import group_sizes, order_groups
from ctf.stages import generate_tokens

KIND = "masked, any"
WAYS = [
    {"steps": 8, "order": "random", "order_seed": 5},
    {"steps": 5, "order": "halton"},
    {"steps": 3, "order": "locality", "schedule": "arccos"},
    {"steps": 2, "order": "raster", "schedule": "uniform"},
    {"steps": 1, "order": "halton"},
]


def round_logits(stage, known, labels, given, step=0, steps=1, **guidance):
    """Logits of all positions (B, N, vocabulary) from labels, −1 where hidden; −inf outside given clusters."""
    scale = scale_at(step, steps, int((known[0] >= 0).sum()) / N, **guidance)
    return guided_logits(stage, known.masked_fill(known < 0, stage.vocabulary), labels, given, scale)


def split(settings):
    """Guidance and filters."""
    guidance = {name: value for name, value in settings.items() if name.startswith("cfg_")}
    return guidance, Sampling(**{name: value for name, value in settings.items() if name not in guidance})


def naive_tokens(stage, labels, seeds, given, way, settings):
    sizes = group_sizes(N, way["steps"], way.get("schedule", "cosine"))
    groups = order_groups(way["order"], LAYOUT, tuple(sizes), way.get("order_seed", 0))
    (guidance, filters), uniform = split(settings), Random(seeds).uniform(N)
    tokens = torch.full((len(labels), N), -1)
    for step, group in enumerate(groups):
        logits = round_logits(stage, tokens, labels, given, step, len(groups), **guidance)
        tokens[:, group] = draw(logits, uniform, filters)[:, group]
    return tokens


def naive_confident_tokens(stage, labels, seeds, given, steps, settings):
    """One image and one position after another (MaskGIT 2202.04200, section 3.2)."""
    guidance, filters = split(settings)
    tokens = torch.full((len(labels), N), -1)
    for step, size in enumerate(group_sizes(N, steps)):
        logits = round_logits(stage, tokens, labels, given, step, steps, **guidance)
        choice = draw(logits, Random(seeds).uniform(N, step), filters)
        uniform = Random(seeds).uniform(N, steps + step)
        for b in range(len(labels)):
            confidence = {
                i: float(logits[b, i].log_softmax(-1)[choice[b, i]])
                - 4.5 * (1 - (step + 1) / steps) * math.log(-math.log(uniform[b, i]))
                for i in range(N)
                if tokens[b, i] < 0
            }
            for i in sorted(confidence, key=confidence.get)[-size:]:
                tokens[b, i] = choice[b, i]
    return tokens


@in_pairs(("task", "settings", "way"), TASKS, SETTINGS, WAYS)
def test_rounds_in_a_fixed_order(make, coarse, task, settings, way):
    stage = make(KIND, task, kv_heads=1 if way["steps"] % 2 else None)
    given = None if stage.given is None else coarse
    expected = naive_tokens(stage, LABELS, SEEDS, given, way, settings)
    assert torch.equal(stage.generate(LABELS, Random(SEEDS), Sampling(**way, **settings), given), expected)
    assert torch.equal(generate_tokens(stage, LABELS, SEEDS, given, **way, **settings), expected)


@in_pairs(("task", "settings", "steps"), ["all tokens", "fine", "middle, full"], SETTINGS, [1, 3, 8])
def test_rounds_keep_the_most_confident(make, coarse, task, settings, steps):
    stage = make(KIND, task)
    given = None if stage.given is None else coarse
    expected = naive_confident_tokens(stage, LABELS, SEEDS, given, steps, settings)
    tokens = generate_tokens(stage, LABELS, SEEDS, given, steps=steps, order="confidence", **settings)
    assert torch.equal(tokens, expected)


@EVERY_TASK
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_likelihood_is_that_of_the_round_that_draws(make, tokens, task, way):
    stage = make(KIND, task)
    (targets, given), sampling = stage.levels(tokens), Sampling(**way)
    known, expected = torch.full((5, N), -1), torch.empty(5, N)
    for group in (torch.arange(N)[group.at] for group in stage.plan(sampling).groups):
        of_right = round_logits(stage, known, LABELS, given).log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
        known[:, group], expected[:, group] = targets[:, group], of_right[:, group]
    torch.testing.assert_close(stage.log_prob(tokens, LABELS, sampling), expected, rtol=1e-4, atol=1e-5)


# --- training ---


@pytest.mark.parametrize("task", ["all tokens", "fine"])
def test_a_training_loss_is_that_of_hidden_labels_given_the_others(make, task):
    """Of two positions one is hidden, or the other, or both."""
    stage, tokens, label = make(KIND, task, layout=Layout((1, 2))), torch.tensor([[3, 17]]), torch.tensor([1])
    targets, given = stage.levels(tokens)
    possible = {}
    for hidden in ([0], [1], [0, 1]):
        known = targets.index_fill(1, torch.tensor(hidden), -1)
        log_prob = round_logits(stage, known, label, given).log_softmax(-1)
        possible[tuple(hidden)] = [-float(log_prob[0, i, targets[0, i]]) for i in hidden]
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        losses = stage(tokens, label).tolist()
        found = {hidden for hidden, expected in possible.items() if losses == pytest.approx(expected, abs=1e-5)}
        assert len(found) == 1
        seen |= found
    assert seen == possible.keys()


def test_two_of_pi_labels_are_hidden_on_average(make_stage):
    stage = make_stage(KIND, layers=1, layout=Layout.square(8))
    torch.manual_seed(0)
    losses = stage(torch.zeros(1000, 64, dtype=torch.int64), torch.zeros(1000, dtype=torch.int64))
    rounded_up = 0.5 / 64  # on average
    assert losses.numel() / 64_000 == pytest.approx(2 / math.pi + rounded_up, abs=0.03)  # 3 standard deviations
