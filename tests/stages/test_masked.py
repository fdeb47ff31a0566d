"""A round against the logits of all labels: guidance on logits, those outside the given cluster masked."""

import pytest
import torch
from stage_cases import LABELS, SEEDS

from ctf.errors import InputError
from ctf.models import Compute
from ctf.sampling import Random, Sampling, draw
from ctf.stages import generate_tokens

KIND = "masked"
GIVEN = ["fine", "fine, full", "middle", "middle, full"]


def some_coarse(count):
    return torch.randint(6, (count, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("task", GIVEN)
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.0}, {"temperature": 1.5}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.8}],
    ids=str,
)
def test_against_guided_logits_of_all_labels(make, guided_logits, coarse, task, cfg_scale, settings):
    stage = make(KIND, task)
    expected = draw(
        guided_logits(stage, None, LABELS, coarse, cfg_scale), Random(SEEDS, 1).uniform(8), Sampling(**settings)
    )
    tokens = generate_tokens(stage, LABELS, SEEDS, coarse, place=1, cfg_scale=cfg_scale, **settings)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("task", ["all tokens", "coarse"])
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_given_nothing_every_hidden_label_is_the_same_vector(make, guided_logits, task, cfg_scale):
    stage = make(KIND, task)
    hidden = torch.zeros(5, 8, dtype=torch.int64)
    expected = draw(guided_logits(stage, hidden, LABELS, None, cfg_scale), Random(SEEDS).uniform(8), Sampling())
    assert torch.equal(generate_tokens(stage, LABELS, SEEDS, cfg_scale=cfg_scale), expected)


def test_tokens_stay_in_their_clusters(make, coarse_map):
    coarse, labels = some_coarse(1250), torch.arange(1250) % 6
    tokens = generate_tokens(make(KIND, "fine"), labels, range(1250), coarse, temperature=3.0)
    assert torch.equal(coarse_map.to_coarse(tokens), coarse)
    assert len(tokens.unique()) == 30


@pytest.mark.parametrize("compute", [Compute("bfloat16"), Compute("float32", "int8")], ids=str)
def test_cheaper_weights_draw_nearly_the_same(make, coarse_map, compute):
    stage, coarse, labels = make(KIND, "fine"), some_coarse(60), torch.arange(60) % 6
    exact = generate_tokens(stage, labels, range(60), coarse)
    tokens = generate_tokens(stage.pack(compute), labels, range(60), coarse)
    assert torch.equal(coarse_map.to_coarse(tokens), coarse)
    assert 0.95 < (tokens == exact).double().mean() < 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": torch.tensor([0, 1]), "seeds": [1, 2]}, "given labels of shape"),
        ({"given": None}, "stage stage is given labels of a coarser level: give them"),
        ({"given": torch.zeros(5, 7, dtype=torch.int64)}, "8 per image are needed"),
        ({"given": torch.full((5, 8), 6)}, "given labels range from 6 to 6"),
        ({"given": torch.full((5, 8), -1)}, "given labels range from -1 to -1"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_wrong_arguments_of_generate_are_refused(make, coarse, wrong, message):
    with pytest.raises(InputError, match=message):
        generate_tokens(make(KIND, "fine"), **{"labels": LABELS, "seeds": SEEDS, "given": coarse, **wrong})
