"""Every kind is a distribution over images: 3 labels at 4 positions, in every order and number of steps."""

import functools

import pytest
import torch
from stage_cases import assert_frequencies

from ctf.codebook import CoarseMap
from ctf.layout import Layout
from ctf.models import Compute
from ctf.sampling import Random, Sampling

N, LABEL = 4, 3
DRAWS = 40_000
ONE_WAY = [("autoregressive", Sampling()), ("masked", Sampling())]
STEPS = [(1, "cosine"), (2, "cosine"), (2, "uniform"), (3, "arccos"), (4, "cosine")]
ANY_WAY = [
    (kind, Sampling(steps=steps, schedule=schedule, order=order, order_seed=1))
    for kind in ("any_order", "masked, any")
    for order in ("raster", "random", "halton", "locality")
    for steps, schedule in STEPS
]
ROLES = ["all tokens", "coarse", "fine", "middle", "crossing, full"]


def words(parameter):
    p = parameter
    return f"{p.order or 'own'}-{p.steps or 'own'}-{p.schedule}" if isinstance(p, Sampling) else p


@pytest.fixture
def tiny(make_stage):
    """tiny(kind, role): a random stage of 2 × 2 tokens."""

    def make_map(*labels):
        return CoarseMap(torch.tensor(labels), "test", 0, "none")

    coarse, middle = make_map(0, 1, 0, 0, 1, 1), make_map(0, 1, 0, 2, 1, 3)
    roles = {
        "all tokens": {"codebook_size": 3},
        "coarse": {"codebook_size": 6, "predicts": make_map(0, 1, 2, 1, 0, 2)},
        "fine": {"codebook_size": 3, "given": make_map(0, 1, 0)},
        "fine, full": {"codebook_size": 3, "given": make_map(0, 1, 0), "support": "full"},
        "middle": {"codebook_size": 6, "predicts": middle, "given": coarse},
        # Each of 3 labels occurs in each of the 2 that are given.
        "crossing, full": {
            "codebook_size": 6,
            "predicts": make_map(0, 1, 2, 0, 1, 2),
            "given": make_map(0, 0, 0, 1, 1, 1),
            "support": "full",
        },
    }

    def make(kind, role):
        return make_stage(kind, layout=Layout.square(2), layers=1, **roles[role])

    return make


@torch.no_grad()
def every_sequence(stage, sampling):
    """Labels (S, N), those that are given or zeros, and P of each: every sequence that tokens can have, once."""
    targets, given = stage.levels(torch.arange(stage.codebook_size))
    given = torch.zeros_like(targets) if given is None else given
    pairs = {pair: token for token, pair in enumerate(zip(targets.tolist(), given.tolist(), strict=True))}
    tokens = torch.cartesian_prod(*[torch.tensor([*pairs.values()])] * N)
    log_prob = stage.log_prob(tokens, torch.full((len(tokens),), LABEL), sampling)
    return targets[tokens], given[tokens], log_prob.double().sum(1).exp()


@pytest.mark.parametrize(
    ("kind", "sampling", "role"),
    [
        *((*way, role) for way in ONE_WAY for role in ROLES),
        # Every role with every order, and with every number of steps.
        *((*way, ROLES[(i + i // len(STEPS)) % len(ROLES)]) for i, way in enumerate(ANY_WAY)),
    ],
    ids=words,
)
def test_probabilities_of_all_sequences_sum_to_one(tiny, kind, role, sampling):
    _, given, probabilities = every_sequence(tiny(kind, role), sampling)
    groups, group = given.unique(dim=0, return_inverse=True)
    assert len(groups) == (1 if role in ("all tokens", "coarse") else 2**N)
    sums = torch.zeros(len(groups), dtype=torch.float64).index_add(0, group, probabilities)
    assert sums.tolist() == pytest.approx([1] * len(groups), abs=1e-5)


@pytest.mark.parametrize(("kind", "sampling"), [*ONE_WAY, *ANY_WAY[::20]], ids=words)
def test_full_support_spends_probability_outside_the_given_clusters(tiny, kind, sampling):
    _, given, probabilities = every_sequence(tiny(kind, "fine, full"), sampling)
    assert all(probabilities[(given == one).all(1)].sum() < 0.9 for one in given.unique(dim=0))


class Remembered(Random):
    """The numbers of so many seeds take a second or two."""

    def uniform(self, count, step=0):
        return uniform_of_all(count, step)


@functools.cache
def uniform_of_all(count, step):
    return Random(range(DRAWS)).uniform(count, step)


@pytest.mark.parametrize(
    ("kind", "role", "sampling"),
    [
        ("autoregressive", "middle", Sampling()),
        ("masked", "fine", Sampling()),
        ("any_order", "all tokens", Sampling(steps=2, order="random")),
        ("any_order", "fine", Sampling(steps=3, order="halton")),
        ("masked, any", "coarse", Sampling(steps=3, order="locality")),
        ("masked, any", "crossing, full", Sampling(steps=2, order="raster", schedule="uniform")),
    ],
    ids=words,
)
def test_samples_have_the_frequencies_of_the_likelihood(monkeypatch, tiny, kind, role, sampling):
    monkeypatch.setattr("ctf.stages.masked.TOGETHER", 20_000)  # tiny images, many at a time
    stage = tiny(kind, role)
    targets, given, probabilities = every_sequence(stage, sampling)
    here = torch.tensor([0, 1, 0, 0]) * given.max()
    rows = None if stage.given is None else here.expand(DRAWS, -1)
    labels, random = torch.full((DRAWS,), LABEL), Remembered(range(DRAWS))
    drawn = stage.pack(Compute("float32")).generate(labels, random, sampling, rows)
    possible = (given == here).all(1)
    assert_frequencies(drawn, targets[possible], probabilities[possible])
