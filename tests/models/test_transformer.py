import math

import pytest
import torch

BOTH = pytest.mark.parametrize("attention", ["causal", "full"])


@pytest.fixture
def labels():
    return torch.tensor([0, 5, 2])  # 5 is unconditional


def naive_logits(model, tokens, label, given=None):
    """The whole network for one image, position by position, in float64; without tokens they are zero vectors."""
    c = model.config
    w = {name: value.double() for name, value in model.state_dict().items()}

    def norm(x, weight):
        return x / (x.square().mean() + c.norm_eps).sqrt() * weight

    def rotation(position):  # (head_dim, head_dim)
        if position == 0:
            return torch.zeros(c.head_dim, c.head_dim, dtype=torch.float64)
        row, column = divmod(position - 1, c.layout.finest[1])
        quarter = c.head_dim // 4
        angles = [x * c.rope_base ** (-i / quarter) for x in (row, column) for i in range(quarter)]
        blocks = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles]
        return torch.block_diag(*torch.tensor(blocks, dtype=torch.float64))

    causal = c.attention == "causal"
    n, first = c.num_tokens, w["label_embedding.weight"][label]
    read = torch.zeros(n, c.dim, dtype=torch.float64) if tokens is None else w["token_embedding.weight"][tokens]
    stream = [first, *read[:-1]] if causal else [first, *read]
    for i in range(0 if given is None else n):  # added to the input that predicts its position
        place = i if causal else i + 1
        stream[place] = stream[place] + w["given_embedding.weight"][given[i]]
    for layer in range(c.layers):
        p = {name.removeprefix(f"blocks.{layer}."): value for name, value in w.items()}
        q, k, v = [], [], []
        for position, x in enumerate(stream):
            heads = (p["attention.qkv.weight"] @ norm(x, p["attention_norm.weight"])).view(-1, c.head_dim)
            turn = rotation(position)
            q.append([turn @ h for h in heads[: c.heads]])
            k.append([turn @ h for h in heads[c.heads : c.heads + c.num_kv_heads]])
            v.append(list(heads[c.heads + c.num_kv_heads :]))
        for i in range(len(stream)):
            visible = range(i + 1) if causal else range(len(stream))
            mixed = []
            for h in range(c.heads):
                g = h * c.num_kv_heads // c.heads
                scores = torch.stack([q[i][h] @ k[j][g] / math.sqrt(c.head_dim) for j in visible])
                mixed.append(sum(a * v[j][g] for a, j in zip(scores.softmax(0), visible, strict=True)))
            stream[i] = stream[i] + p["attention.out.weight"] @ torch.cat(mixed)
        for i, x in enumerate(stream):
            y = norm(x, p["ffn_norm.weight"])
            gate = p["ffn.w1.weight"] @ y
            stream[i] = x + p["ffn.w2.weight"] @ (gate / (1 + (-gate).exp()) * (p["ffn.w3.weight"] @ y))
    logits = [w["head.weight"] @ norm(x, w["norm.weight"]) for x in stream]
    return torch.stack(logits if causal else logits[1:])


@BOTH
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_logits_equal_a_naive_networks(make_model, tokens, labels, attention, kv_heads):
    model = make_model(attention=attention, kv_heads=kv_heads)
    expected = torch.stack([naive_logits(model, t, int(y)) for t, y in zip(tokens, labels, strict=True)])
    torch.testing.assert_close(model(tokens, labels).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("attention", "reads"), [("causal", True), ("full", True), ("full", False)])
def test_logits_with_given_labels_equal_a_naive_networks(make_model, tokens, labels, given, attention, reads):
    model = make_model(attention=attention, given_vocab=4, input_vocab=11 if reads else 0)
    shown = tokens if reads else [None] * 3
    images = zip(shown, labels, given, strict=True)
    expected = torch.stack([naive_logits(model, t, int(y), g) for t, y, g in images])
    logits = model(tokens if reads else None, labels, given)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


@BOTH
def test_class_dropout_in_training(make_model, tokens, labels, attention):
    unconditional = torch.full_like(labels, 5)
    always = make_model(attention=attention, dropout=0.0, class_dropout=1.0)
    never = make_model(attention=attention, dropout=0.0, class_dropout=0.0)
    expected = never(tokens, labels)
    torch.testing.assert_close(always(tokens, labels), expected)  # evaluation mode: no dropout
    torch.testing.assert_close(always.train()(tokens, labels), never(tokens, unconditional))
    torch.testing.assert_close(never.train()(tokens, labels), expected)


def test_class_dropout_is_one_decision_per_image(make_model, tokens):
    model = make_model(dropout=0.0, class_dropout=0.3).train()
    torch.manual_seed(0)
    logits = model(tokens[:1].expand(1000, -1), torch.zeros(1000, dtype=torch.int64))
    model.eval()
    kept, dropped = model(tokens[:2] * 0 + tokens[0], torch.tensor([0, 5]))
    is_kept = torch.isclose(logits, kept, atol=1e-4).flatten(1).all(1)
    is_dropped = torch.isclose(logits, dropped, atol=1e-4).flatten(1).all(1)
    assert (is_kept ^ is_dropped).all()
    assert 240 < is_dropped.sum() < 360  # 300 ± 4 standard deviations


def test_evaluation_is_deterministic_and_training_drops(make_model, tokens, labels):
    model = make_model(dropout=0.5, class_dropout=0.0)
    assert torch.equal(model(tokens, labels), model(tokens, labels))
    model.train()
    assert not torch.equal(model(tokens, labels), model(tokens, labels))


# --- groups of positions ---


POSITIONS, SIZES = torch.tensor([4, 0, 5, 2, 3, 1]), [1, 2, 3]


@pytest.mark.parametrize("given_vocab", [0, 4])
def test_images_may_have_different_orders(make_model, tokens, labels, given, given_vocab):
    model = make_model(attention="groups", given_vocab=given_vocab)
    given = given if given_vocab else None
    orders = torch.stack([POSITIONS, POSITIONS.flip(0), POSITIONS.sort().values])
    together = model.hidden_in_groups(tokens, labels, given, orders, SIZES)
    for i in range(3):
        one = slice(i, i + 1)
        its_labels = None if given is None else given[one]
        alone = model.hidden_in_groups(tokens[one], labels[one], its_labels, orders[i], SIZES)
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


def test_class_dropout_in_groups(make_model, tokens, labels):
    model = make_model(attention="groups", dropout=0.0, class_dropout=1.0)
    expected = model.hidden_in_groups(tokens, torch.full_like(labels, 5), None, POSITIONS, SIZES)
    assert not torch.allclose(model.hidden_in_groups(tokens, labels, None, POSITIONS, SIZES), expected)
    found = model.train().hidden_in_groups(tokens, labels, None, POSITIONS, SIZES)
    torch.testing.assert_close(found, expected)


def test_mask_tokens_are_rotated_by_position(make_model):
    """Without it a full model would tell positions apart by the edges of the image alone."""
    model = make_model(attention="full", input_vocab=6, output_vocab=5)
    tokens = torch.full((1, model.config.num_tokens), 5)
    inputs = model._embed(tokens, torch.tensor([0]), None)[0, 1:]
    vector = model.token_embedding.weight[5].unflatten(0, (model.config.heads, -1))
    for i, found in enumerate(inputs):
        cos, sin = model.rotary[1 + i]
        swapped = vector.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        torch.testing.assert_close(found, (vector * cos + swapped * sin).flatten())
    known = tokens.clone()
    known[0, 2] = 3
    assert torch.equal(model._embed(known, torch.tensor([0]), None)[0, 3], model.token_embedding.weight[3])
