import pytest
import torch
from tiny_runs import make_image_set, make_loop, make_tokenizer_objective, run, tokenizer_training

from ctf.errors import InputError
from ctf.tokenizer import VQTokenizer
from ctf.training.config import OptimizerConfig
from ctf.training.log import read_log


def test_the_loss_goes_down_and_the_model_is_delivered(tmp_path):
    objective = make_tokenizer_objective(make_image_set(), tokenizer_training(discriminator_weight=0.0))
    run(objective, tmp_path, OptimizerConfig(learning_rate=2e-3), steps=30)
    mse = [line["mse"] for line in read_log(tmp_path / "log.jsonl") if "mse" in line]
    assert mse[-1] < 0.5 * mse[0]
    delivered = VQTokenizer.load(tmp_path / "model.safetensors")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(delivered.encode(images), objective.module.eval().encode(images))


def test_the_codebook_starts_once_on_unit_features_in_model_and_average(tmp_path):
    objective = make_tokenizer_objective(make_image_set(), tokenizer_training(warmup_without_codebook=1))
    average = make_tokenizer_objective(objective.images, objective.config).module
    objective.before_step(average, 0)
    assert objective.module.quantizer.weight.norm(dim=1).max() < 0.5
    objective.before_step(average, 1)
    assert objective.module.quantizer.weight.norm(dim=1).min() > 0.5
    assert torch.equal(average.quantizer.weight, objective.module.quantizer.weight)


def test_codewords_age_in_steps_whatever_the_accumulation(tmp_path):
    restarts = []
    for accumulate in (1, 4):
        loop = {"accumulate": accumulate, "steps": 20, "batch_size": 4}
        config = tokenizer_training(discriminator_weight=0.0, restart_after=1, loop=make_loop(**loop))
        objective = make_tokenizer_objective(make_image_set(), config)
        run(objective, tmp_path / str(accumulate), OptimizerConfig(learning_rate=0.0, final_learning_rate=0.0), **loop)
        lines = read_log(tmp_path / str(accumulate) / "log.jsonl")
        restarts.append(sum(line.get("restarts", 0) for line in lines))
    assert restarts[0] == restarts[1] > 0


def test_settings_that_cannot_work():
    with pytest.raises(InputError, match="image_size 30 is not a multiple of the tokenizer's downsampling 8"):
        make_tokenizer_objective(make_image_set(size=30), tokenizer_training())
    with pytest.raises(InputError, match="perceptual_weight needs perceptual_source"):
        make_tokenizer_objective(make_image_set(), tokenizer_training(perceptual_weight=1.0))
    with pytest.raises(InputError, match="image_size 16 is too small for the discriminator"):
        make_tokenizer_objective(make_image_set(size=16), tokenizer_training())


def test_a_sheet_passes_over_corrupt_images():
    images = make_image_set(corrupt={0, 19})
    objective = make_tokenizer_objective(images, tokenizer_training())
    assert objective.sheet(objective.module.eval()).width > 12 * 32
