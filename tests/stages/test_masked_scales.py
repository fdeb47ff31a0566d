"""Kind masked over several scales: in one round, and in a round for each scale."""

import itertools

import pytest
import torch
from stage_cases import (
    PAIRS,
    assert_a_scale_sees_those_before,
    assert_frequencies,
    assert_sums_to_one,
    every_sequence,
    log_prob,
)

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models import Compute
from ctf.sampling import Random, Sampling
from ctf.stages import Masked

K, LAYOUT, N, LABELS = 3, Layout.square(1, 2), 5, torch.tensor([0, 2])
TASKS = {"tokens": {}, "coarse": {"predicts": PAIRS}, "fine": {"given": PAIRS}}
EVERY = pytest.mark.parametrize(("rounds", "task"), [*itertools.product(["one", "scales"], TASKS)])


@pytest.fixture
def make(make_stage):
    def make(rounds, task, **settings):
        facts = {"layout": LAYOUT, "codebook_size": K, "layers": 1, **TASKS[task], **settings}
        return make_stage("masked", rounds=rounds, **facts)

    return make


@EVERY
def test_probabilities_sum_to_one(make, rounds, task):
    assert_sums_to_one(make(rounds, task))


@EVERY
def test_frequencies_of_samples_are_the_probabilities(make, rounds, task):
    stage, count = make(rounds, task), 20_000
    given = torch.tensor([0, 1, 0, 0, 1]).expand(count, -1) if task == "fine" else None
    drawn = stage.pack(Compute("float32")).generate(
        torch.ones(count, dtype=torch.int64), Random(range(count)), None, given
    )
    outcomes = every_sequence(stage.vocabulary, N)
    if given is not None:
        outcomes = outcomes[(PAIRS.to_coarse(outcomes) == given[0]).all(1)]
    assert_frequencies(drawn, outcomes, log_prob(stage, outcomes).exp())


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_a_scale_sees_the_labels_before_and_all_that_are_given(make, task):
    assert_a_scale_sees_those_before(make("scales", task), LABELS)
    if task == "fine":
        logits, tokens = make("scales", "fine", support="full").logits, torch.ones(2, N, dtype=torch.int64)
        tokens[:, 4] = 0
        changed = tokens.clone()
        changed[:, 4] = 1
        assert (logits(changed, LABELS) - logits(tokens, LABELS))[:, 0].abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_training_hides_a_scale_and_those_behind_it(make, task):
    """So the loss is one of two: that of everything, or that of the second scale given the first."""
    stage, tokens, label = make("scales", task), torch.tensor([[2, 1, 0, 2, 0]]), torch.tensor([1])
    targets, given = stage.levels(tokens)
    words = torch.tensor([K, K + 1, K + 1, K + 1, K + 1]) - K + stage.vocabulary
    possible = {}
    for first in (0, 1):
        inputs = torch.cat([targets[0, :first], words[first:]])[None]
        logits = stage.transformer(inputs, label, given)[0]
        if given is not None:
            logits = logits.masked_fill(PAIRS.fine_to_coarse != given[0, :, None], -torch.inf)
        possible[N - first] = -logits.log_softmax(-1).gather(1, targets[0, :, None])[first:, 0].detach()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        losses = stage(tokens, label)
        torch.testing.assert_close(losses.detach(), possible[len(losses)])
        seen.add(len(losses))
    assert seen == {5, 4}


@EVERY
def test_training_reaches_every_weight(make, rounds, task):
    stage = make(rounds, task, class_dropout=0.5).train()
    torch.manual_seed(0)
    stage(every_sequence(K, N), torch.arange(K**N) % 4).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in stage.parameters())


def test_kept_labels_are_taken_when_their_scale_comes(make):
    """Keeping labels that would be drawn changes nothing."""
    stage, random, labels = make("scales", "tokens"), Random(range(8)), torch.arange(8) % 4
    drawn = stage.generate(labels, random)
    kept = torch.tensor([False, True, False, False, True])
    assert torch.equal(stage.generate(labels, random, known=drawn.where(kept, -1)), drawn)
    with pytest.raises(InputError, match="likelihood given all of them is not known"):
        stage.log_prob(drawn, labels, kept=kept)


def test_impossible_rounds_and_orders_are_refused(make):
    sizes = {"vocabulary": K, "given": 2, "num_classes": 4}
    with pytest.raises(InputError, match="a layout of 4x4 has one scale: choose one or any"):
        Masked.configure("nano", layout=Layout.square(4), rounds="scales", **sizes)
    stage = make("scales", "fine")
    assert stage.resolved() == Sampling(steps=2, order="scales")
    with pytest.raises(InputError, match="cannot draw in 1 steps: it is masked and takes 2"):
        stage.resolved(Sampling(steps=1))
    with pytest.raises(InputError, match="cannot draw in the order raster: it is masked and takes scales"):
        stage.resolved(Sampling(order="raster"))
    with pytest.raises(InputError, match="cannot draw in the order scales: it is masked and takes raster, confidence"):
        make("one", "fine").resolved(Sampling(order="scales"))
