"""What the comparisons of stages with loops written out share."""

import pytest
import torch
from scipy import stats

from ctf.codebook import CoarseMap
from ctf.layout import Layout

LAYOUT, N, K, NUM_CLASSES = Layout((2, 4)), 8, 30, 5
LABELS = torch.tensor([0, 4, 2, 5, 1])  # 5 is unconditional
SEEDS = [3, 0, 2**63, 7, 3]
TASKS = ["all tokens", "coarse", "fine", "fine, full", "middle", "middle, full"]
SETTINGS = [
    {},
    {"cfg_scale": 2.0},
    {"cfg_scale": 2.0, "cfg_schedule": "steps"},
    {"cfg_scale": 2.0, "cfg_schedule": "known"},
    {"cfg_scale": 0.0, "top_k": 3},
    {"temperature": 0.0},
]
EVERY_TASK = pytest.mark.parametrize("task", TASKS)
EVERY_KIND = pytest.mark.parametrize("kind", ["autoregressive", "any_order", "masked", "masked, any"])
#: Of 3 tokens, where 0 and 2 are one cluster.
PAIRS = CoarseMap(torch.tensor([0, 1, 0]), "test", 0, "none")


def in_pairs(names, *lists):
    """Parametrize by a Latin square: each value of the first list with each of the second, the third's in turn.

    Where the third list is as long as the second, each of its values meets each value of the other two.
    """
    first, second, third = lists
    cases = [(a, b, third[(i + j) % len(third)]) for i, a in enumerate(first) for j, b in enumerate(second)]
    return pytest.mark.parametrize(names, cases, ids=str)


def only_allowed(stage, logits, given):
    """Logits (B, n, vocabulary), −inf for labels outside the clusters of given labels (B, n): token by token."""
    if given is None or stage.support == "full":
        return logits
    labels = range(K) if stage.predicts is None else stage.predicts.fine_to_coarse.tolist()
    pairs = {*zip(labels, stage.given.fine_to_coarse.tolist(), strict=True)}
    outside = torch.tensor(
        [[(label, g) not in pairs for label in range(stage.vocabulary)] for g in range(given.max() + 1)]
    )
    return logits.masked_fill(outside[given], -torch.inf)


@torch.no_grad()
def guided_logits(stage, tokens, labels, given, cfg_scale):
    """Logits of all labels with guidance on the logits, −inf where nothing may be drawn: (B, N, vocabulary)."""
    network = stage.transformer
    logits = network(tokens, labels, given)
    if cfg_scale != 1:
        unconditional = network(tokens, torch.full_like(labels, NUM_CLASSES), given)
        logits = unconditional + cfg_scale * (logits - unconditional)
    return only_allowed(stage, logits, given)


def scale_at(step, steps, known, cfg_scale=1.0, cfg_schedule="constant"):
    """Guidance in a step of several, before which a share of the positions is known."""
    share = {"constant": 1.0, "steps": step / (steps - 1) if steps > 1 else 1.0, "known": known}[cfg_schedule]
    return 1 - share + share * cfg_scale


def every_sequence(labels, positions):
    """All sequences of so many labels: (labels ** positions, positions)."""
    return torch.cartesian_prod(*[torch.arange(labels)] * positions)


def assert_frequencies(drawn, outcomes, probabilities):
    """Sequences (n, N) are drawn as often as the probabilities (S,) of all outcomes (S, N) say, by χ².

    Outcomes too rare for the test count as one. About 80 cases call this, so one in a thousand would be no surprise.
    """
    place = int(max(outcomes.max(), drawn.max()) + 1) ** torch.arange(outcomes.shape[1])  # a sequence as one number
    numbers = (outcomes * place).sum(1)
    observed = (drawn * place).sum(1).bincount(minlength=int(numbers.max()) + 1)[numbers]
    assert observed.sum() == len(drawn)
    expected = probabilities / probabilities.sum() * len(drawn)
    rare = expected < 5
    if rare.any():
        observed, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (observed, expected))
    assert len(expected) > 5
    assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-4


@torch.no_grad()
def log_prob(stage, tokens):
    """Of whole sequences (S, N) of one class: (S,), float64."""
    return stage.log_prob(tokens, torch.ones(len(tokens), dtype=torch.int64)).double().sum(1)


def assert_sums_to_one(stage):
    """Probabilities of all sequences do, or those of the tokens of each sequence of given clusters of `PAIRS`."""
    tokens = every_sequence(stage.vocabulary, stage.num_tokens)
    _, group = PAIRS.to_coarse(tokens).unique(dim=0, return_inverse=True)
    group = torch.zeros_like(group) if stage.given is None else group
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, log_prob(stage, tokens).exp())
    assert len(sums) == (1 if stage.given is None else 2**stage.num_tokens)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


@torch.no_grad()
def assert_steps_are_teacher_forcing(stage, tokens, labels, sampling=None):
    """Logits of one group after another, each after the true labels of those before, are those of `logits`."""
    targets, given = stage.levels(tokens)
    plan, found = stage.plan(sampling), []
    state = stage.begin(labels, given, plan)
    for group in plan.groups:
        hidden = stage.hidden(state, group)
        found.append(stage.head(hidden, None if given is None else given[:, group.at]))
        stage.observe(state, group, targets[:, group.at])
    torch.testing.assert_close(torch.cat(found, 1), stage.logits(tokens, labels, plan), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def assert_a_scale_sees_those_before(stage, labels):
    """Logits up to a scale do not depend on its tokens and later ones, as long as given labels of `PAIRS` stay."""
    tokens = torch.randint(3, (len(labels), stage.num_tokens), generator=torch.Generator().manual_seed(1))
    logits = stage.logits(tokens, labels)
    for part in stage.layout.slices:
        changed = tokens.clone()
        changed[:, part.start :] = 2 - changed[:, part.start :]
        torch.testing.assert_close(stage.logits(changed, labels)[:, : part.stop], logits[:, : part.stop])
