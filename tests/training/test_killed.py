"""Kill -9 at any moment, while a checkpoint is written too."""

import multiprocessing
import os
import random
import signal
import time

import torch
from tiny_runs import make_token_objective, run

from ctf.files import load_tensors
from ctf.run_folder import RUN_CHECKPOINTS, checkpoint_path
from ctf.tokens.token_set import TokenSet

STEPS, KILLS = 30, 6


def train(tokens, out, written):
    """A run that writes a checkpoint after each step; says in `written` which step it has begun, from 1."""
    torch.set_num_threads(1)
    objective = make_token_objective(TokenSet.open(tokens), dropout=0.1, class_dropout=0.1)
    before_step = objective.before_step

    def tell(ema, step):
        written.value = step + 1
        time.sleep(0.01)
        before_step(ema, step)

    objective.before_step = tell
    run(objective, out, steps=STEPS, ema=0.9, checkpoint_every=1, resume=True)


def test_a_run_killed_six_times_equals_an_uninterrupted_one(tokens, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "accelerate", "ctf.training.loop", "ctf.training.tokenizer_objective"]
    )
    chosen = random.Random(0)
    killed = 0
    for attempt in range(KILLS + 1):
        written = context.Value("i", 0)
        process = context.Process(target=train, args=(tokens.folder, tmp_path / "killed", written))
        process.start()
        if attempt < KILLS:
            begun, more = 0, chosen.randint(0, 2)  # steps, so that all kills come before the end
            while process.is_alive() and not (begun and written.value >= begun + more):
                begun = begun or written.value
                time.sleep(0.001)
            time.sleep(chosen.uniform(0, 0.04))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert (killed, process.exitcode) == (KILLS, 0)
    run(make_token_objective(tokens, dropout=0.1, class_dropout=0.1), tmp_path / "whole", steps=STEPS, ema=0.9)
    torn, whole = (load_tensors(checkpoint_path(tmp_path / name, STEPS))[0] for name in ("killed", "whole"))
    assert torn.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(torn[name], whole[name])] == []
    assert len(list((tmp_path / "killed" / RUN_CHECKPOINTS).iterdir())) == 2
