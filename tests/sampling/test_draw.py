import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctf.errors import InputError
from ctf.sampling import Sampling, draw, filter_logits

HIGHEST = 1 - 2**-32  # of the numbers that `uniforms` makes
PLAIN = Sampling()

#: Few different values, so that there are ties; sixteenths, so that sums are exact.
TIED = st.lists(st.integers(-40, 40).map(lambda n: n / 16), min_size=1, max_size=12)


def brute_force_kept(logits, top_k, top_p):
    """The indices that top-k, then top-p leave, one by one."""
    kept = list(range(len(logits)))
    if top_k:
        kept = [i for i in kept if sum(logits[j] > logits[i] for j in kept) < top_k]
    if top_p < 1:
        total = sum(math.exp(logits[i]) for i in kept)
        cumulative, nucleus = 0.0, []
        for i in sorted(kept, key=lambda i: -logits[i]):
            if nucleus and cumulative > top_p:
                break
            nucleus.append(i)
            cumulative += math.exp(logits[i]) / total
        kept = nucleus
    return kept


@given(TIED, st.integers(0, 15), st.sampled_from([1e-9, 0.013, 0.37, 0.71, 0.993, 1.0]))
@example([1.0, 3.0, 2.0, 2.0, 0.0], 2, 1.0)  # ties with the second
@settings(deadline=None)
def test_filter_against_brute_force(values, top_k, top_p):
    logits = torch.tensor(values)
    filtered = filter_logits(logits, top_k, top_p)
    kept = filtered > -torch.inf
    expected = brute_force_kept(values, top_k, top_p)
    assert torch.equal(filtered[kept], logits[kept])
    assert kept.nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("spread", [0.3, 4.0])
@pytest.mark.parametrize("top_p", [0.1, 0.95, 0.999_999_9])
def test_top_p_against_a_stable_sort_of_a_large_vocabulary(spread, top_p):
    logits = spread * torch.randn(2, 8, 5000, generator=torch.Generator().manual_seed(0))
    logits[0] = (8 * logits[0]).round() / 8  # ties
    logits[1, 0, 1:] = logits[1, 1, :4000] = -torch.inf
    ordered, order = logits.sort(descending=True, stable=True)
    excluded = ordered.softmax(-1).cumsum(-1).roll(1, -1) > top_p
    excluded[..., 0] = False
    expected = logits.masked_fill(torch.empty_like(excluded).scatter_(-1, order, excluded), -torch.inf)
    assert torch.equal(filter_logits(logits, top_p=top_p), expected)


def test_filters_work_along_the_last_dimension():
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([filter_logits(row, 5, 0.8) for row in logits.flatten(0, 1)])
    assert torch.equal(filter_logits(logits, 5, 0.8), rows.view(2, 3, 9))


def test_filters_do_not_change_their_input():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    filter_logits(logits, 3, 0.5)
    assert torch.equal(logits, before)


def test_excluded_tokens_stay_excluded():
    logits = torch.tensor([-torch.inf, 1.0, 0.5, -torch.inf])
    assert (filter_logits(logits, top_k=3, top_p=0.99) > -torch.inf).tolist() == [False, True, True, False]


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=10),
    st.floats(0, HIGHEST),
    st.sampled_from([0.3, 1.0, 2.5]),
)
@settings(deadline=None)
def test_draw_inverts_the_cumulative_distribution(values, u, temperature):
    exact = np.exp(np.array(values) / temperature)
    cumulative = np.cumsum(exact / exact.sum())
    token = int(draw(torch.tensor(values), torch.tensor(u, dtype=torch.float64), Sampling(temperature=temperature)))
    # u lies in the token's interval; probabilities are float32.
    assert (cumulative[token - 1] if token else 0.0) <= u + 1e-5
    assert cumulative[token] >= u - 1e-5


def test_draw_against_searchsorted():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 300, 40, generator=generator)
    uniform = torch.rand(5, 300, generator=generator, dtype=torch.float64)
    tokens = draw(logits, uniform, PLAIN)
    for row, u, token in zip(logits.view(-1, 40), uniform.flatten(), tokens.flatten(), strict=True):
        cumulative = np.cumsum(row.softmax(0).double().numpy())
        assert np.searchsorted(cumulative / cumulative[-1], float(u), side="right") == int(token)


def test_filters_come_after_the_temperature():
    logits = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for temperature in (0.3, 2.5):
        expected = draw(filter_logits(logits / temperature, 6, 0.7), uniform, PLAIN)
        assert torch.equal(draw(logits, uniform, Sampling(temperature=temperature, top_k=6, top_p=0.7)), expected)


@given(TIED, st.sets(st.integers(0, 11)), st.sampled_from([0.0, 2**-32, 0.5, HIGHEST]))
@settings(deadline=None)
def test_impossible_tokens_are_never_drawn(values, impossible, u):
    logits = torch.tensor([*values, 0.0])
    logits[[i for i in impossible if i < len(values)]] = -torch.inf
    logits = torch.cat([torch.tensor([-torch.inf, -1e4]), logits, torch.tensor([-1e4, -torch.inf])])
    token = draw(logits, torch.tensor(u, dtype=torch.float64), PLAIN)
    assert logits[token] > -1e4


@pytest.mark.parametrize("size", [1000, 16_384])
def test_the_highest_number_stays_inside_a_large_vocabulary(size):
    logits = torch.randn(50, size, generator=torch.Generator().manual_seed(0))
    logits[:, size // 2 :] = -torch.inf
    tokens = draw(logits, torch.full((50,), HIGHEST, dtype=torch.float64), PLAIN)
    assert tokens.max() < size // 2


@given(TIED, st.floats(0, HIGHEST))
@settings(deadline=None)
def test_greedy(values, u):
    logits, uniform = torch.tensor(values), torch.tensor(u, dtype=torch.float64)
    assert values[draw(logits, uniform, Sampling(temperature=0))] == max(values)
    assert values[draw(logits, uniform, Sampling(top_k=1))] == max(values)
    assert values[draw(logits, uniform, Sampling(top_p=1e-9))] == max(values)


def test_half_precision_logits_are_drawn_in_float32():
    logits = torch.randn(100, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    uniform = torch.rand(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cool = Sampling(temperature=0.7)
    assert torch.equal(draw(logits, uniform, cool), draw(logits.float(), uniform, cool))


@given(st.lists(st.floats(-1e8, 1e8, width=32), min_size=1, max_size=9), st.sampled_from([0.0, 1e-6, 1e6]))
@settings(max_examples=50, deadline=None)
def test_extreme_temperatures_draw_labels_that_exist(values, temperature):
    logits = torch.tensor(values)
    token = draw(logits, torch.tensor(HIGHEST, dtype=torch.float64), Sampling(temperature=temperature))
    assert 0 <= token < len(values)
    if temperature < 1:
        assert logits[token] >= logits.max() - 1e-4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {}, {"top_k": 1}, {"top_p": 0.1}], ids=str)
def test_logits_that_are_not_finite_are_refused(value, settings):
    logits = torch.tensor([[0.0, 1.0], [value, 0.0]])
    with pytest.raises(InputError, match="the logits are not finite"):
        draw(logits, torch.zeros(2, dtype=torch.float64), Sampling(**settings))
