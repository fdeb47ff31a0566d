"""Rounds of a masked stage against a loop written out: all labels through the network, with a word for hidden ones."""

import itertools
import math

import pytest
import torch

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models import Compute
from ctf.sampling import Random, Sampling, draw
from ctf.sampling.orders import group_sizes, order_groups
from ctf.stages import generate_tokens
from ctf.stages.masked import TOGETHER

KIND, LAYOUT, N = "masked, any", Layout((2, 4)), 8
LABELS = torch.tensor([0, 4, 2, 5, 1])  # 5 is unconditional
SEEDS = [3, 0, 2**63, 7, 3]
TASKS = pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full", "middle", "middle, full"])
WAYS = [
    {"steps": 8, "order": "random", "order_seed": 5},
    {"steps": 5, "order": "halton"},
    {"steps": 3, "order": "locality", "schedule": "arccos"},
    {"steps": 2, "order": "raster", "schedule": "uniform"},
    {"steps": 1, "order": "halton"},
]
SETTINGS = [
    {},
    {"cfg_scale": 2.0},
    {"cfg_scale": 2.0, "cfg_schedule": "steps"},
    {"cfg_scale": 2.0, "cfg_schedule": "known"},
    {"cfg_scale": 0.0, "top_k": 3},
    {"temperature": 0.0},
]


@pytest.fixture
def round_logits(guided_logits, scale_at):
    """Logits of all positions (B, N, vocabulary) from labels, −1 where hidden; −inf outside given clusters."""

    def round_logits(stage, known, labels, given, step=0, steps=1, **guidance):
        scale = scale_at(step, steps, int((known[0] >= 0).sum()) / N, **guidance)
        return guided_logits(stage, known.masked_fill(known < 0, stage.vocabulary), labels, given, scale)

    return round_logits


def split(settings):
    """Guidance and filters."""
    guidance = {name: value for name, value in settings.items() if name.startswith("cfg_")}
    return guidance, Sampling(**{name: value for name, value in settings.items() if name not in guidance})


@pytest.fixture
def naive_tokens(round_logits):
    def naive(stage, labels, seeds, given, way, settings):
        sizes = group_sizes(N, way["steps"], way.get("schedule", "cosine"))
        groups = order_groups(way["order"], LAYOUT, tuple(sizes), way.get("order_seed", 0))
        (guidance, filters), uniform = split(settings), Random(seeds).uniform(N)
        tokens = torch.full((len(labels), N), -1)
        for step, group in enumerate(groups):
            logits = round_logits(stage, tokens, labels, given, step, len(groups), **guidance)
            tokens[:, group] = draw(logits, uniform, filters)[:, group]
        return tokens

    return naive


@pytest.fixture
def naive_confident_tokens(round_logits):
    """One image and one position after another (MaskGIT 2202.04200, section 3.2)."""

    def naive(stage, labels, seeds, given, steps, settings):
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

    return naive


@TASKS
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rounds_in_a_fixed_order(make, naive_tokens, coarse, task, settings, way):
    stage = make(KIND, task, kv_heads=1 if way["steps"] % 2 else None)
    given = None if stage.given is None else coarse
    expected = naive_tokens(stage, LABELS, SEEDS, given, way, settings)
    assert torch.equal(stage.generate(LABELS, Random(SEEDS), Sampling(**way, **settings), given), expected)
    assert torch.equal(generate_tokens(stage, LABELS, SEEDS, given, **way, **settings), expected)


@pytest.mark.parametrize("task", ["all tokens", "fine", "middle, full"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_rounds_that_keep_the_most_confident(make, naive_confident_tokens, coarse, task, settings, steps):
    stage = make(KIND, task)
    given = None if stage.given is None else coarse
    expected = naive_confident_tokens(stage, LABELS, SEEDS, given, steps, settings)
    tokens = generate_tokens(stage, LABELS, SEEDS, given, steps=steps, order="confidence", **settings)
    assert torch.equal(tokens, expected)


@TASKS
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_likelihood_is_that_of_the_round_that_draws(make, round_logits, tokens, task, way):
    stage = make(KIND, task)
    (targets, given), sampling = stage.levels(tokens), Sampling(**way)
    known, expected = torch.full((5, N), -1), torch.empty(5, N)
    for group in (torch.arange(N)[group.at] for group in stage.plan(sampling).groups):
        of_right = round_logits(stage, known, LABELS, given).log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
        known[:, group], expected[:, group] = targets[:, group], of_right[:, group]
    torch.testing.assert_close(stage.log_prob(tokens, LABELS, sampling), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["coarse", "fine", "fine, full"])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_an_image_depends_on_its_seed_and_labels_only(make, task, order):
    packed, count = make(KIND, task).pack(Compute("float32")), TOGETHER + 6
    labels, seeds = torch.arange(count) % 6, torch.arange(count) // 2
    given = None if packed.given is None else torch.randint(6, (count, N), generator=torch.Generator().manual_seed(3))
    sampling = Sampling(cfg_scale=2.0, steps=3, order=order)

    def generate(images):
        here = None if given is None else given[images]
        return packed.generate(labels[images], Random(seeds[images]), sampling, here)

    together = generate(torch.arange(count))
    assert len(together.unique(dim=0)) > 60
    for images in (torch.arange(5), torch.arange(count - 5, count)):
        assert torch.equal(generate(images), together[images])
        for i in images.tolist():
            assert torch.equal(generate(torch.tensor([i]))[0], together[i])


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_steps_show_the_labels_so_far(make, order):
    stage = make(KIND)
    seen = [t.clone() for t in stage.draw(LABELS, Random(SEEDS), Sampling(steps=4, order=order))]
    assert [(t >= 0).sum(1).tolist() for t in seen] == [[known] * 5 for known in (1, 3, 5, 8)]
    for earlier, later in itertools.pairwise(seen):
        assert torch.equal(later[earlier >= 0], earlier[earlier >= 0])


@TASKS
def test_what_is_trained_for_one_round_reads_no_labels(make, task):
    once, rounds = make("masked", task), make(KIND, task)
    assert (once.possible_steps, rounds.possible_steps) == (range(1, 2), range(1, 9))
    assert once.config.input_vocab == (once.given is None)
    assert rounds.config.input_vocab == rounds.vocabulary + 1
    with pytest.raises(InputError, match=r"cannot draw in 2 steps: it is masked and takes 1$"):
        once.resolved(Sampling(steps=2))


# --- training ---


@TASKS
def test_training_reaches_every_weight(make, tokens, task):
    torch.manual_seed(0)
    stage = make(KIND, task).train()
    losses = stage(tokens, LABELS)
    assert losses.ndim == 1
    assert losses.isfinite().all()
    losses.mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in stage.parameters())


@pytest.mark.parametrize("task", ["all tokens", "fine"])
def test_a_training_loss_is_that_of_hidden_labels_given_the_others(make, round_logits, task):
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
    stage = make_stage(KIND.split(",")[0], rounds="any", layers=1, layout=Layout.square(16))
    torch.manual_seed(0)
    losses = stage(torch.zeros(1000, 256, dtype=torch.int64), torch.zeros(1000, dtype=torch.int64))
    assert losses.numel() / 256_000 == pytest.approx(2 / math.pi, abs=0.03)  # 3 standard deviations


def test_likelihood_is_deterministic(make, tokens):
    stage = make(KIND, dropout=0.5, class_dropout=0.5)
    assert torch.equal(stage.log_prob(tokens, LABELS), stage.log_prob(tokens, LABELS))
