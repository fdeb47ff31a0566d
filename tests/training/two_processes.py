"""Token runs and a tokenizer run of two processes, which `test_distributed.py` starts."""

import os
import sys
from pathlib import Path

from launch import launch
from tiny_runs import (
    make_image_set,
    make_token_objective,
    make_tokenizer_objective,
    run,
    tokenizer_training,
    with_masks_by_number,
)

from ctf.files import write_json
from ctf.fingerprint import fingerprint
from ctf.tokens.token_set import TokenSet
from ctf.training.config import OptimizerConfig


def work(folder):
    rank, tokens = os.environ["RANK"], TokenSet.open(folder / "tokens")

    def train(name, **loop):
        """Train as the run `alone` of one process."""
        settings = {"steps": 12, "ema": 0.9, "checkpoint_every": 5, "milestones": (7,)}
        objective = make_token_objective(tokens, "fine", held_out=tokens)
        metrics = run(objective, folder / name, OptimizerConfig(3e-3), **{**settings, **loop})
        (folder / f"{name}-{rank}.txt").write_text(str(metrics["held_out/loss"]))

    train("copies", device="auto")
    train("sharded", shard=True)
    train("sharded-recomputed", shard=True, recompute=True, accumulate=2)
    train("grown", shard=True, resume=True)

    for name in ("masks", "masks-sharded"):
        objective = with_masks_by_number(make_token_objective(tokens, "fine", rounds="any"), int(rank))
        run(objective, folder / name, steps=1, shard=name == "masks-sharded")

    objective = make_tokenizer_objective(make_image_set(), tokenizer_training())
    objective.held_out = make_image_set(5, corrupt=(3,))
    metrics = run(objective, folder / "tokenizer", steps=20, batch_size=4)
    write_json(folder / f"tokenizer-{rank}.json", metrics)
    state = [*objective.module.parameters(), objective.module.quantizer.age, *objective.discriminator.parameters()]
    (folder / f"rank-{rank}.txt").write_text("\n".join(map(fingerprint, state)))


if __name__ == "__main__":
    launch(work, Path(sys.argv[1]))
