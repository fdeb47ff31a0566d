import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import logged, make_image_set, make_token_objective, make_token_set, mean_over_masks, run

from ctf.errors import InputError
from ctf.files import read_json, read_json_lines
from ctf.run_folder import (
    RUN_CHECKPOINTS,
    checkpoint_files,
    checkpoint_path,
    checkpoints,
    latest_checkpoint,
    milestone_path,
)
from ctf.stages import load_stage
from ctf.tokenizer import VQTokenizer
from ctf.tokenizer.measure import measure_tokenizer
from ctf.training.checkpoint import resume, tidy
from ctf.training.config import OptimizerConfig
from ctf.training.processes import Processes

HERE = Path(__file__).parent
NO_GPUS = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
RUNS = ["copies", "sharded", "sharded-recomputed", "grown"]


def start(script, *arguments):
    """A script of this folder, whose two processes see no GPU."""
    command = [sys.executable, HERE / script, *arguments]
    done = subprocess.run(command, cwd=HERE, env=NO_GPUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def objective(tokens):
    return make_token_objective(tokens, "fine", held_out=tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one process, and all runs of `two_processes.py`, done."""
    folder = tmp_path_factory.mktemp("distributed")
    tokens = make_token_set(folder / "tokens")
    settings = {"steps": 12, "ema": 0.9, "milestones": (7,), "checkpoint_every": 5}
    metrics = run(objective(tokens), folder / "alone", OptimizerConfig(3e-3), **settings, keep_checkpoints=9)
    (folder / "alone.txt").write_text(str(metrics["held_out/loss"]))
    shutil.copytree(folder / "alone", folder / "grown", ignore=shutil.ignore_patterns("*10*", "*12*", "model*"))
    start("two_processes.py", folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_losses_of_two_processes_are_those_of_one(name, folder):
    assert len(logged(folder / name)) == 12
    assert logged(folder / name) == pytest.approx(logged(folder / "alone"), abs=1e-5)
    assert logged(folder / name)[-1] < 0.95 * logged(folder / name)[0]


@pytest.mark.parametrize("name", RUNS)
def test_weights_of_two_processes_are_those_of_one(name, folder):
    """The averaged ones, which are the model, and both kinds of a milestone."""
    for path in [Path("model.safetensors"), *(milestone_path(Path(), 7, kind) for kind in ("", "-without-ema"))]:
        shared, alone = (load_stage(folder / run / path) for run in (name, "alone"))
        for p, q in zip(shared.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("name", ["masks", "masks-sharded"])
def test_masks_of_unequal_sizes_count_by_their_positions(name, folder, tokens):
    stage = make_token_objective(tokens, "fine", rounds="any").module
    mean = mean_over_masks(stage, tokens, 2)
    mean.backward()
    line = read_json_lines(folder / name / "log.jsonl")[0]
    assert line["loss"] == pytest.approx(mean.item(), rel=1e-5)
    norm = torch.nn.utils.get_total_norm([p.grad for p in stage.parameters()])
    assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_evaluation_is_shared_by_processes(name, folder):
    found = [float((folder / f"{name}-{rank}.txt").read_text()) for rank in (0, 1)]
    assert found[0] == found[1] == pytest.approx(float((folder / "alone.txt").read_text()), abs=1e-5)


def test_each_process_writes_its_shard(folder):
    files, folders = ([path.name for path in checkpoints(folder / name)] for name in ("copies", "sharded"))
    assert folders == ["step-00000010", "step-00000012"]
    assert files == [f"{name}.safetensors" for name in folders]
    shards = checkpoint_files(latest_checkpoint(folder / "sharded"))
    assert [part.name for part in shards] == ["00000-of-00002.safetensors", "00001-of-00002.safetensors"]
    sizes = [part.stat().st_size for part in shards]
    full = latest_checkpoint(folder / "alone").stat().st_size
    assert sum(sizes) == pytest.approx(full, rel=0.1)
    assert max(sizes) < 0.6 * full


def test_one_process_resumes_from_shards_of_two(folder, tokens, tmp_path):
    shutil.copytree(
        folder / "sharded" / RUN_CHECKPOINTS / "step-00000010", checkpoint_path(tmp_path, 10).with_suffix("")
    )
    run(objective(tokens), tmp_path, OptimizerConfig(3e-3), steps=12, ema=0.9, resume=True)
    assert logged(tmp_path) == pytest.approx(logged(folder / "alone")[10:], abs=1e-5)
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 12)


def test_codebook_ages_and_discriminator_are_the_same_in_both(folder):
    assert (folder / "rank-0.txt").read_text() == (folder / "rank-1.txt").read_text()


def test_processes_share_the_images_that_a_tokenizer_is_measured_on(folder):
    """Three and two of them, one of which is unreadable."""
    shared = [read_json(folder / f"tokenizer-{rank}.json") for rank in (0, 1)]
    alone = measure_tokenizer(
        VQTokenizer.load(folder / "tokenizer" / "model.safetensors").eval(),
        make_image_set(5, corrupt=(3,)),
        progress=False,
    )
    assert alone["images"] == 4
    for metrics in shared:
        found = {name: value for name, value in metrics.items() if name.startswith("held_out/")}
        assert found == pytest.approx({f"held_out/{name}": alone[name] for name in alone if name != "standard_error"})


def damage_a_shard(checkpoint):
    shard = checkpoint_files(checkpoint)[1]
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    return f"{shard} is damaged, its checksum does not fit its content"


def remove_a_shard(checkpoint):
    checkpoint_files(checkpoint)[0].unlink()
    return ""


@pytest.mark.parametrize("damage", [damage_a_shard, remove_a_shard])
def test_the_checkpoint_before_one_with_a_bad_shard_is_taken(damage, folder, tokens, tmp_path, capsys):
    shutil.copytree(folder / "sharded" / RUN_CHECKPOINTS, tmp_path / RUN_CHECKPOINTS)
    (tmp_path / RUN_CHECKPOINTS / "step-00000012" / ".00000-of-00002.safetensors.abcd.tmp").touch()
    message = damage(latest_checkpoint(tmp_path))
    stage = objective(tokens).module
    assert resume(tmp_path, {"model": stage}, 16) == 10
    assert message in capsys.readouterr().err
    tidy(tmp_path, 10)
    assert [path.name for path in (tmp_path / RUN_CHECKPOINTS).iterdir()] == ["step-00000010"]


def test_processes_must_see_the_same_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "gather", lambda self, value: [500, value])
    with pytest.raises(InputError, match=r"process 1 sees step 0 as the last checkpoint of .* process 0 sees 500"):
        resume(tmp_path, {}, 16, Processes(1, 2))
