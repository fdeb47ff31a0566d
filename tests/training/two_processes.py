"""What `test_distributed.py` starts with torchrun: a token run and a tokenizer run, shared by the processes."""

import os
import sys
from pathlib import Path

from tiny_runs import make_image_set, make_token_objective, make_tokenizer_objective, run, tokenizer_training

from ctf.files import fingerprint
from ctf.tokens.token_set import TokenSet

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
run(make_token_objective(TokenSet.open(folder / "tokens"), "fine"), folder / "shared", steps=3)

objective = make_tokenizer_objective(make_image_set(), tokenizer_training())
run(objective, folder / "tokenizer", steps=20)
state = [*objective.module.parameters(), objective.module.quantizer.age, *objective.discriminator.parameters()]
(folder / f"rank-{rank}.txt").write_text("\n".join(map(fingerprint, state)))
