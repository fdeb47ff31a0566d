"""Decoding against a naive loop: the whole sequence at each step, no cache, guidance on logits, filters written out."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ctf.errors import InputError
from ctf.models import Compute
from ctf.models.linear import Linear
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
ALL_FILTERS = Sampling(cfg_scale=2.0, temperature=0.8, top_k=6, top_p=0.7)
LABELS = torch.tensor([0, 4, 2, 5, 1])  # 5 is unconditional
SEEDS = [3, 0, 2**63, 7, 3]
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
def naive_tokens(guided_logits):
    """One image after another."""

    def naive(stage, label, seed, given, place=0, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0):
        uniform = Random([seed], place).uniform(stage.num_tokens)[0].tolist()
        tokens = torch.zeros(1, stage.num_tokens, dtype=torch.int64)
        for i in range(stage.num_tokens):
            logits = guided_logits(stage, tokens, label[None], given, cfg_scale)[0, i]
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


@pytest.fixture
def coarse():
    return torch.randint(6, (5, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_against_naive_decoding(make, naive_tokens, cfg_scale, settings):
    stage = make(KIND)
    expected = naive_tokens(stage, LABELS, SEEDS, cfg_scale=cfg_scale, **settings)
    settings = {"cfg_scale": cfg_scale, **settings}
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


@pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full", "middle"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_an_image_depends_on_its_seed_and_labels_only(make, coarse, task, cfg_scale):
    stage = make(KIND, task)
    labels, seeds = torch.tensor([0, 1, 2, 3, 4, 5, 0]), torch.arange(7)
    given = None if stage.given is None else coarse[[0, 1, 2, 3, 4, 0, 0]]

    def generate(images):
        shown = None if given is None else given[images]
        return generate_tokens(stage, labels[images], seeds[images], shown, cfg_scale=cfg_scale)

    together = generate(torch.arange(7))
    order = torch.tensor([4, 2, 6, 0, 3, 5, 1])
    assert torch.equal(generate(order), together[order])
    for i in range(7):
        assert torch.equal(generate(torch.tensor([i]))[0], together[i])
    assert not torch.equal(together[0], together[6])  # same labels, another seed


def test_int8_images_depend_on_their_seed_only(make):
    packed = make(KIND).pack(Compute("float32", "int8"))
    labels, sampling = torch.tensor([0, 1, 2, 3]), Sampling(cfg_scale=2.0)
    together = packed.generate(labels, Random([5, 6, 7, 8]), sampling)
    for i in range(4):
        assert torch.equal(packed.generate(labels[i : i + 1], Random([5 + i]), sampling)[0], together[i])


def test_steps_show_the_labels_so_far(make):
    stage, seen = make(KIND), []
    random = Random(SEEDS)
    tokens = stage.generate(LABELS, random, on_step=lambda number, so_far: seen.append((number, so_far.clone())))
    assert [number for number, _ in seen] == list(range(8)) == list(range(stage.num_steps(Sampling())))
    for i, so_far in seen:
        assert torch.equal(so_far[:, : i + 1], tokens[:, : i + 1])
        assert (so_far[:, i + 1 :] == -1).all()
    stepwise = [so_far.clone() for so_far in stage.stepwise(LABELS, random)]
    assert all(torch.equal(a, b) for a, (_, b) in zip(stepwise, seen, strict=True))


def test_a_stage_draws_with_its_own_settings_unless_told_otherwise(make):
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


def test_fresh_seeds_come_from_torchs_generator(make):
    stage = make(KIND)
    torch.manual_seed(0)
    first, second = generate_tokens(stage, LABELS), generate_tokens(stage, LABELS)
    torch.manual_seed(0)
    assert torch.equal(generate_tokens(stage, LABELS), first)
    assert not torch.equal(first, second)


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
        ({"seeds": [1]}, "1 seeds for 5 labels"),
        ({"seeds": [1, 2, 3, 4, -5]}, "seed -5"),
        ({"given": torch.zeros(5, 8, dtype=torch.int64)}, "given the class label alone"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_q": 0.5}, "no sampling setting 'top_q'"),
    ],
)
def test_what_cannot_be_generated_is_refused(make, wrong, message):
    with pytest.raises(InputError, match=message):
        generate_tokens(make(KIND), **{"labels": LABELS, **wrong})


class Synchronisations(TorchDispatchMode):
    """Collects operations that would make the host wait for a GPU: values read, or shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        boolean_index = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
            for i in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else [])
        )
        if boolean_index or any(word in name for word in self.NAMES):
            self.found.append(name)
        self.operations += 1
        return function(*args, **(kwargs or {}))


def test_the_counter_of_synchronisations_counts():
    x = torch.arange(3.0)
    with Synchronisations() as counter:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        bool(x[0] > 0)
    assert len(counter.found) == 4


LOOPS = pytest.mark.parametrize("sampling", [ALL_FILTERS, Sampling(temperature=0.0), Sampling(cfg_scale=2.0)], ids=str)
#: Those that a GPU records as one graph; members of clusters are sorted on the host.
RECORDED = pytest.mark.parametrize("task", ["all tokens", "coarse", "fine, full"])


@LOOPS
@RECORDED
def test_the_loop_never_waits_for_the_device(make, coarse, task, sampling):
    packed = make(KIND, task).pack(Compute("float32"))
    given = None if packed.given is None else coarse[:3]
    with torch.inference_mode(), Synchronisations() as counter:
        for _ in packed._loop(sampling, LABELS[:3], torch.rand(3, 8, dtype=torch.float64), given):
            pass
    assert counter.found == []
    assert counter.operations > 8 * 2 * 10  # it saw the steps of the loop


@LOOPS
@RECORDED
def test_the_gpu_path_on_tensors_without_values(monkeypatch, make, coarse, task, sampling):
    """Plain products and fused attention, as on a GPU; reading any value raises."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    stage = make(KIND, task, kv_heads=1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        packed = stage.pack(Compute("float32"))
        assert isinstance(packed.transformer.head, Linear)
        given = None if packed.given is None else mode.from_tensor(coarse[:3])
        labels = torch.zeros(3, dtype=torch.int64)
        *_, tokens = packed._loop(sampling, labels, torch.rand(3, 8, dtype=torch.float64), given)
    assert tokens.shape == (3, 8)


@pytest.mark.gpu
@LOOPS
def test_a_recorded_loop_draws_what_the_steps_draw(make, sampling):
    packed = make(KIND).to("cuda").pack(Compute("float32"))
    for labels, seeds in ((LABELS, SEEDS), (LABELS.flip(0), SEEDS[::-1])):
        *_, expected = packed.stepwise(labels, Random(seeds), sampling)
        assert torch.equal(packed.generate(labels, Random(seeds), sampling), expected)
