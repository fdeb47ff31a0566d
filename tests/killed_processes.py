"""Sampling, or tokenizing, that is killed and tried again: `samples MODEL FOLDER` or `tokens IMAGES TOKENIZER FOLDER`.

A try is a fork, which ends itself with SIGKILL in the moment that a file would get its name or be removed.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from ctf.images import open_images
from ctf.model_folder import Pipeline
from ctf.samples import sample_to
from ctf.tokenizer.registry import load_tokenizer
from ctf.tokens import tokenize_images


def killed(work, moment):
    """Work in a fork that is killed at the given moment, counted from 1, or never at 0; returns whether it was."""

    def count(event, arguments):
        nonlocal moment
        shard = event == "os.remove" and Path(arguments[0]).name.startswith("shard-")
        if shard or event in ("os.rename", "shutil.rmtree"):
            moment -= 1
            if not moment:
                os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        sys.addaudithook(count)
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def tokenize(source, tokenizer, world, out):
    for rank in reversed(range(world)):
        sizes = {"batch_size": 4, "shard_size": 4, "progress": False}
        tokenize_images(open_images(source, size=16), tokenizer, out, **sizes, rank=rank, world=world)


task, opened, *more = sys.argv[1:]
folder = Path(more.pop())
if task == "samples":
    sample = partial(sample_to, Pipeline.from_pretrained(opened), num=12, batch_size=4)
    tries = [(sample, sample, folder / name, name) for name in ("samples", "samples.npz")]
else:
    alone, together = (partial(tokenize, opened, load_tokenizer(*more), world) for world in (1, 2))
    tries = [(alone, together, folder, "")]
for first, second, place, name in tries:
    moment = 1
    while killed(partial(first, place / str(moment) / name), moment):
        assert not killed(partial(second, place / str(moment) / name), 0)
        moment += 1
