import pytest
import torch

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.sampling import draw, refine_tokens, uniforms

LABELS = torch.tensor([0, 4, 2, 5, 1])  # 5 is unconditional
SEEDS = [3, 0, 2**63, 7, 3]
SUPPORTS = pytest.mark.parametrize("support", ["cluster", "full"])


@pytest.fixture
def coarse():
    return torch.randint(6, (5, 8), generator=torch.Generator().manual_seed(1))


def guided_logits(model, coarse, labels, cfg_scale):
    """Guidance on the logits of all tokens: (B, N, K)."""
    with torch.no_grad():
        conditional = model(coarse, labels)
        unconditional = model(coarse, torch.full_like(labels, model.config.num_classes))
    return unconditional + cfg_scale * (conditional - unconditional)


@SUPPORTS
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.0}, {"temperature": 1.5}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.8}],
    ids=str,
)
def test_against_guided_logits_of_all_tokens(fine_model, coarse_map, coarse, support, cfg_scale, settings):
    logits = guided_logits(fine_model, coarse, LABELS, cfg_scale)
    if support == "cluster":
        logits = logits.masked_fill(coarse_map.fine_to_coarse != coarse[..., None], -torch.inf)
    expected = draw(logits, uniforms(SEEDS, 8, "stage2"), **settings)
    tokens = refine_tokens(fine_model, coarse, LABELS, coarse_map, SEEDS, cfg_scale, support=support, **settings)
    assert torch.equal(tokens, expected)


def test_tokens_stay_in_their_clusters(fine_model, coarse_map):
    coarse = torch.randint(6, (1250, 8), generator=torch.Generator().manual_seed(2))
    labels = torch.arange(1250) % 6
    tokens = refine_tokens(fine_model, coarse, labels, coarse_map, range(1250), temperature=3.0)
    assert torch.equal(coarse_map.to_coarse(tokens), coarse)
    assert len(tokens.unique()) == 30


@SUPPORTS
def test_an_image_depends_on_its_seed_labels_and_class_only(fine_model, coarse_map, coarse, support):
    together = refine_tokens(fine_model, coarse, LABELS, coarse_map, SEEDS, 2.0, support=support)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = [SEEDS[i] for i in order]
    assert torch.equal(
        refine_tokens(fine_model, coarse[order], LABELS[order], coarse_map, shuffled, 2.0, support=support),
        together[order],
    )
    for i in range(5):
        part = slice(i, i + 1)
        alone = refine_tokens(fine_model, coarse[part], LABELS[part], coarse_map, SEEDS[part], 2.0, support=support)
        assert torch.equal(alone[0], together[i])


def test_stage_2_does_not_repeat_the_numbers_of_stage_1(fine_model, coarse_map, coarse):
    tokens = refine_tokens(fine_model, coarse, LABELS, coarse_map, SEEDS, support="full")
    assert not torch.equal(tokens, draw(fine_model(coarse, LABELS), uniforms(SEEDS, 8, "stage1")))


def test_fresh_seeds_come_from_torchs_generator(fine_model, coarse_map, coarse):
    torch.manual_seed(0)
    first = refine_tokens(fine_model, coarse, LABELS, coarse_map)
    second = refine_tokens(fine_model, coarse, LABELS, coarse_map)
    torch.manual_seed(0)
    assert torch.equal(refine_tokens(fine_model, coarse, LABELS, coarse_map), first)
    assert not torch.equal(first, second)


def test_tokens_are_an_ordinary_tensor(fine_model, coarse_map, coarse):
    assert not refine_tokens(fine_model, coarse, LABELS, coarse_map, SEEDS).is_inference()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 3, 6])}, "labels range from 0 to 6"),
        ({"labels": torch.tensor([0, 1])}, "coarse labels of shape"),
        ({"coarse": torch.zeros(5, 7, dtype=torch.int64)}, "8 per image are needed"),
        ({"coarse": torch.full((5, 8), 6)}, "coarse labels range from 6 to 6"),
        ({"coarse": torch.full((5, 8), -1)}, "coarse labels range from -1 to -1"),
        ({"seeds": [1]}, "1 seeds for 5 labels"),
        ({"seeds": [1, 2, 3, 4, -5]}, "seed -5"),
        ({"coarse_map": CoarseMap(torch.arange(30) % 5, "test", 0, "none")}, "do not belong together"),
        ({"coarse_map": CoarseMap(torch.arange(31) % 6, "test", 0, "none")}, "do not belong together"),
        ({"support": "clusters"}, "choose one of cluster, full"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_what_cannot_be_refined_is_refused(fine_model, coarse_map, coarse, wrong, message):
    valid = {"coarse": coarse, "labels": LABELS, "coarse_map": coarse_map, "seeds": SEEDS}
    with pytest.raises(InputError, match=message):
        refine_tokens(fine_model, **valid | wrong)


def test_a_causal_model_is_refused(causal_model, coarse_map, coarse):
    with pytest.raises(InputError, match="not a causal one"):
        refine_tokens(causal_model, coarse, LABELS, coarse_map)
