import copy
import dataclasses
import math
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path

import jsonargparse
import pytest
import torch
from tiny_runs import interrupted, logged, make_image_set, make_loop, make_tokenizer_objective, run, tokenizer_training

from ctf.errors import InputError
from ctf.images import open_images
from ctf.tokenizer import LPIPS, TOKENIZER_PRESETS, MultiScaleTokenizer, VQTokenizer
from ctf.training.batches import ImageBatches
from ctf.training.config import OptimizerConfig, TokenizerTraining
from ctf.training.loop import Trainer
from ctf.training.tokenizer_objective import TokenizerObjective

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("family", "settings", "tokens"),
    [(VQTokenizer, {}, 16), (MultiScaleTokenizer, {"family": "multi-scale", "scales": (1, 2, 4)}, 21)],
)
def test_the_loss_goes_down_and_the_model_is_saved(tmp_path, family, settings, tokens):
    objective = make_tokenizer_objective(make_image_set(), tokenizer_training(discriminator_weight=0.0, **settings))
    metrics = run(objective, tmp_path, OptimizerConfig(learning_rate=2e-3), steps=30)
    mse = logged(tmp_path, "mse")
    assert mse[-1] < 0.5 * mse[0]
    for scale in range(len(objective.layout) if settings else 0):
        assert 0 < (usage := metrics[f"train/usage_scale_{scale}"]) <= metrics["train/usage"]
        assert metrics[f"train/perplexity_scale_{scale}"] <= 32 * usage
    saved = family.load(tmp_path / "model.safetensors")
    images = torch.rand(1, 3, 32, 32)
    assert saved.encode(images).shape == (1, tokens)
    assert torch.equal(saved.encode(images), objective.module.eval().encode(images))


def test_the_codebook_starts_once_on_features_in_model_and_average():
    objective = make_tokenizer_objective(make_image_set(), tokenizer_training(warmup_without_codebook=1))
    average = make_tokenizer_objective(objective.images, objective.config).module
    start = objective.module.quantizer.weight.clone()
    objective.before_step(average, 0)
    assert torch.equal(objective.module.quantizer.weight, start)
    objective.before_step(average, 1)
    assert not torch.equal(objective.module.quantizer.weight, start)
    assert torch.equal(average.quantizer.weight, objective.module.quantizer.weight)


def test_without_kmeans_the_codebook_keeps_its_random_start():
    config = tokenizer_training(warmup_without_codebook=0, kmeans_start=False)
    objective = make_tokenizer_objective(make_image_set(), config)
    start = objective.module.quantizer.weight.clone()
    objective.before_step(None, 0)
    assert torch.equal(objective.module.quantizer.weight, start)
    torch.testing.assert_close(start.norm(dim=1), torch.ones(len(start)))


def test_a_warm_up_is_shorter_than_a_run_that_goes_on_too(tmp_path):
    """Else a codebook that was never trained would be saved."""

    def warming_up(steps):
        return TokenizerObjective(tokenizer_training(warmup_without_codebook=3), steps, make_image_set(), None)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted(warming_up(5), 1), tmp_path, steps=5)
    with pytest.raises(InputError, match="warmup_without_codebook is 3: it must be below the 3 steps of the run"):
        run(warming_up(3), tmp_path, steps=3, resume=True)
    run(warming_up(4), tmp_path, steps=4, resume=True)


def test_lpips_is_on_the_device_before_an_evaluation_that_a_kill_put_off(tmp_path, monkeypatch):
    class Stays(torch.nn.Module):
        moved = False

        def to(self, device):
            self.moved = True
            return self

        def forward(self, a, b):
            assert self.moved
            return torch.zeros(len(a))

    def trained():
        images = make_image_set()
        objective = TokenizerObjective(tokenizer_training(), 4, images, images)
        objective.perceptual = Stays()
        return run(objective, tmp_path, steps=4, resume=True, checkpoint_every=2, evaluate_every=2)

    with monkeypatch.context() as patched, suppress(SystemExit):
        patched.setattr(Trainer, "_report", lambda trainer, step, log: sys.exit())
        trained()
    assert trained()["held_out/lpips"] == 0


