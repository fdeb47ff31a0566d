"""Runs of two processes, the second of which fails in step 3. `test_watch.py` starts them."""

import os
import signal
import sys
import time
from pathlib import Path

from launch import launch
from tiny_runs import make_token_objective, run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ctf.tokens.token_set import TokenSet


class Uneven:
    """Batches that the second process reads in its own way."""

    def __init__(self, batches, failure):
        self.batches, self.failure = batches, failure

    def __iter__(self):
        for step, batch in enumerate(self.batches):
            if step == 3 and os.environ["RANK"] == "1":
                if self.failure == "hanging":
                    time.sleep(20)
                else:
                    signal.raise_signal({"killed": signal.SIGKILL, "terminated": signal.SIGTERM}[self.failure])
            yield batch


def work(folder, failure):
    objective = make_token_objective(TokenSet.open(folder / "tokens"))
    batches = objective.batches
    objective.batches = lambda *arguments: iter(Uneven(batches(*arguments), failure))
    try:
        run(objective, folder / failure, patience=3.0, shard=True)
    except KeyboardInterrupt:
        sys.exit(130)  # as Python does, but a fork of `multiprocessing` does not


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for failure in ("hanging", "killed", "terminated"):
        try:
            launch(work, place, failure)
        except ChildFailedError as error:
            (place / f"{failure}.txt").write_text(str(error))
