import copy
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_runs import (
    COARSE_MAP,
    interrupted,
    logged,
    make_image_set,
    make_loop,
    make_token_objective,
    make_tokenizer_objective,
    mean_over_masks,
    run,
    tokenizer_training,
    with_masks_by_number,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.files import load_tensors
from ctf.model_folder import open_stage
from ctf.models.config import MODEL_SIZES
from ctf.models.loss import ClusterLoss
from ctf.run_folder import checkpoint_path, latest_checkpoint, milestone_path
from ctf.stages import load_stage
from ctf.tokens.writer import write_token_set
from ctf.training.batches import TokenBatches
from ctf.training.config import OptimizerConfig
from ctf.training.loop import Trainer
from ctf.training.token_objective import TokenObjective


def assert_same_checkpoints(path, other):
    tensors, others = load_tensors(path)[0], load_tensors(other)[0]
    assert tensors.keys() == others.keys()
    assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []


@pytest.mark.parametrize(("name", "optimizer"), [("baseline", "adamw"), ("baseline", "muon"), ("fine", "adamw")])
def test_resuming_a_token_run_is_exact(name, optimizer, tokens, tmp_path):
    def objective():
        return make_token_objective(tokens, name, dropout=0.2, class_dropout=0.3)

    optimizer = OptimizerConfig(name=optimizer, learning_rate=1e-2)
    run(objective(), tmp_path / "whole", optimizer, ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        run(interrupted(objective(), at=2), tmp_path / "parts", optimizer, ema=0.9)
    assert latest_checkpoint(tmp_path / "parts") == checkpoint_path(tmp_path / "parts", 3)
    run(objective(), tmp_path / "parts", optimizer, ema=0.9, resume=True)
    assert_same_checkpoints(checkpoint_path(tmp_path / "whole", 6), checkpoint_path(tmp_path / "parts", 6))
    for key in ("step", "loss", "learning_rate"):
        assert logged(tmp_path / "whole", key) == logged(tmp_path / "parts", key)


def test_milestones_are_the_models_of_shorter_runs(tokens, tmp_path):
    constant = OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-3)
    run(make_token_objective(tokens), tmp_path / "long", constant, ema=0.5, milestones=(2, 4))
    run(make_token_objective(tokens), tmp_path / "short", constant, ema=0.5, steps=2)
    run(make_token_objective(tokens), tmp_path / "plain", constant, steps=2)
    kept = {path.name for path in (tmp_path / "long" / "milestones").iterdir()}
    assert kept == {f"step-0000000{step}{suffix}.safetensors" for step in (2, 4) for suffix in ("", "-without-ema")}
    for suffix, shorter in ("", "short"), ("-without-ema", "plain"):
        milestone = open_stage(tmp_path / "long" / "milestones" / f"step-00000002{suffix}.safetensors").state_dict()
        weights = open_stage(tmp_path / shorter).state_dict()
        assert [key for key in weights if not torch.equal(weights[key], milestone[key])] == []


def test_a_run_that_goes_on_from_a_checkpoint_has_its_milestone(monkeypatch, tokens, tmp_path):
    def killed(trainer, step):
        assert milestone_path(tmp_path, step).exists()
        raise SystemExit

    monkeypatch.setattr(Trainer, "_save", killed)
    with pytest.raises(SystemExit):
        run(make_token_objective(tokens), tmp_path, milestones=(2,), checkpoint_every=2)


def test_a_milestone_at_the_step_of_a_checkpoint_that_is_asked_for_later_is_kept(tokens, tmp_path):
    run(make_token_objective(tokens), tmp_path, steps=3)
    run(make_token_objective(tokens), tmp_path, steps=4, resume=True, milestones=(3,))
    assert milestone_path(tmp_path, 3).exists()


def test_other_views_of_the_same_tokens_or_other_clusters_are_other_data(tokens, tmp_path):
    plain, stage = tokens.gather(range(len(tokens))).numpy(), make_token_objective(tokens).module
    data = set()
    for name, views in {"one": [plain], "two": [plain, plain[:, ::-1]], "more": [plain] * 3}.items():
        stored = write_token_set(tmp_path / name, np.stack(views, 1), tokens.labels, tokens.codebook_size)
        data.add(TokenObjective(stage, stored).data)
    for clusters in (COARSE_MAP, CoarseMap(torch.arange(16) % 2, "test", 0, "none")):
        data.add(TokenObjective(stage, tokens, cluster_loss=ClusterLoss(clusters)).data)
    assert len(data | {TokenObjective(stage, tokens).data}) == 5  # "one" is the same as `tokens`


def test_other_images_of_the_same_names_are_other_data():
    sets = [make_image_set(count).subset(np.arange(20)[first:][:19]) for count, first in ((20, 0), (20, 0), (20, 1))]
    same, again, other = (make_tokenizer_objective(images, tokenizer_training()).data for images in sets)
    assert same == again != other


def test_a_milestone_beyond_the_end_is_refused(tokens, tmp_path):
    with pytest.raises(InputError, match=r"loop\.milestones: step 7 is never reached, the run has 6"):
        run(make_token_objective(tokens), tmp_path, milestones=(2, 7))


def test_a_warm_up_as_long_as_the_run_is_refused(tokens, tmp_path):
    with pytest.raises(InputError, match=r"optimizer\.warmup_steps is 6: it must be below the 6 steps of the run"):
        run(make_token_objective(tokens), tmp_path, OptimizerConfig(warmup_steps=6))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "accumulate"),
    [({}, 1), ({"family": "multi-scale", "scales": (1, 2, 4), "random_crop": 0.8}, 2)],
    ids=["one scale", "several scales, crops and accumulation"],
)
def test_resuming_a_tokenizer_run_is_exact(settings, accumulate, tmp_path):
    """Interrupted before the codebook and the discriminator start, and in the step that restarts codewords."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, clip=0.1)
    loop = {"ema": 0.9, "steps": 22, "batch_size": 4, "accumulate": accumulate, "resume": True}

    def train(folder, at=None):
        config = tokenizer_training(optimizer=optimizer, loop=make_loop(**loop), **settings)
        objective = make_tokenizer_objective(make_image_set(), config)
        run(objective if at is None else interrupted(objective, at), folder, optimizer, **loop)

    train(tmp_path / "whole")
    assert sum(logged(tmp_path / "whole", "restarts")) > 0
    for at in (1, 19):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", at)
    train(tmp_path / "parts")
    assert_same_checkpoints(checkpoint_path(tmp_path / "whole", 22), checkpoint_path(tmp_path / "parts", 22))


def test_steps_equal_adamw_written_out(tokens, tmp_path):
    optimizer = OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, weight_decay=0.3, clip=0.05)
    objective = make_token_objective(tokens, "coarse")
    hand = copy.deepcopy(objective.module)
    average = [p.detach().clone() for p in hand.parameters()]
    first, second = ([torch.zeros_like(p) for p in hand.parameters()] for _ in range(2))
    for step in range(2):
        rate = [1e-2, 1e-3][step]
        fine, labels = TokenBatches(tokens, 8, seed=5)[step]
        coarse = COARSE_MAP.to_coarse(fine)
        log_p = F.log_softmax(hand.transformer(coarse, labels), -1)
        loss = -log_p.gather(-1, coarse[..., None]).mean()
        gradients = torch.autograd.grad(loss, list(hand.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        assert norm > optimizer.clip
        with torch.no_grad():
            for p, g, m, v, a in zip(hand.parameters(), gradients, first, second, average, strict=True):
                g = g * optimizer.clip / norm
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.95).add_(0.05 * g * g)
                if p.ndim >= 2:
                    p.mul_(1 - rate * 0.3)
                p.sub_(rate * m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
                decay = min(0.8, (1 + step) / (10 + step))
                a.copy_(decay * a + (1 - decay) * p)
    run(objective, tmp_path, optimizer, steps=2, seed=5, ema=0.8)
    for p, q in zip(objective.module.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)
    saved = load_stage(tmp_path / "model.safetensors")
    for p, a in zip(saved.parameters(), average, strict=True):
        torch.testing.assert_close(p, a, rtol=1e-3, atol=2e-5)


def test_two_half_batches_are_one_batch(tokens, tmp_path):
    one, two = make_token_objective(tokens), make_token_objective(tokens)
    optimizer = OptimizerConfig(learning_rate=1e-3, clip=0.1)
    run(one, tmp_path / "1", optimizer, steps=3)
    run(two, tmp_path / "2", optimizer, steps=3, accumulate=2)
    for p, q in zip(one.module.parameters(), two.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=3e-5)
    assert logged(tmp_path / "1") == pytest.approx(logged(tmp_path / "2"), rel=1e-4)


def gradients_of_a_step(objective, out, **loop):
    """Gradients in a run of one step: of matrices, then of norms and biases."""
    found = []

    def keep(optimizer, *arguments):
        found.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    hook = register_optimizer_step_pre_hook(keep)
    run(objective, out, OptimizerConfig(clip=0), steps=1, **loop)
    hook.remove()
    return found


def test_masks_of_unequal_sizes_count_by_their_positions(tokens, tmp_path):
    """The gradient of accumulated pieces is that of the mean over the hidden positions of all of them."""
    objective = with_masks_by_number(make_token_objective(tokens, "fine", rounds="any"))
    stage = copy.deepcopy(objective.module)
    found = gradients_of_a_step(objective, tmp_path, accumulate=4)
    mean = mean_over_masks(stage, tokens, 4)
    mean.backward()
    parameters = sorted(stage.parameters(), key=lambda p: p.ndim < 2)
    for gradient, p in zip(found, parameters, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-5, atol=1e-6)
    assert logged(tmp_path)[0] == pytest.approx(mean.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["coarse", "fine"])
def test_blocks_are_compiled_once(monkeypatch, name, tokens, tmp_path):
    """24 blocks, 20 batches with other clusters each, and an evaluation with more images."""
    monkeypatch.setitem(MODEL_SIZES, "nano", (24, 2, 16))
    small = {"ffn_multiple": 8, "dropout": 0.1}
    run(make_token_objective(tokens, name, **small), tmp_path / "plain", steps=20)
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True, backend=counter))
    torch.compiler.reset()
    objective = make_token_objective(tokens, name, held_out=tokens, **small)
    run(objective, tmp_path / "compiled", steps=20, compile=True, ema=0.5)
    assert counter.frame_count == 2  # what is before attention, and what is after it
    losses = [logged(tmp_path / folder) for folder in ("plain", "compiled")]
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_nonfinite_weights_are_not_saved(tokens, tmp_path):
    class Damaged(type(make_token_objective(tokens))):
        def after_step(self, ema, step):
            if step == 3:
                self.module.transformer.head.weight.data[0, 0] = math.nan
            return {}

    objective = make_token_objective(tokens)
    objective.__class__ = Damaged
    with pytest.raises(InputError, match=r"model/transformer.head.weight is not finite at step 4; .*step-00000003"):
        run(objective, tmp_path, OptimizerConfig(clip=0), checkpoint_every=1, log_every=100)
    run(make_token_objective(tokens), tmp_path, resume=True)  # goes on from step 3
    assert logged(tmp_path, "step")[-1] == 6


def test_divergence_before_the_first_checkpoint_is_reported(tokens, tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint yet"):
        run(make_token_objective(tokens), tmp_path, OptimizerConfig(learning_rate=1e38))


def test_a_run_that_was_killed_after_its_last_evaluation_is_saved_and_not_evaluated_again(tokens, tmp_path):
    metrics = run(make_token_objective(tokens, held_out=tokens), tmp_path, steps=2)
    log = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "model.safetensors").unlink()
    again = run(make_token_objective(tokens, held_out=tokens), tmp_path, steps=2, resume=True)
    assert again == pytest.approx(metrics, rel=1e-5)
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "log.jsonl").read_text() == log


@pytest.mark.parametrize("step", [2, 4, 6])
def test_an_evaluation_that_a_kill_interrupts_is_made_up_for(monkeypatch, step, tokens, tmp_path):
    def train_to_the_end(folder):
        objective = make_token_objective(tokens, held_out=tokens)
        run(objective, tmp_path / folder, resume=True, evaluate_every=2, checkpoint_every=2)

    report = Trainer._report

    def killed(trainer, now, log):
        if now == step:
            raise SystemExit
        return report(trainer, now, log)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_report", killed)
        with pytest.raises(SystemExit):
            train_to_the_end("killed")
    for folder in ("killed", "whole"):
        train_to_the_end(folder)
    bits = logged(tmp_path / "whole", "held_out/bits_per_token")
    assert len(bits) == 3
    assert logged(tmp_path / "killed", "held_out/bits_per_token") == bits


def test_two_trainings_in_one_folder_are_refused(tokens, tmp_path):
    class Second(TokenObjective):
        def after_step(self, ema, step):
            with pytest.raises(InputError, match="another process writes to"):
                run(make_token_objective(tokens), tmp_path / "run", resume=True)
            assert unfinished.exists()
            return super().after_step(ema, step)

    objective, unfinished = make_token_objective(tokens), tmp_path / "run" / "checkpoints" / ".step-9.tmp"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    objective.before_step = lambda ema, step: unfinished.touch()  # as the first one's thread does
    objective.__class__ = Second
    run(objective, tmp_path / "run")
    run(make_token_objective(tokens), tmp_path / "run", resume=True, steps=7)
    assert not unfinished.exists()


def test_a_run_folder_holds_log_sheets_and_events(tmp_path):
    images = make_image_set()
    run(make_tokenizer_objective(images, tokenizer_training()), tmp_path, steps=4, evaluate_every=2, tensorboard=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    assert {"loss", "mse", "gradient_norm", "learning_rate", "epoch", "steps_per_second"} <= training[0].keys()
    assert training[-1]["epoch"] == pytest.approx(4 * 8 / len(images))
    assert any("train/usage" in line for line in lines)
    sheets = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in sheets] == ["step-00000002.png", "step-00000004.png"]
    assert all(Image.open(path).size[0] > 12 * 32 for path in sheets)
    assert sum(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()) > 0


def test_half_precision_trains_nearly_as_float32_does(tokens, tmp_path):
    names = ("float32", "bfloat16")
    for name in names:
        run(make_token_objective(tokens), tmp_path / name, precision=name, steps=3)
    losses = [logged(tmp_path / name) for name in names]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