def test_codewords_age_in_steps_whatever_the_accumulation(tmp_path):
    restarts = []
    for accumulate in (1, 4):
        loop = {"accumulate": accumulate, "steps": 20, "batch_size": 4}
        config = tokenizer_training(discriminator_weight=0.0, restart_after=1, loop=make_loop(**loop))
        objective = make_tokenizer_objective(make_image_set(), config)
        run(objective, tmp_path / str(accumulate), OptimizerConfig(learning_rate=0.0, final_learning_rate=0.0), **loop)
        restarts.append(sum(logged(tmp_path / str(accumulate), "restarts")))
    assert restarts[0] == restarts[1] > 0


def test_invalid_families_are_refused():
    with pytest.raises(InputError, match="no tokenizer of the family 'var' can be trained: choose one of vq, multi-s"):
        make_tokenizer_objective(make_image_set(), tokenizer_training(family="var"))
    with pytest.raises(InputError, match="a tokenizer of the family vq has no scales: leave it out"):
        make_tokenizer_objective(make_image_set(), tokenizer_training(scales=(1, 2, 4)))
    with pytest.raises(
        InputError, match=r"images of 32 × 32 pixels: the scales \(1, 2\) of this tokenizer take 16 × 16"
    ):
        make_tokenizer_objective(make_image_set(), tokenizer_training(family="multi-scale", scales=(1, 2)))


def test_training_sees_random_crops():
    objective = make_tokenizer_objective(make_image_set(), tokenizer_training(random_crop=0.8))
    (seen,) = next(objective.batches(4, 7, 0, 1, 3))
    assert torch.equal(seen, ImageBatches(objective.images, 4, seed=7, crop=0.8)[3])


# ------------------------------------------------------------------------------------------- the discriminator


OPTIMIZER = OptimizerConfig(learning_rate=3e-3, final_learning_rate=1e-3, warmup_steps=2, weight_decay=0.1, clip=7.0)
PIECES = 2


def adversarial_objective(**settings):
    loop = make_loop(batch_size=8, accumulate=PIECES)
    settings = {"warmup_without_codebook": 0, "discriminator_start": 0, "optimizer": OPTIMIZER, **settings}
    return make_tokenizer_objective(make_image_set(), tokenizer_training(loop=loop, **settings))


def pieces_of(objective, steps):
    """The pieces of the batches of the first steps."""
    return [batch.chunk(PIECES) for batch in islice(ImageBatches(objective.images, 8, 0).stream(0), steps)]


def rate_by_hand(step, steps):
    """Two steps of warm-up, then half a cosine."""
    if step < 2:
        return 3e-3 * (step + 1) / 2
    return 1e-3 + 2e-3 * (1 + math.cos(math.pi * (step - 2) / (steps - 3))) / 2


