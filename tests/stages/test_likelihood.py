"""log P of every kind against definitions: softmax by exponentials, sums over all sequences, frequencies of samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from ctf.codebook import CoarseMap
from ctf.models import Compute
from ctf.sampling import Random, Sampling
from ctf.stages import bits

LABELS = torch.tensor([3, 5])  # 5 is unconditional
KINDS = pytest.mark.parametrize("kind", ["autoregressive", "masked"])
TASKS = pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full", "middle", "middle, full"])


@pytest.fixture
def tokens():
    return torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(1))


def through_network(stage, tokens):
    """Labels to predict, labels that are given, and what the network reads."""
    targets = tokens if stage.predicts is None else stage.predicts.fine_to_coarse[tokens]
    given = None if stage.given is None else stage.given.fine_to_coarse[tokens]
    hidden = torch.zeros_like(tokens) if given is None else None
    return targets, given, targets if stage.kind == "autoregressive" else hidden


@KINDS
@TASKS
def test_against_the_definition(make, guided_logits, tokens, kind, task):
    stage = make(kind, task)
    targets, given, read = through_network(stage, tokens)
    logits = guided_logits(stage, read, LABELS, given, 1.0).tolist()  # −inf outside the given cluster
    expected, hits = torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bool)
    for b, n in itertools.product(range(2), range(8)):
        weights = [math.exp(x) for x in logits[b][n]]
        right = int(targets[b, n])
        expected[b, n] = math.log(weights[right] / sum(weights))
        hits[b, n] = weights[right] == max(weights)
    log_prob, hit = stage.scores(tokens, LABELS)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(hit, hits)
    assert torch.equal(stage.log_prob(tokens, LABELS), log_prob)
    assert torch.equal(stage(tokens, LABELS), -log_prob)


K = 6


@pytest.fixture
def tiny(make_stage):
    """Stages over 6 tokens on a grid of 1 × 2: 36 sequences."""
    coarse = CoarseMap(torch.tensor([0, 1, 0, 0, 1, 1]), "test", 0, "none")
    middle = CoarseMap(torch.tensor([0, 1, 0, 2, 1, 3]), "test", 0, "none")
    tasks = {
        "all tokens": {},
        "coarse": {"predicts": coarse},
        "fine": {"given": coarse},
        "middle": {"predicts": middle, "given": coarse},
    }

    def make(kind, task):
        task, _, support = task.partition(", ")
        sizes = {"codebook_size": K, "grid": (1, 2)}
        return make_stage(kind, **tasks[task], **sizes, support=support or "cluster")

    return make


def probabilities(stage):
    """P of every sequence of labels, by the labels that are given."""
    sequences = torch.tensor(list(itertools.product(range(K), repeat=2)))
    with torch.no_grad():
        joint = stage.log_prob(sequences, torch.full((len(sequences),), 3)).double().sum(1).exp()
    targets, given, _ = through_network(stage, sequences)
    groups = {}
    for row, p in enumerate(joint.tolist()):
        group = groups.setdefault(None if given is None else tuple(given[row].tolist()), {})
        group[tuple(targets[row].tolist())] = p  # sequences of the same labels have the same probability
    return groups


@KINDS
@pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "middle"])
def test_probabilities_of_all_sequences_sum_to_one(tiny, kind, task):
    groups = probabilities(tiny(kind, task))
    assert len(groups) == (1 if task in ("all tokens", "coarse") else 4)
    assert [sum(group.values()) for group in groups.values()] == pytest.approx([1] * len(groups), abs=1e-5)


@KINDS
@pytest.mark.parametrize("task", ["fine, full", "middle, full"])
def test_full_support_spends_probability_outside_the_given_clusters(tiny, kind, task):
    assert all(sum(group.values()) < 0.9 for group in probabilities(tiny(kind, task)).values())


@KINDS
@pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "middle"])
def test_samples_have_the_frequencies_of_the_likelihood(tiny, kind, task):
    stage, count = tiny(kind, task), 5000
    packed = stage.pack(Compute("float32"))
    for given, group in probabilities(stage).items():
        rows = None if given is None else torch.tensor(given).expand(count, -1)
        labels, random = torch.full((count,), 3), Random(range(count))
        sequences, counts = packed.generate(labels, random, Sampling(), rows).unique(dim=0, return_counts=True)
        found = {tuple(row): n for row, n in zip(sequences.tolist(), counts.tolist(), strict=True)}
        assert found.keys() <= group.keys()
        expected = np.array([*group.values()]) / sum(group.values()) * count
        assert stats.chisquare([found.get(sequence, 0) for sequence in group], expected).pvalue > 1e-3


@KINDS
@pytest.mark.parametrize("task", ["all tokens", "fine"])
def test_losses_are_float32_in_half_precision(make, tokens, kind, task):
    stage = make(kind, task)
    with torch.autocast("cpu", torch.bfloat16):
        losses = stage(tokens, LABELS)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, stage(tokens, LABELS), rtol=0.1, atol=0.1)


def test_bits():
    assert bits(math.log(512)) == pytest.approx(9)
