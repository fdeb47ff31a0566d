import itertools
import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ctf.codebook import cluster_codebook
from ctf.errors import InputError
from ctf.evaluation import Machine, TrainingBenchmark, measure_training
from ctf.evaluation.benchmark_report import command_line
from ctf.evaluation.training_throughput import WARM_UP, operations_per_token
from ctf.models import Transformer, TransformerConfig
from ctf.tokens import write_token_set
from ctf.training.config import LoopConfig

STAGES = ("baseline", "coarse", "fine-cluster", "fine-full")
SMALL = {
    "sizes": ("nano",),
    "stages": STAGES,
    "batch_size": 2,
    "steps": 1,
    "grid": (2, 2),
    "vocabulary": 24,
    "clusters": 6,
    "precision": "float32",
    "device": "cpu",
}
SIZES = {"layers": 2, "heads": 2, "dim": 16, "ffn_multiple": 8}
MACHINE = Machine("", 1, memory_bandwidth=1.0, matrix_rate=1e9, products="", software="", date="")


def test_operations_are_palms():
    """6 per parameter that multiplies, and 12 · layers · dim · N."""
    config = TransformerConfig(24, 24, (2, 3), num_classes=4, **SIZES)
    model = Transformer(config)
    multiply = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name)
    assert operations_per_token(config, 24) == 6 * multiply + 12 * 2 * 16 * 6


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_forward_and_backward_products_are_those_that_pytorch_counts(attention):
    """But for the first block's input, all gradients are products. Attention computes its weights again, uncounted."""
    config = TransformerConfig(24, 24, (2, 3), num_classes=4, attention=attention, **SIZES)
    with FlopCounterMode(display=False) as counter:
        Transformer(config)(torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)).sum().backward()
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    positions = 6 + (attention == "full")
    assert 6 * operations_per_token(config, 24) == products + 12 * 2 * 16 * positions**2


@pytest.mark.parametrize("stage", STAGES)
def test_speed_is_tokens_over_seconds(tmp_path, monkeypatch, stage):
    tokens = write_token_set(tmp_path, torch.randint(24, (2, 4)), torch.arange(2), 24)
    coarse_map = cluster_codebook(torch.randn(24, 2), 6, "random")
    monkeypatch.setattr(time, "perf_counter", itertools.count(step=0.5).__next__)  # half a second a step
    loop = LoopConfig(batch_size=2, precision="float32", device="cpu")
    speed = measure_training(stage, "nano", tokens, coarse_map, loop, 3, MACHINE)
    assert speed.step_seconds == 0.5
    assert speed.tokens_per_second == 2 * 4 / 0.5
    assert speed.utilisation == pytest.approx(16 * speed.operations_per_token / 1e9)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The lines and the figures of a small benchmark."""
    path = tmp_path_factory.mktemp("bench") / "figures.json"
    lines = list(TrainingBenchmark(**SMALL, json=str(path)).report())
    return lines, json.loads(path.read_text())


def test_stages_differ_by_the_outputs_of_the_head(page):
    """24 tokens in 6 clusters of 4."""
    operations = {row["stage"]: row["operations_per_token"] for row in page[1]["rows"]}
    assert tuple(operations) == STAGES
    assert operations["baseline"] - operations["coarse"] == 6 * 128 * (24 - 6)
    assert operations["fine-full"] - operations["fine-cluster"] == 6 * 128 * (24 - 4)


def test_the_page_names_command_machine_and_method(page):
    lines, figures = page
    assert lines[0] == f"    {command_line('bench training', SMALL | {'json': figures['settings']['json']})}"
    assert lines[2] == str(Machine(**figures["machine"]))
    assert f"after {WARM_UP}" in lines[4]
    assert [line.split(" | ")[0] for line in lines[-4:]] == [f"| nano, {stage}" for stage in STAGES]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ("nano", "huge")}, "'huge' does not exist"),
        ({"steps": 0}, "steps 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"device": "abacus"}, "'abacus' does not exist"),
        ({"clusters": 24}, "24 clusters"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        list(TrainingBenchmark(**SMALL | change).report())