def test_the_discriminators_step_against_one_by_hand():
    """AdamW with decay of matrices, the gradient of the mean over all pieces clipped, the rate of the schedule."""
    objective = adversarial_objective()
    assert objective.steps == 30
    by_hand = copy.deepcopy(objective.discriminator)
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in by_hand.parameters()}
    norms = []
    for step, pieces in enumerate(pieces_of(objective, 4)):
        seen = []
        for images in pieces:
            with torch.no_grad():
                seen.append((images, objective.module(images)[0]))
            loss, _ = objective.loss(objective.module, (images,), step)
            (loss / PIECES).backward()  # leaves gradients in the discriminator, which must not count
        objective.after_step(None, step)

        by_hand.zero_grad()
        for images, decoded in seen:
            hinge = torch.relu(1 - by_hand(images)).mean() + torch.relu(1 + by_hand(decoded)).mean()
            (0.5 * 0.5 * hinge / PIECES).backward()  # the discriminator's weight and the hinge loss's half
        norm = sum(p.grad.square().sum() for p in by_hand.parameters()).sqrt()
        norms.append(float(norm))
        rate = rate_by_hand(step, 30)
        with torch.no_grad():
            for p, (mean, square) in moments.items():
                gradient = p.grad * min(1.0, 7.0 / norm)
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient.square(), 0.05)
                update = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
                p.mul_(1 - rate * 0.1 if p.ndim >= 2 else 1.0).sub_(rate * update)
    assert min(norms) < 7 < max(norms)  # some steps are clipped
    for ours, theirs in zip(objective.discriminator.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_weight_of_the_adversarial_loss(adaptive):
    objective = adversarial_objective(adaptive_weight=adaptive)
    ((images, _),) = pieces_of(objective, 1)
    objective.module.eval()  # no codeword ages
    loss, values = objective.loss(objective.module, (images,), 0)

    decoded, quantized = objective.module(images)
    mse = (decoded - images).square().mean()
    adversarial = -objective.discriminator(decoded).mean()
    weight = 0.5
    if adaptive:
        last = objective.module.decoder.conv_out.weight
        norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (mse, adversarial)]
        weight = 0.5 * norms[0] / (norms[1] + 1e-4)
    expected = mse + quantized.codebook_loss + 0.25 * quantized.commitment_loss + weight * adversarial
    torch.testing.assert_close(loss, expected)
    assert float(values["adversarial_weight"]) == pytest.approx(float(weight), rel=1e-5)


def test_the_discriminator_begins_at_its_step():
    """Counted from 1, as logs and LlamaGen count."""
    objective = adversarial_objective(discriminator_start=2)
    start = copy.deepcopy(objective.discriminator.state_dict())
    for step, pieces in enumerate(pieces_of(objective, 2)):
        values = [objective.loss(objective.module, (images,), step)[1] for images in pieces]
        objective.after_step(None, step)
        learned = any(
            not torch.equal(tensor, start[name]) for name, tensor in objective.discriminator.state_dict().items()
        )
        assert learned == ("adversarial" in values[0]) == (step == 1)


def test_a_discriminator_that_never_begins_and_images_too_small_to_evaluate_are_said():
    with pytest.warns(UserWarning, match="discriminator_start is 20000 and the run has 30 steps: .* never begins"):
        make_tokenizer_objective(make_image_set(), tokenizer_training(discriminator_start=20_000))
    small = open_images("emoji", "test", 8)
    with pytest.raises(InputError, match="image_size 8 is too small for the SSIM of held-out images, which takes 11"):
        TokenizerObjective(tokenizer_training(discriminator_weight=0.0), 6, small, small)


def test_lpips_follows_the_model_to_its_device(tmp_path):
    LPIPS().save(tmp_path / "lpips.safetensors")
    config = tokenizer_training(
        discriminator_weight=0.0, perceptual_weight=1.0, perceptual_source=str(tmp_path / "lpips.safetensors")
    )
    objective = make_tokenizer_objective(make_image_set(), config)
    objective.module.to("meta")
    next(objective.batches(4, 0, 0, 1, 0))
    assert {parameter.device.type for parameter in objective.perceptual.parameters()} == {"meta"}


# ----------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["vq16", "vq8"])
def test_presets_are_llamagens_recipe(name):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TokenizerTraining)
    values = parser.instantiate(parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml")]))
    config = TokenizerTraining(**{field.name: values[field.name] for field in dataclasses.fields(TokenizerTraining)})
    assert config.model == TOKENIZER_PRESETS[name]
    assert (config.out, config.kmeans_start, config.restart_after) == (f"runs/{name}", False, 0)


def test_a_sheet_passes_over_corrupt_images():
    images = make_image_set(corrupt={0, 19})
    objective = make_tokenizer_objective(images, tokenizer_training())
    assert objective.sheet(objective.module.eval()).width > 12 * 32
