import dataclasses
import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ctf.bench import Machine, TrainingBenchmark, measure_training, training_report
from ctf.bench.config import Preset
from ctf.bench.gpus import GPUS, gpu_of_device
from ctf.bench.presets import CLASS_NAMES, random_stage
from ctf.bench.report import command_line
from ctf.bench.training import WARM_UP, step_times
from ctf.codebook import cluster_codebook
from ctf.errors import InputError
from ctf.layout import Layout
from ctf.stages import new_stage
from ctf.stages.cost import forward_operations
from ctf.tokens import write_token_set
from ctf.training.config import LoopConfig, OptimizerConfig
from ctf.training.loop import Trainer
from ctf.training.token_objective import TokenObjective

PRESETS = Preset.__args__
SMALL = {
    "sizes": ("nano",),
    "layout": Layout.square(2),
    "codebook_size": 24,
    "num_clusters": 6,
    "device": "cpu",
    "out": None,
    "stages": PRESETS,
    "batch_size": 2,
    "steps": 1,
    "compile": False,
    "precision": "float32",
}
MAP = cluster_codebook(torch.arange(24.0)[:, None], 6, "random")
MACHINE = Machine("", 1, memory_bandwidth=1.0, matrix_rate=1e9, products="", software="", date="")

pytestmark = pytest.mark.usefixtures("quick_machine")


@pytest.fixture
def measure(tmp_path):
    """A stage of the paper at size nano, and the speed of its training steps."""
    tokens = write_token_set(tmp_path, torch.randint(24, (2, 4)), torch.arange(2), 24, (2, 2), CLASS_NAMES)
    coarse_map = cluster_codebook(torch.randn(24, 2), 6, "balanced")
    loop = LoopConfig(batch_size=2, precision="float32", device="cpu")

    def measure(preset, steps=1, slower_by=0.0, machine=MACHINE):
        stage = random_stage(preset, "nano", coarse_map, (2, 2))
        stage.register_forward_pre_hook(lambda *_: time.sleep(slower_by))
        return stage, measure_training(stage, tokens, loop, steps, machine)

    return measure


@pytest.mark.parametrize("preset", PRESETS)
def test_speed_is_tokens_over_the_seconds_of_a_step(measure, preset):
    start = time.monotonic()
    _, speed = measure(preset, steps=3, slower_by=0.05)
    assert 0.05 <= speed.step_seconds <= time.monotonic() - start
    assert speed.tokens_per_second * speed.step_seconds == pytest.approx(2 * 4)
    assert speed.utilisation == pytest.approx(speed.operations_per_token * speed.tokens_per_second / 1e9)


def test_a_timed_step_is_a_step_of_the_training_loop(tmp_path):
    """It averages the weights, and calls the objective before and after the optimizer's step."""

    class Slow(TokenObjective):
        def before_step(self, ema, step):
            averages.append([p.clone() for p in ema.parameters()])

        def after_step(self, ema, step):
            time.sleep(0.05)
            return {}

    averages = []
    tokens = write_token_set(tmp_path, torch.randint(24, (2, 4)), torch.arange(2), 24, (2, 2), CLASS_NAMES)
    objective = Slow(random_stage("baseline", "nano", MAP, (2, 2)), tokens)
    loop = LoopConfig(batch_size=2, precision="float32", device="cpu", ema=0.9)
    times = step_times(Trainer(objective, tmp_path / "run", OptimizerConfig(), loop), WARM_UP + 1)
    assert times[-1] >= 0.05
    assert len(averages) == WARM_UP + 1
    assert not torch.equal(averages[0][0], averages[-1][0])


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("A100-SXM4-80GB", "A100"),  # as older drivers call it
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GH200 480GB", None),
        ("AMD EPYC 9654 96-Core Processor", None),
        ("", None),
    ],
)
def test_a_device_is_the_gpu_of_a_datasheet_or_none(name, gpu):
    assert gpu_of_device(name) == (None if gpu is None else GPUS[gpu])


