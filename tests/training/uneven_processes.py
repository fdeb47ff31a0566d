"""What `test_watch.py` starts with torchrun: two processes, of which something happens to the second one in step 3."""

import os
import signal
import sys
import time
from pathlib import Path

from tiny_runs import make_token_objective, run

from ctf.tokens.token_set import TokenSet

folder, failure = Path(sys.argv[1]), sys.argv[2]


class Uneven:
    """Batches that the second process reads in its own way."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for step, batch in enumerate(self.batches):
            if step == 3 and os.environ["RANK"] == "1":
                if failure == "hanging":
                    time.sleep(20)
                else:
                    signal.raise_signal({"killed": signal.SIGKILL, "terminated": signal.SIGTERM}[failure])
            yield batch


objective = make_token_objective(TokenSet.open(folder / "tokens"))
batches = objective.batches
objective.batches = lambda *arguments: iter(Uneven(batches(*arguments)))
run(objective, folder / failure, patience=3.0, shard=True)
