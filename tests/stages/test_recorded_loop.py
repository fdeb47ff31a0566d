"""Decoding loops that a GPU records as one graph: nothing waits for the device; fake_gpu/ sees copies to it."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import pytest
import torch
from simulated_graphs import SimulatedGraph, simulate
from stage_cases import LABELS
from watched import Watched

from ctf.models import Compute
from ctf.models.attention import attend_all
from ctf.models.cluster_head import multiply_tiles
from ctf.plugins import load_object
from ctf.sampling import Random, Sampling
from ctf.sampling.cuda_graph import RecordedLoops
from ctf.stages.drawing import draw_steps

#: Groups of 1, 1, 2, 2, 2: of another size after the first two.
GROUPS = {"steps": 5, "order": "random", "cfg_schedule": "steps"}
WAYS = pytest.mark.parametrize(
    ("kind", "way"), [("autoregressive", {}), ("any_order", GROUPS)], ids=["autoregressive", "any_order"]
)
LOOPS = pytest.mark.parametrize(
    "sampling",
    [Sampling(2.0, temperature=0.8, top_k=6, top_p=0.7), Sampling(temperature=0.0), Sampling(2.0)],
    ids=["filters", "greedy", "guided"],
)
RECORDED = pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full"])


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Attention by a fused kernel, the head that never reads how many positions each cluster has, PyTorch's sort."""
    monkeypatch.setattr("ctf.models.cache.attend_by_products", attend_all)
    monkeypatch.setattr("ctf.models.cluster_head.multiply_clusters", multiply_tiles)
    module = import_module("ctf.sampling.draw")  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "_ascending", lambda x: x.sort().values)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_wait_for_the_device_is_seen(mode):
    x = torch.arange(3.0)
    with mode(), Watched() as watched:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        bool(x[0] > 0)
        x.to("meta")
        x.long().bincount()
    assert len(watched.found) == 6


@LOOPS
@RECORDED
@WAYS
def test_the_loop_never_waits_for_the_device(make, coarse, kind, way, task, sampling):
    packed, uniform = make(kind, task).pack(Compute("float32")), torch.rand(3, 8, dtype=torch.float64)
    plan, given = packed.plan(dataclasses.replace(sampling, **way)), None if packed.given is None else coarse[:3]
    loop = draw_steps(packed, LABELS[:3], lambda stream: uniform, plan, given)
    with torch.inference_mode(), Watched() as watched:
        for _ in loop:
            pass
    assert watched.found == []
    assert watched.operations > 5 * 2 * 10  # it saw the steps of the loop


# --- recorded and replayed ---

