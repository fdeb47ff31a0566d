"""Labels that stay while the others are drawn: at every kind, and as a distribution over what is missing."""

import pytest
import torch
from stage_cases import LABELS, SEEDS, N, assert_frequencies, every_sequence

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models import Compute
from ctf.sampling import Random, Sampling

WAYS = [
    ("autoregressive", Sampling(cfg_scale=2.0, cfg_schedule="steps")),
    ("any_order", Sampling(steps=5, order="random")),
    ("any_order", Sampling(steps=3, order="halton", cfg_scale=2.0, cfg_schedule="steps")),
    ("masked, any", Sampling(steps=4, order="locality", cfg_scale=2.0, top_k=5)),
]


@pytest.fixture
def given_of(coarse_map):
    def given_of(stage):
        rows = torch.randint(coarse_map.num_coarse, (len(LABELS), N), generator=torch.Generator().manual_seed(1))
        return None if stage.given is None else rows

    return given_of


@pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "middle"])
@pytest.mark.parametrize(("kind", "sampling"), WAYS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_kept_first_labels_lead_to_the_same_image(make, given_of, kind, task, sampling, packed):
    stage = make(kind, task)
    stage, given = stage.pack(Compute("float32")) if packed else stage, given_of(stage)
    image = stage.generate(LABELS, Random(SEEDS), sampling, given)
    groups = (
        torch.arange(N).split(1)
        if kind == "autoregressive"
        else [torch.arange(N)[g.at] for g in stage.plan(sampling).groups]
    )
    for count in range(1, len(groups)):
        known = torch.full_like(image, -1)
        first = torch.cat(groups[:count])
        known[:, first] = image[:, first]
        steps = list(stage.draw(LABELS, Random(SEEDS), sampling, given, known))
        assert torch.equal(steps[-1], image)
        assert len(steps) == len(groups) - count
        assert torch.equal(stage.generate(LABELS, Random(SEEDS), sampling, given, known), image)


@pytest.mark.parametrize(("kept", "steps"), [(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2])])
def test_guidance_grows_over_the_steps_that_are_drawn(make, monkeypatch, kept, steps):
    """Steps that are kept as a whole count as the first, parts of one do not."""
    grows = {"cfg_scale": 2.0, "cfg_schedule": "steps"}
    stage, sampling = make("any_order"), Sampling(steps=3, order="raster", schedule="uniform", **grows)
    assert stage.plan(sampling).groups[0].size == 2
    known = torch.full((len(LABELS), N), -1)
    known[:, :kept] = 4
    asked = []
    monkeypatch.setattr(Sampling, "cfg_scale_at", lambda self, step, of, share: asked.append((step, of)) or 1.0)
    list(stage.draw(LABELS, Random(SEEDS), sampling, None, known if kept else None))
    assert [step for step, _ in asked][-len(steps) :] == steps
    assert {of for _, of in asked} == {3}


@pytest.mark.parametrize("task", ["coarse", "fine"])
@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("any_order", Sampling(steps=3, order="raster")),
        ("masked", Sampling()),
        ("masked, any", Sampling(steps=3)),
        ("masked, any", Sampling(steps=8, order="confidence")),
    ],
    ids=str,
)
def test_known_labels_stay_at_any_positions(make, given_of, kind, task, sampling):
    stage = make(kind, task)
    given, images = given_of(stage), len(LABELS)
    known = stage.generate(LABELS, Random(range(9, 9 + images)), sampling, given)
    kept = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool)
    other = stage.generate(LABELS, Random(SEEDS), sampling, given, known.masked_fill(~kept, -1))
    assert torch.equal(other[:, kept], known[:, kept])
    assert not torch.equal(other, known)
    assert (other >= 0).all()
    alone = stage.generate(LABELS[1:2], Random(SEEDS[1:2]), sampling, *(
        None if x is None else x[1:2] for x in (given, known.masked_fill(~kept, -1))
    ))  # fmt: skip
    assert torch.equal(alone[0], other[1])


@pytest.mark.parametrize(
    ("kind", "sampling", "kept"),
    [
        ("autoregressive", Sampling(), [0, 1]),
        ("any_order", Sampling(steps=2, order="halton"), [3, 0, 5]),
        ("any_order", Sampling(steps=8, order="raster"), [6, 7]),
        ("masked, any", Sampling(steps=3, order="random"), [1, 2, 7]),
    ],
    ids=str,
)
@torch.no_grad()
def test_frequencies_of_what_is_missing(make_stage, monkeypatch, kind, sampling, kept):
    """Three labels on 2 × 4: all completions of some known labels sum to 1 and are drawn as often as they should be."""
    monkeypatch.setattr("ctf.stages.masked.TOGETHER", 20_000)
    draws, place = 20_000, torch.zeros(N, dtype=torch.bool)
    place[torch.tensor(kept)] = True
    stage = make_stage(kind, layout=Layout((2, 4)), layers=1, codebook_size=3)
    missing = every_sequence(3, int((~place).sum()))
    images = torch.tensor([2, 0, 1, 1, 2, 2, 0, 1]).repeat(len(missing), 1)
    images[:, ~place] = missing
    labels = torch.full((len(images),), 2)
    of_missing = stage.log_prob(images, labels, sampling, place)[:, ~place].double().sum(1).exp()
    assert of_missing.sum().item() == pytest.approx(1, abs=1e-5)
    known = images[:1].masked_fill(~place, -1).expand(draws, -1)
    drawn = stage.generate(torch.full((draws,), 2), Random(range(draws)), sampling, known=known)
    assert_frequencies(drawn[:, ~place], missing, of_missing)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (torch.full((5, 7), -1), r"known labels of shape \(5, 7\) for 5 class labels: 8 per image"),
        (torch.full((5, N), 30), "known labels range from 30 to 30: the level has 30"),
        (torch.full((5, N), -2), "known labels range from -2 to -2"),
        (torch.zeros(5, N, dtype=torch.int64), "all labels are known: nothing is left to draw"),
        (torch.eye(5, N, dtype=torch.int64) - 1, "lie at other positions in some images"),
        (torch.tensor([-1, 0] * 4).repeat(5, 1), "stage stage is autoregressive: it continues images from their first"),
    ],
    ids=str,
)
def test_known_labels_that_cannot_stay(make, known, message):
    stage = make("autoregressive")
    with pytest.raises(InputError, match=message):
        stage.generate(LABELS, Random(SEEDS), known=known)
    if "autoregressive" in message:
        with pytest.raises(InputError, match=message):
            stage.log_prob(torch.zeros(5, N, dtype=torch.int64), LABELS, kept=known[0] >= 0)
