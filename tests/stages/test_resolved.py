"""Steps and order: what each kind draws with by itself, and what it cannot take."""

import pytest
import torch
from stage_cases import N

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.sampling import Random, Sampling

ANY = ["locality", "halton", "random", "raster"]


@pytest.mark.parametrize(
    ("kind", "own", "steps", "orders"),
    [
        ("autoregressive", (8, "raster"), range(8, 9), ["raster"]),
        ("masked", (1, "halton"), range(1, 2), [*ANY, "confidence"]),
        ("masked, any", (1, "halton"), range(1, 9), [*ANY, "confidence"]),
        ("any_order", (1, "locality"), range(1, 9), ANY),
    ],
)
def test_what_a_kind_can_take(make, kind, own, steps, orders):
    stage = make(kind)
    resolved = stage.resolved(Sampling(top_k=3))
    assert ((resolved.steps, resolved.order), resolved.top_k) == (own, 3)
    assert stage.resolved(resolved) == resolved
    for count in range(1, 10):
        sampling = Sampling(steps=count)
        if count in steps:
            assert len(stage.plan(sampling).drawn) == len(stage.plan(sampling).groups) == count
            continue
        with pytest.raises(InputError, match=f"stage stage cannot draw in {count} steps"):
            stage.resolved(sampling)
    for order in [*ANY, "confidence"]:
        if order in orders:
            assert stage.resolved(Sampling(order=order)).order == order
            continue
        with pytest.raises(InputError, match=f"cannot draw in the order {order}"):
            stage.resolved(Sampling(order=order))


@pytest.mark.parametrize("kind", ["masked, any", "any_order"])
def test_a_kind_takes_an_eighth_of_the_positions_as_steps(make, kind):
    stage = make(kind, layout=Layout((4, 8)))
    assert stage.resolved().steps == 4


@pytest.mark.parametrize("kind", ["autoregressive", "any_order", "masked, any"])
def test_a_stage_has_the_steps_of_its_own_settings(make, kind):
    own = Sampling(steps=8, order="raster", temperature=0.5)
    stage = make(kind, sampling=own)
    assert stage.resolved() == own
    tokens, labels = torch.zeros(1, N, dtype=torch.int64), torch.tensor([2])
    assert torch.equal(stage.log_prob(tokens, labels), stage.log_prob(tokens, labels, own))
    assert len(list(stage.draw(labels, Random([0])))) == N


@pytest.mark.parametrize("kind", ["masked, any", "any_order"])
def test_scales_are_drawn_one_after_another(make, kind):
    stage = make(kind, layout=Layout.square(1, 2, 3))
    assert stage.resolved().order == "raster"
    sampling = stage.resolved(Sampling(order="scales"))
    assert (sampling.steps, [group.count for group in stage.plan(sampling).drawn]) == (3, [1, 4, 9])
    *_, last = steps = [tokens.clone() for tokens in stage.draw(torch.tensor([1]), Random([0]), sampling)]
    assert [int((tokens >= 0).sum()) for tokens in steps] == [1, 5, 14]
    assert all(torch.equal(tokens[:, :count], last[:, :count]) for tokens, count in zip(steps, (1, 5, 14), strict=True))
    with pytest.raises(InputError, match="draws 3 scales in the order scales: take 3 steps"):
        stage.resolved(Sampling(order="scales", steps=2))
    with pytest.raises(InputError, match=r"cannot draw in the order halton: it is .* and takes raster, scales"):
        stage.resolved(Sampling(order="halton"))
    with pytest.raises(InputError, match="cannot draw in the order scales"):
        make(kind).resolved(Sampling(order="scales"))


def test_confidence_has_no_groups_known_beforehand(make):
    with pytest.raises(InputError, match="confidence depends on what is drawn, so the likelihood of an image is not"):
        make("masked, any").scores(torch.zeros(1, N).long(), torch.tensor([2]), Sampling(order="confidence"))
