import pytest
import torch

from ctf.errors import InputError
from ctf.sampling import generate_tokens, uniforms

SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.7},
    {"top_k": 3},
    {"top_k": 1},
    {"top_p": 0.6},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.7},
]
LABELS = torch.tensor([0, 4, 2, 5, 1])  # 5 is unconditional
SEEDS = [3, 0, 2**63, 7, 3]


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


@torch.no_grad()
def naive_tokens(model, label, seed, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0):
    """One image: the whole sequence through the network at each step, guidance on logits."""
    config = model.config
    uniform = uniforms([seed], config.num_tokens, "stage1")[0].tolist()
    tokens = torch.zeros(1, config.num_tokens, dtype=torch.int64)
    for i in range(config.num_tokens):
        logits = model(tokens, torch.tensor([label]))[0, i]
        if cfg_scale != 1:
            unconditional = model(tokens, torch.tensor([config.num_classes]))[0, i]
            logits = unconditional + cfg_scale * (logits - unconditional)
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


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_against_naive_decoding(causal_model, cfg_scale, settings):
    expected = torch.stack(
        [naive_tokens(causal_model, int(y), s, cfg_scale, **settings) for y, s in zip(LABELS, SEEDS, strict=True)]
    )
    tokens = generate_tokens(causal_model, LABELS, SEEDS, cfg_scale, **settings)
    assert torch.equal(tokens, expected)
    assert torch.equal(generate_tokens(causal_model, LABELS[:1], SEEDS[:1], cfg_scale, **settings), expected[:1])


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_an_image_depends_on_its_seed_and_label_only(causal_model, cfg_scale):
    labels, seeds = torch.tensor([0, 1, 2, 3, 4, 5, 0]), torch.arange(7)
    together = generate_tokens(causal_model, labels, seeds, cfg_scale)
    order = torch.tensor([4, 2, 6, 0, 3, 5, 1])
    assert torch.equal(generate_tokens(causal_model, labels[order], seeds[order], cfg_scale), together[order])
    for i in range(7):
        alone = generate_tokens(causal_model, labels[i : i + 1], seeds[i : i + 1], cfg_scale)
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[0], together[6])  # same label, another seed


def test_fresh_seeds_come_from_torchs_generator(causal_model):
    torch.manual_seed(0)
    first = generate_tokens(causal_model, LABELS)
    second = generate_tokens(causal_model, LABELS)
    torch.manual_seed(0)
    assert torch.equal(generate_tokens(causal_model, LABELS), first)
    assert not torch.equal(first, second)


def test_tokens_can_be_trained_on(causal_model):
    tokens = generate_tokens(causal_model, LABELS, SEEDS)
    causal_model(tokens, LABELS).sum().backward()
    assert causal_model.token_embedding.weight.grad is not None


@pytest.mark.parametrize("labels", [[-1], [6], [0, 6]])
def test_labels_out_of_range(causal_model, labels):
    with pytest.raises(InputError, match="the model has the classes 0 … 4"):
        generate_tokens(causal_model, torch.tensor(labels))


def test_no_labels(causal_model):
    with pytest.raises(InputError, match="one label per image"):
        generate_tokens(causal_model, torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]])
def test_seeds_that_do_not_match(causal_model, seeds):
    with pytest.raises(InputError, match=f"{len(seeds)} seeds for 2 labels"):
        generate_tokens(causal_model, LABELS[:2], seeds)


def test_a_fine_model_is_refused(fine_model):
    with pytest.raises(InputError, match="causal"):
        generate_tokens(fine_model, LABELS)


def test_bad_settings(causal_model):
    with pytest.raises(InputError, match="top_p"):
        generate_tokens(causal_model, LABELS, SEEDS, top_p=0.0)
