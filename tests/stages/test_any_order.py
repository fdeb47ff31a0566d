"""Groups of positions against a network written out: the whole sequence anew for each group, no cache, no mask."""

import itertools
import math

import pytest
import torch
from stage_cases import (
    LABELS,
    LAYOUT,
    SEEDS,
    SETTINGS,
    TASKS,
    N,
    assert_steps_are_teacher_forcing,
    in_pairs,
    only_allowed,
    scale_at,
)

from ctf.layout import Layout
from ctf.models import Compute
from ctf.sampling import Random, Sampling, draw
from ctf.sampling.orders import group_sizes, order_groups

KIND = "any_order"
WAYS = [
    {"steps": 8, "order": "random", "order_seed": 5},
    {"steps": 8, "order": "raster"},
    {"steps": 5, "order": "halton"},
    {"steps": 3, "order": "locality", "schedule": "arccos"},
    {"steps": 2, "order": "random", "schedule": "uniform"},
    {"steps": 1, "order": "raster"},
]


def groups_of(steps, order, schedule="cosine", order_seed=0):
    return [g.tolist() for g in order_groups(order, LAYOUT, tuple(group_sizes(N, steps, schedule)), order_seed)]


def rotated(x, positions, config):
    """x (B, n, heads, head_dim): a complex number per pair, turned by row and column; the class label's vanishes."""
    quarter = config.head_dim // 4
    speeds = torch.tensor([config.rope_base ** (-i / quarter) for i in range(quarter)], dtype=torch.float64)
    turns = []
    for position in positions:
        row, column = divmod(position or 0, LAYOUT.finest[1])
        angles = torch.cat([row * speeds, column * speeds])
        turns.append(torch.polar(torch.full_like(angles, float(position is not None)), angles))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.stack(turns)[:, None]
    return torch.view_as_real(turned).flatten(-2)


