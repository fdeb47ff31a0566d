"""What `test_sampling_processes.py` starts: sampling that is killed, and tried again.

A try is a fork, which ends itself with SIGKILL in the moment that a file would get its name, or the parts be removed.
"""

import os
import signal
import sys
from pathlib import Path

from ctf.evaluation import sample_to
from ctf.pipeline import Pipeline

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
        sample_to(pipeline, out, None, 12, 0, 4, {})
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
