"""Properties of every type of stage: steps, training and likelihood."""

import itertools

import pytest
import torch
from stage_cases import EVERY_KIND, EVERY_TASK, LABELS, SEEDS

from ctf.errors import InputError
from ctf.sampling import Random, Sampling
from ctf.stages import generate_tokens


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("autoregressive", Sampling()),
        ("any_order", Sampling(steps=3, order="locality", schedule="arccos")),
        ("masked", Sampling()),
        ("masked, any", Sampling(steps=4, order="halton")),
        ("masked, any", Sampling(steps=4, order="confidence")),
    ],
    ids=str,
)
def test_steps_show_the_labels_so_far(make, kind, sampling):
    stage, reported = make(kind), []
    plan = stage.plan(sampling)
    tokens = stage.generate(
        LABELS, Random(SEEDS), sampling, on_step=lambda *step: reported.append((step[0], step[1].clone()))
    )
    assert [number for number, _ in reported] == list(range(plan.sampling.steps))
    seen = [so_far for _, so_far in reported]
    assert [(x >= 0).sum(1).tolist() for x in seen] == [
        [known] * 5 for known in itertools.accumulate(group.count for group in plan.drawn)
    ]
    for so_far, group in zip(seen, plan.groups, strict=True):
        assert torch.equal(so_far[so_far >= 0], tokens[so_far >= 0])
        if sampling.order != "confidence":
            assert (so_far[:, group.at] >= 0).all()
    drawn = [so_far.clone() for so_far in stage.draw(LABELS, Random(SEEDS), sampling)]
    assert all(torch.equal(*pair) for pair in zip(drawn, seen, strict=True))


@EVERY_TASK
@EVERY_KIND
def test_training_reaches_every_weight(make, tokens, kind, task):
    stage = make(kind, task).train()
    for seed in range(8):  # of one group, which reads no tokens, and of several
        torch.manual_seed(seed)
        losses = stage(tokens, LABELS)
        assert losses.shape == ((losses.numel(),) if kind == "masked, any" else (5, 8))
        assert losses.isfinite().all()
        losses.mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in stage.parameters())


@pytest.mark.parametrize(
    ("task", "wrong", "message"),
    [
        ("coarse", {"labels": torch.tensor([-1])}, "the model has the classes 0 … 4"),
        ("coarse", {"labels": torch.tensor([0, 6])}, "the model has the classes 0 … 4"),
        ("coarse", {"labels": torch.tensor([], dtype=torch.int64)}, "one label per image"),
        ("coarse", {"labels": torch.tensor([[0, 1]])}, "one label per image"),
        ("coarse", {"seeds": [1]}, "1 seeds for 5 labels"),
        ("coarse", {"seeds": [1, 2, 3, 4, -5]}, "seed -5"),
        ("coarse", {"given": torch.zeros(5, 8, dtype=torch.int64)}, "given the class label alone"),
        ("coarse", {"top_p": 0.0}, "top_p"),
        ("coarse", {"top_q": 0.5}, "no sampling setting 'top_q'"),
        ("fine", {"labels": torch.tensor([0, 1])}, "given labels of shape"),
        ("fine", {"given": None}, "stage stage is given labels of a coarser level: give them"),
        ("fine", {"given": torch.zeros(5, 7, dtype=torch.int64)}, "8 per image are needed"),
        ("fine", {"given": torch.full((5, 8), 6)}, "given labels range from 6 to 6"),
        ("fine", {"given": torch.full((5, 8), -1)}, "given labels range from -1 to -1"),
    ],
)
def test_wrong_arguments_of_generate_are_refused(make, coarse, task, wrong, message):
    arguments = {"labels": LABELS, "given": coarse if task == "fine" else None}
    with pytest.raises(InputError, match=message):
        generate_tokens(make("autoregressive", task), **{**arguments, **wrong})