@torch.no_grad()
def group_logits(stage, tokens, labels, given, groups, number):
    """Logits of group `number` (B, n, vocabulary), in float64, from the tokens of the groups before.

    The sequence is the label, those tokens, and a query for each position of the group; each of them sees what is
    before the end of its group.
    """
    c, w = stage.config, {name: value.double() for name, value in stage.transformer.state_dict().items()}
    known, asked = list(itertools.chain(*groups[:number])), groups[number]
    positions = [None, *known, *asked]
    lengths = [1, *map(len, groups[: number + 1])]
    sees = [sum(lengths[: i + 1]) for i, length in enumerate(lengths) for _ in range(length)]

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * weight

    heads = w["query_embedding.weight"].view(1, 1, c.heads, c.head_dim).expand(len(labels), len(asked), -1, -1)
    queries = rotated(heads, asked, c).flatten(2)
    if given is not None:
        queries = queries + w["given_embedding.weight"][given[:, asked]]
    first = w["label_embedding.weight"][labels][:, None]
    x = torch.cat([first, w["token_embedding.weight"][tokens[:, known]], queries], 1)
    for layer in range(c.layers):
        p = {name.removeprefix(f"blocks.{layer}."): value for name, value in w.items()}
        qkv = (norm(x, p["attention_norm.weight"]) @ p["attention.qkv.weight"].T).unflatten(2, (-1, c.head_dim))
        q, k, v = qkv.split([c.heads, c.num_kv_heads, c.num_kv_heads], dim=2)
        q, k = rotated(q, positions, c), rotated(k, positions, c)
        k, v = (t.repeat_interleave(c.heads // c.num_kv_heads, dim=2) for t in (k, v))
        mixed = []
        for i, end in enumerate(sees):
            scores = torch.einsum("bhd,bmhd->bhm", q[:, i], k[:, :end]) / math.sqrt(c.head_dim)
            mixed.append(torch.einsum("bhm,bmhd->bhd", scores.softmax(-1), v[:, :end]).flatten(1))
        x = x + torch.stack(mixed, 1) @ p["attention.out.weight"].T
        y = norm(x, p["ffn_norm.weight"])
        gate = y @ p["ffn.w1.weight"].T
        x = x + (gate * gate.sigmoid() * (y @ p["ffn.w3.weight"].T)) @ p["ffn.w2.weight"].T
    return norm(x[:, -len(asked) :], w["norm.weight"]) @ w["head.weight"].T


def naive_tokens(stage, labels, seeds, given, way, cfg_scale=1.0, cfg_schedule="constant", **filters):
    uniform, groups = Random(seeds).uniform(N), groups_of(**way)
    tokens = torch.full((len(labels), N), -1)
    for number, group in enumerate(groups):
        logits = group_logits(stage, tokens, labels, given, groups, number)
        known = int((tokens[0] >= 0).sum()) / N
        scale = scale_at(number, len(groups), known, cfg_scale, cfg_schedule)
        unconditional = group_logits(stage, tokens, torch.full_like(labels, 5), given, groups, number)
        logits = unconditional + scale * (logits - unconditional)
        logits = only_allowed(stage, logits, None if given is None else given[:, group])
        tokens[:, group] = draw(logits, uniform[:, group], Sampling(**filters))
    return tokens


@in_pairs(("task", "way", "kv_heads"), TASKS, WAYS, [None, 1])
def test_likelihood_against_groups_one_after_another(make, tokens, task, kv_heads, way):
    stage, groups = make(KIND, task, kv_heads=kv_heads), groups_of(**way)
    targets, given = stage.levels(tokens)
    sampling, expected = Sampling(**way), torch.empty(5, N, dtype=torch.float64)
    logits_of_stage = stage.logits(tokens, LABELS, stage.plan(sampling))
    for number, group in enumerate(groups):
        logits = group_logits(stage, targets, LABELS, given, groups, number)
        if stage.members is None:
            torch.testing.assert_close(logits_of_stage[:, group].double(), logits, rtol=1e-4, atol=1e-4)
        logits = only_allowed(stage, logits, None if given is None else given[:, group])
        expected[:, group] = logits.log_softmax(-1).gather(2, targets[:, group, None]).squeeze(2)
    torch.testing.assert_close(stage.log_prob(tokens, LABELS, sampling).double(), expected, rtol=1e-4, atol=1e-5)


@in_pairs(("task", "settings", "way"), TASKS, SETTINGS, WAYS)
def test_cached_groups_draw_what_whole_sequences_draw(make, coarse, task, settings, way):
    stage = make(KIND, task, kv_heads=1 if way["steps"] % 2 else None)
    given = None if stage.given is None else coarse
    expected = naive_tokens(stage, LABELS, SEEDS, given, way, **settings)
    sampling = Sampling(**way, **settings)
    assert torch.equal(stage.generate(LABELS, Random(SEEDS), sampling, given), expected)
    packed = stage.pack(Compute("float32"))
    assert torch.equal(packed.generate(LABELS, Random(SEEDS), sampling, given), expected)


# --- training ---


@pytest.mark.parametrize("task", ["all tokens", "fine"])
def test_a_training_loss_is_the_likelihood_in_an_order_of_its_own(make, task):
    """Of two positions there are three ways: one before the other, the other way round, both at once."""
    stage, labels = make(KIND, task, layout=Layout((1, 2))), torch.zeros(40, dtype=torch.int64)
    tokens = torch.tensor([[3, 17]]).repeat(40, 1)
    shuffled = [Sampling(steps=2, order="random", order_seed=seed) for seed in range(9)]
    orders = {
        tuple(torch.cat([torch.arange(N)[group.at] for group in stage.plan(way).groups]).tolist()): way
        for way in shuffled
    }
    ways = [orders[0, 1], orders[1, 0], Sampling(steps=1)]
    possible = torch.stack([-stage.log_prob(tokens[:1], labels[:1], way).sum() for way in ways])
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        distances, nearest = (stage(tokens, labels).sum(1)[:, None] - possible).abs().min(1)
        assert distances.max() < 1e-5
        seen.add(tuple(sorted(nearest.unique().tolist())))
    assert seen == {(0, 1), (2,)}  # a batch shares its number of groups, its images have orders of their own


SCALES = Layout.square(1, 3)  # the cell of the first scale, position 0, has the centre of position 5


@torch.no_grad()
def test_cells_with_one_centre_are_told_apart(make_stage):
    """As queries, and as known tokens; without an embedding of scales both gave equal logits."""
    stage, label = make_stage(KIND, layout=SCALES, codebook_size=4), torch.tensor([1])
    tokens = torch.zeros(1, 10, dtype=torch.int64)
    asked = stage.logits(tokens, label, stage.plan(Sampling(steps=1, order="raster")))[0]
    assert (asked[0] - asked[5]).abs().max() > 1e-3

    def after(kept):
        known = torch.zeros(10, dtype=torch.bool)
        known[kept] = True
        return stage.logits(tokens, label, stage.plan(Sampling(steps=1, order="raster"), known))[0]

    assert (after(0)[1] - after(5)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("sampling", [Sampling(order="scales"), Sampling(order="raster", steps=4)], ids=str)
def test_cached_steps_over_several_scales_are_teacher_forcing(make_stage, sampling):
    tokens = torch.randint(4, (2, 10), generator=torch.Generator().manual_seed(0))
    stage = make_stage(KIND, layout=SCALES, codebook_size=4)
    assert_steps_are_teacher_forcing(stage, tokens, torch.tensor([0, 2]), sampling)
