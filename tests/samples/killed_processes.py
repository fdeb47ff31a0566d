"""What `test_processes.py` starts: sampling that is killed, and tried again.

A try is a fork, which ends itself with SIGKILL in the moment that a file would get its name, or the parts be removed.
"""

import os
import signal
import sys
from pathlib import Path

from ctf.model_folder import Pipeline
from ctf.samples import sample_to

model, folder = sys.argv[1:]


def sample(pipeline, out, moment):
    """Sample in a child that is killed at the given moment, counted from 1, or never at 0; returns whether it was."""

    def count(event, _):
        nonlocal moment
        if event in ("os.rename", "shutil.rmtree"):
            moment -= 1
            if not moment:
                os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        sys.addaudithook(count)
        sample_to(pipeline, out, num=12, batch_size=4)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


opened = Pipeline.from_pretrained(model)
for name in ("samples", "samples.npz"):
    moment = 1
    while sample(opened, Path(folder) / name / str(moment) / name, moment):
        assert not sample(opened, Path(folder) / name / str(moment) / name, 0)
        moment += 1