TASKS = pytest.mark.parametrize("task", ["all tokens", "fine"])


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where loops are recorded: by a GPU, or by a CPU that simulates its graphs."""
    if request.param == "cuda":
        return "cuda"
    simulate(monkeypatch)
    return "cpu"


def recording(stage):
    """The stage packed, with loops that are recorded on a CPU too."""
    packed = stage.pack(Compute("float32"))
    packed.recorded = packed.recorded or RecordedLoops()
    return packed


def drawn(packed, sampling, coarse, count, seed=0):
    """Recorded, and by steps: (count, 8) both."""
    labels, seeds = LABELS[:count], [seed + s for s in (3, 0, 2**40, 7, 3)[:count]]
    given = None if packed.given is None else coarse[:count].to(packed.device)
    *_, expected = packed.draw(labels, Random(seeds), sampling, given)
    return packed.generate(labels, Random(seeds), sampling, given), expected


@LOOPS
@WAYS
@TASKS
def test_a_recorded_loop_draws_what_the_steps_draw(device, make, coarse, kind, way, task, sampling):
    """Batches of all sizes, smaller ones in recordings of their own."""
    packed = recording(make(kind, task).to(device))
    for seed, count in enumerate((5, 2, 5, 1, 3, 4)):
        assert torch.equal(*drawn(packed, dataclasses.replace(sampling, **way), coarse, count, seed))


@WAYS
def test_recordings_with_other_settings_and_batches(device, make, coarse, kind, way):
    packed = recording(make(kind).to(device))
    for scale, count in ((2.0, 2), (3.0, 2), (3.0, 5), (1.0, 5), (2.0, 1)):
        assert torch.equal(*drawn(packed, Sampling(scale, **way), coarse, count))


def test_two_recorded_models_alive_take_turns(device, make, coarse):
    models = [make("autoregressive", task, seed=seed).to(device) for seed, task in enumerate(("all tokens", "fine"))]
    packed = [recording(model) for model in models]
    for seed in range(3):
        for model in packed:
            assert torch.equal(*drawn(model, Sampling(2.0), coarse, 5, seed))


def test_a_loop_is_recorded_once(make, coarse, monkeypatch):
    simulate(monkeypatch)
    monkeypatch.setattr(SimulatedGraph, "captures", 0)
    packed = recording(make("autoregressive"))
    for seed in range(3):
        assert torch.equal(*drawn(packed, Sampling(2.0), coarse, 5, seed))
    assert SimulatedGraph.captures == 1


def test_a_filter_of_the_users_runs_in_every_step(make, monkeypatch, tmp_path):
    """A recording would run it once, when it is made."""
    (tmp_path / "own.py").write_text("def seen(logits):\n    seen.calls += 1\n    return logits\n\nseen.calls = 0\n")
    monkeypatch.chdir(tmp_path)
    simulate(monkeypatch)
    packed, filtered = recording(make("autoregressive")), Sampling(filter="own.py:seen")
    for _ in range(2):
        packed.generate(LABELS[:2], Random([0, 1]), filtered)
    assert load_object("own.py:seen").calls == 2 * packed.num_tokens


# --- on a GPU ---


@pytest.mark.gpu
def test_threads_and_streams_share_a_recording(make, coarse):
    """Each thread on a stream of its own, with seeds of its own."""
    packed = make("autoregressive").to("cuda").pack(Compute("float32"))
    expected = [drawn(packed, Sampling(2.0), coarse, 5, seed)[1] for seed in range(8)]

    def work(seeds):
        with torch.cuda.stream(torch.cuda.Stream()):
            randoms = [Random([seed + s for s in (3, 0, 2**40, 7, 3)]) for seed in seeds]
            found = [packed.generate(LABELS, random, Sampling(2.0)) for random in randoms]
            torch.cuda.current_stream().synchronize()
            return found

    with ThreadPoolExecutor(2) as pool:
        even, odd = pool.map(work, (range(0, 8, 2), range(1, 8, 2)))
    assert all(map(torch.equal, even + odd, expected[::2] + expected[1::2]))


@pytest.mark.gpu
def test_a_second_device(make):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    first, second = (make("autoregressive").to(f"cuda:{i}").pack(Compute("float32")) for i in range(2))
    random = Random([1, 2, 3, 4, 5])
    tokens = [packed.generate(LABELS, random, Sampling(2.0)) for packed in (first, second, first, second)]
    assert all(torch.equal(t.cpu(), tokens[0].cpu()) for t in tokens)
    assert tokens[1].device == torch.device("cuda:1")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "task"),
    [("autoregressive", "coarse"), ("any_order", "all tokens"), ("masked", "fine"), ("masked, any", "coarse")],
)
def test_a_gpu_draws_what_a_cpu_draws(make, coarse, kind, task):
    """Greedily, in float32: rounding decides between equal logits only."""
    stage, sampling = make(kind, task), Sampling(2.0, temperature=0.0)
    given = None if stage.given is None else coarse
    expected = stage.pack(Compute("float32")).generate(LABELS, Random(range(5)), sampling, given)
    packed = stage.to("cuda").pack(Compute("float32"))
    assert torch.equal(packed.generate(LABELS, Random(range(5)), sampling, given).cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "task"), [("autoregressive", "coarse"), ("masked", "fine, full")])
def test_bfloat16_on_a_gpu_is_close(make, tokens, kind, task):
    """The Kullback–Leibler divergence of its distributions from those of float32 on a CPU, in nats per token."""
    stage = make(kind, task)
    with torch.no_grad():
        exact = stage.logits(tokens, LABELS).log_softmax(-1)
        packed = stage.to("cuda").pack(Compute("bfloat16"))
        found = packed.logits(tokens.cuda(), LABELS.cuda()).float().log_softmax(-1).cpu()
    assert 0 <= (exact.exp() * (exact - found)).sum(-1).mean() < 1e-3
