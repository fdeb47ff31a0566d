"""What `test_tokenize.py` starts: tokenizing that is killed, and tried again by two processes.

A try is a fork, which ends itself with SIGKILL in the moment that a file would get its name or be removed.
"""

import os
import signal
import sys
from pathlib import Path

from ctf.images import open_images
from ctf.tokenizer.registry import load_tokenizer
from ctf.tokens import tokenize_images

source, tokenizer, folder = sys.argv[1:]


def tokenize(out, moment, world):
    """Tokenize in a child that is killed at the given moment, counted from 1, or never at 0; returns whether it was."""

    def count(event, arguments):
        nonlocal moment
        if event == "os.rename" or (event == "os.remove" and Path(arguments[0]).name.startswith("shard-")):
            moment -= 1
            if not moment:
                os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        sys.addaudithook(count)
        for rank in reversed(range(world)):
            images = open_images(source, size=16)
            sizes = {"batch_size": 4, "shard_size": 4, "progress": False}
            tokenize_images(images, opened, out, **sizes, rank=rank, world=world)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


opened = load_tokenizer(tokenizer)
moment = 1
while tokenize(Path(folder) / str(moment), moment, world=1):
    assert not tokenize(Path(folder) / str(moment), 0, world=2)
    moment += 1
