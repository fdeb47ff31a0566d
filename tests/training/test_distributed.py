import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import make_token_objective, make_token_set, run

from ctf.stages import load_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both runs of `two_processes.py`, done."""
    folder = tmp_path_factory.mktemp("distributed")
    make_token_set(folder / "tokens")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    here = Path(__file__).parent
    done = subprocess.run([*command, here / "two_processes.py", folder], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_train_what_one_does(folder, tokens, tmp_path):
    alone = make_token_objective(tokens, "fine")
    run(alone, tmp_path, steps=3)
    shared = load_stage(folder / "shared" / "model.safetensors")
    for p, q in zip(shared.parameters(), alone.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=3e-5)


def test_codebook_ages_and_discriminator_are_the_same_in_both(folder):
    assert (folder / "rank-0.txt").read_text() == (folder / "rank-1.txt").read_text()