@pytest.mark.parametrize(
    ("name", "products", "rate"),
    [("NVIDIA H200", "bfloat16", 989e12), ("NVIDIA H200", "float32", None), ("NVIDIA H200 NVL", "bfloat16", None)],
)
def test_the_datasheets_rate_is_that_of_a_known_gpu_in_bfloat16(measure, name, products, rate):
    _, speed = measure("baseline", machine=dataclasses.replace(MACHINE, name=name, products=products))
    sustained = speed.operations_per_token * speed.tokens_per_second
    assert speed.datasheet_utilisation == (None if rate is None else pytest.approx(sustained / rate))


def test_operations_equal_palms(measure):
    """6 per parameter that multiplies, and 12 · layers · dim · N."""
    stage, speed = measure("baseline")
    multiply = sum(p.numel() for name, p in stage.named_parameters() if p.ndim == 2 and "embedding" not in name)
    assert speed.operations_per_token == 6 * multiply + 12 * 4 * 128 * 4


@pytest.mark.parametrize("preset", ["baseline", "fine-full"])
def test_forward_and_backward_products_are_those_that_pytorch_counts(measure, preset):
    """Embeddings are no products but all other gradients are. Attention computes its weights again, uncounted."""
    stage, speed = measure(preset)
    with FlopCounterMode(display=False) as counter:
        stage(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)).sum().backward()
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    positions = 4 + (preset == "fine-full")
    assert 4 * speed.operations_per_token == products + 12 * 4 * 128 * positions**2


def test_stages_differ_by_the_outputs_of_the_head(measure):
    """24 tokens in 6 clusters of 4."""
    operations = {preset: measure(preset)[1].operations_per_token for preset in PRESETS}
    assert operations["baseline"] - operations["coarse"] == 6 * 128 * (24 - 6)
    assert operations["fine-full"] - operations["fine-cluster"] == 6 * 128 * (24 - 4)


def test_the_page_names_command_machine_and_method(tmp_path):
    config = TrainingBenchmark(**SMALL | {"out": str(tmp_path / "metrics.json")})
    lines = list(training_report(config))
    page = json.loads((tmp_path / "metrics.json").read_text())
    assert lines[0] == f"    {command_line('bench training', SMALL | {'out': config.out})}"
    assert lines[2] == str(Machine(**page["machines"][0]))
    assert f"after {WARM_UP}" in lines[4]
    kinds = ["autoregressive", "autoregressive", "masked", "masked"]
    rows = list(zip(PRESETS, kinds, strict=True))
    assert [line.split(" | ")[0] for line in lines[-4:]] == [f"| nano, {preset}, {kind}" for preset, kind in rows]
    assert [(row["size"], row["stage"], row["kind"]) for row in page["rows"]] == [("nano", *row) for row in rows]
    assert all(line.endswith("% | – |") for line in lines[-4:])  # of a CPU there is no datasheet


@pytest.mark.parametrize("kind", ["any_order", "masked"])
def test_stages_of_another_kind(tmp_path, kind):
    config = TrainingBenchmark(**SMALL | {"out": str(tmp_path / "metrics.json"), "kind": kind})
    lines = list(training_report(config))
    assert [line.split(" | ")[0] for line in lines[-4:]] == [f"| nano, {preset}, {kind}" for preset in PRESETS]
    for row in json.loads((tmp_path / "metrics.json").read_text())["rows"]:
        preset, _, support = row["stage"].partition("-")
        level = {"baseline": {}, "coarse": {"predicts": MAP}, "fine": {"given": MAP, "support": support}}[preset]
        task = {"name": "a", "layout": Layout.square(2), "num_classes": 1000, "codebook_size": 24}
        stage = new_stage(kind, "nano", **task, **level)
        assert row["operations_per_token"] == 3 * forward_operations(stage) / 4
        assert row["parameters"] == stage.num_parameters()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"num_clusters": 24}, "24 clusters"),
        ({"kind": "gan"}, "kind 'gan' of stage does not exist"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        list(training_report(TrainingBenchmark(**SMALL | change)))
