"""A training step gives a GPU its work and waits for nothing."""

import pytest
import torch
from tiny_runs import (
    COARSE_MAP,
    logged,
    make_image_set,
    make_token_objective,
    make_tokenizer_objective,
    run,
    tokenizer_training,
)
from watched import Watched

from ctf.models.cluster_head import multiply_tiles
from ctf.models.loss import ClusterLoss
from ctf.stages import new_stage
from ctf.training.config import OptimizerConfig
from ctf.training.token_objective import TokenObjective


def watched(objective, first):
    """Collects what would wait within steps of the loop; `first` is the number of the first step to watch."""

    class Seen(type(objective)):
        def before_step(self, ema, step):
            super().before_step(ema, step)
            if step >= first:
                self.mode = Watched()
                self.mode.__enter__()

        def after_step(self, ema, step):
            if step >= first:
                self.mode.__exit__(None, None, None)
                self.found += self.mode.found
                self.operations += self.mode.operations
            return super().after_step(ema, step)

    objective.__class__, objective.found, objective.operations = Seen, [], 0
    return objective


def objective_of(tokens, name):
    if name == "fine":
        return make_token_objective(tokens, "fine", dropout=0.1, class_dropout=0.1)
    if name == "baseline, clusters":
        objective = make_token_objective(tokens)
        objective.cluster_loss = ClusterLoss(COARSE_MAP)
        return objective
    sizes = {"layout": tokens.layout, "num_classes": tokens.num_classes, "codebook_size": tokens.codebook_size}
    kind, _, rounds = name.partition(", ")
    rounds = {"rounds": rounds} if rounds else {}
    return TokenObjective(new_stage(kind, "nano", name="stage", **sizes, **rounds), tokens)


@pytest.mark.parametrize("name", ["autoregressive", "fine", "baseline, clusters", "masked, any", "any_order"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stage_steps_never_wait_for_the_device(monkeypatch, tokens, tmp_path, name, optimizer):
    """Uses the head of a GPU, after the steps that make masks of groups and the optimizer's state."""
    monkeypatch.setattr("ctf.models.cluster_head.multiply_clusters", multiply_tiles)
    monkeypatch.setattr("ctf.stages.any_order.GROUP_SHARES", (1, 1 / 2))
    objective = watched(objective_of(tokens, name), 4)
    run(objective, tmp_path, OptimizerConfig(name=optimizer), steps=8, accumulate=2, ema=0.9, log_every=8)
    assert objective.found == []
    assert objective.operations > 4 * 2 * 100


def test_tokenizer_steps_never_wait_for_the_device(tmp_path):
    """Restarts, every 20 steps, do wait."""
    settings = tokenizer_training(warmup_without_codebook=0, discriminator_start=1)
    objective = watched(make_tokenizer_objective(make_image_set(), settings), 2)
    run(objective, tmp_path, steps=5, batch_size=4, ema=0.9, log_every=8)
    assert objective.found == []


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["autoregressive", "fine", "masked, any", "any_order"])
def test_a_gpu_trains_as_a_cpu_does(tokens, tmp_path, name):
    """Float32, no dropout. If a kind samples positions on the device, losses are only near."""
    losses = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        objective = make_token_objective(tokens, "fine") if name == "fine" else objective_of(tokens, name)
        for module in objective.module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run(objective, tmp_path / device, steps=6, device=device)
        losses[device] = logged(tmp_path / device)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3 if name == "fine" else 0.05)


@pytest.mark.gpu
def test_a_gpu_run_resumes(tokens, tmp_path):
    """Kernels add in another order from time to time, so nearly."""
    constant = OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-3)
    run(make_token_objective(tokens), tmp_path / "whole", constant, device="cuda", ema=0.5)
    run(make_token_objective(tokens), tmp_path / "parts", constant, device="cuda", ema=0.5, steps=3)
    run(make_token_objective(tokens), tmp_path / "parts", constant, device="cuda", ema=0.5, resume=True)
    losses = [logged(tmp_path / folder) for folder in ("whole", "parts")]
    assert len(losses[1]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.gpu
def test_a_gpu_evaluates_in_the_precision_of_the_run(tokens, tmp_path):
    objective = make_token_objective(tokens, held_out=tokens)
    seen = []
    scores = objective.module.scores
    objective.module.scores = lambda *args: seen.append(torch.get_autocast_dtype("cuda")) or scores(*args)
    run(objective, tmp_path, device="cuda", precision="bfloat16", steps=2)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.gpu
def test_a_gpu_trains_compiled(tokens, tmp_path):
    losses = {}
    for compiled in (False, True):
        run(make_token_objective(tokens, "fine"), tmp_path / str(compiled), device="cuda", compile=compiled)
        losses[compiled] = logged(tmp_path / str(compiled))
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
