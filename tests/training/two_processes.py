"""What `test_distributed.py` starts with torchrun: token runs and a tokenizer run, shared by the processes."""

import os
import sys
from pathlib import Path

from tiny_runs import (
    make_image_set,
    make_token_objective,
    make_tokenizer_objective,
    run,
    tokenizer_training,
    with_masks_by_number,
)

from ctf.files import fingerprint
from ctf.tokens.token_set import TokenSet

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
tokens = TokenSet.open(folder / "tokens")


def train(name, **loop):
    """As `alone` is trained by one process."""
    settings = {"steps": 50, "ema": 0.9, "checkpoint_every": 20, "milestones": (30,)}
    metrics = run(make_token_objective(tokens, "fine", held_out=tokens), folder / name, **{**settings, **loop})
    (folder / f"{name}-{rank}.txt").write_text(str(metrics["held_out/loss"]))


train("copies", device="auto")
train("cut", shard=True)
train("cut-recomputed", shard=True, recompute=True, accumulate=2)
train("grown", shard=True, resume=True)

for name in ("masks", "masks-cut"):
    objective = with_masks_by_number(make_token_objective(tokens, "fine", rounds="any"), int(rank))
    run(objective, folder / name, steps=1, shard=name == "masks-cut")

objective = make_tokenizer_objective(make_image_set(), tokenizer_training())
run(objective, folder / "tokenizer", steps=20)
state = [*objective.module.parameters(), objective.module.quantizer.age, *objective.discriminator.parameters()]
(folder / f"rank-{rank}.txt").write_text("\n".join(map(fingerprint, state)))
