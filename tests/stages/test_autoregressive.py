"""Decoding against a naive loop: the whole sequence at each step, no cache, guidance on logits, filters written out."""

import pytest
import torch
from stage_cases import LABELS, SEEDS

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models import Compute
from ctf.sampling import Random, Sampling
from ctf.stages import generate_tokens

SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.7},
    {"top_k": 3},
    {"top_k": 1},
    {"top_p": 0.6},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.7},
]
KIND = "autoregressive"


def filtered_probabilities(logits, temperature, top_k, top_p):
    """One row of logits (V,) → probabilities in float64, written from the definitions."""
    probabilities = (logits.double() / temperature).softmax(0)
    if top_k:
        probabilities[probabilities < probabilities.sort(descending=True).values[top_k - 1]] = 0
        probabilities = probabilities / probabilities.sum()
    total = 0.0
    for token in probabilities.argsort(descending=True):
        if total > top_p:
            probabilities[token] = 0
        total += float(probabilities[token])
    return probabilities / probabilities.sum()


@pytest.fixture
def naive_tokens(guided_logits, scale_at):
    """One image after another."""

    def naive(stage, label, seed, given, place=0, temperature=1.0, top_k=0, top_p=1.0, **guidance):
        uniform = Random([seed], place).uniform(stage.num_tokens)[0].tolist()
        tokens = torch.zeros(1, stage.num_tokens, dtype=torch.int64)
        for i in range(stage.num_tokens):
            logits = guided_logits(stage, tokens, label[None], given, scale_at(i, 8, i / 8, **guidance))[0, i]
            if temperature == 0:
                tokens[0, i] = logits.argmax()
                continue
            cumulative = 0.0
            for token, p in enumerate(filtered_probabilities(logits, temperature, top_k, top_p).tolist()):
                cumulative += p
                if cumulative > uniform[i]:
                    tokens[0, i] = token
                    break
        return tokens[0]

    def every_image(stage, labels, seeds, given=None, **settings):
        rows = [None] * len(labels) if given is None else given[:, None]
        return torch.stack([naive(stage, *image, **settings) for image in zip(labels, seeds, rows, strict=True)])

    return every_image


@pytest.mark.parametrize(
    "guidance",
    [
        *({"cfg_scale": s} for s in (0.0, 1.0, 2.5)),
        *({"cfg_scale": 2.5, "cfg_schedule": s} for s in ("steps", "known")),
    ],
    ids=str,
)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_against_naive_decoding(make, naive_tokens, guidance, settings):
    stage, settings = make(KIND), {**guidance, **settings}
    expected = naive_tokens(stage, LABELS, SEEDS, **settings)
    assert torch.equal(generate_tokens(stage, LABELS, SEEDS, **settings), expected)
    assert torch.equal(generate_tokens(stage, LABELS[:1], SEEDS[:1], **settings), expected[:1])


@pytest.mark.parametrize("task", ["fine", "fine, full", "middle", "middle, full"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[-1]], ids=str)
def test_given_labels_against_naive_decoding(make, naive_tokens, coarse, task, cfg_scale, settings):
    stage, settings = make(KIND, task), {"cfg_scale": cfg_scale, **settings}
    expected = naive_tokens(stage, LABELS, SEEDS, coarse, place=1, **settings)
    tokens = generate_tokens(stage, LABELS, SEEDS, coarse, place=1, **settings)
    assert torch.equal(tokens, expected)
    if stage.support == "cluster":
        relation = stage.given if stage.predicts is None else stage.predicts.coarsened_by(stage.given)
        assert torch.equal(relation.to_coarse(tokens), coarse)


def test_int8_images_depend_on_their_seed_only(make):
    packed = make(KIND).pack(Compute("float32", "int8"))
    labels, sampling = torch.tensor([0, 1, 2, 3]), Sampling(cfg_scale=2.0)
    together = packed.generate(labels, Random([5, 6, 7, 8]), sampling)
    for i in range(4):
        assert torch.equal(packed.generate(labels[i : i + 1], Random([5 + i]), sampling)[0], together[i])


def test_a_stage_generates_with_its_defaults_unless_settings_are_given(make):
    own = Sampling(cfg_scale=2.0, temperature=0.5, top_k=4)
    stage = make(KIND, sampling=own)
    tokens = stage.generate(LABELS, Random(SEEDS))
    settings = {"cfg_scale": 2.0, "temperature": 0.5, "top_k": 4}
    assert torch.equal(tokens, generate_tokens(stage, LABELS, SEEDS, **settings))
    assert torch.equal(stage.generate(LABELS, Random(SEEDS), Sampling()), generate_tokens(stage, LABELS, SEEDS))


def test_packing_once_is_packing_each_time(make):
    stage = make(KIND)
    packed = stage.pack(Compute("float32"))
    assert packed.pack(Compute("float32")) is packed
    for _ in range(2):
        tokens = generate_tokens(packed, LABELS, SEEDS, cfg_scale=1.5)
        assert torch.equal(tokens, generate_tokens(stage, LABELS, SEEDS, cfg_scale=1.5))


def test_packing_leaves_the_stage_as_it_is(make):
    stage = make(KIND, dropout=0.5, class_dropout=0.5).train()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in stage.state_dict().items()}
    generate_tokens(stage, LABELS, SEEDS)
    assert stage.training
    assert not stage.packed
    for name, tensor in stage.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    stage(torch.zeros(5, 8, dtype=torch.int64), LABELS).sum().backward()
    assert all(parameter.grad is not None for parameter in stage.parameters())


def test_tokens_can_be_trained_on(make):
    stage = make(KIND)
    stage(generate_tokens(stage, LABELS, SEEDS), LABELS).sum().backward()
    assert stage.transformer.token_embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": torch.tensor([-1])}, "the model has the classes 0 … 4"),
        ({"labels": torch.tensor([0, 6])}, "the model has the classes 0 … 4"),
        ({"labels": torch.tensor([], dtype=torch.int64)}, "one label per image"),
        ({"labels": torch.tensor([[0, 1]])}, "one label per image"),
        ({"seeds": [1]}, "1 seeds for 5 labels"),
        ({"seeds": [1, 2, 3, 4, -5]}, "seed -5"),
        ({"given": torch.zeros(5, 8, dtype=torch.int64)}, "given the class label alone"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_q": 0.5}, "no sampling setting 'top_q'"),
    ],
)
def test_wrong_arguments_of_generate_are_refused(make, wrong, message):
    with pytest.raises(InputError, match=message):
        generate_tokens(make(KIND), **{"labels": LABELS, **wrong})


@torch.no_grad()
def test_cells_with_one_centre_are_told_apart_by_what_they_see(make_stage):
    """The next token after position 0 and after position 5, whose inputs and coordinates are equal."""
    stage, tokens = make_stage(KIND, layout=Layout.square(1, 3), codebook_size=4), torch.zeros(1, 10, dtype=torch.int64)
    coordinates = stage.layout.coordinates
    assert coordinates[0][1:] == coordinates[5][1:]
    logits = stage.logits(tokens, torch.tensor([1]))[0]
    assert (logits[1] - logits[6]).abs().max() > 1e-3
