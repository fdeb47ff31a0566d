"""A new kind of stage in one file: it trains, samples, has a likelihood, is saved, loaded and shown."""

import dataclasses

import numpy as np
import torch
from torch import nn

from ctf.model_folder import Pipeline, describe
from ctf.sampling import draw
from ctf.stages import KINDS, Stage, new_stage
from ctf.tokens import write_token_set
from ctf.training import LoopConfig, OptimizerConfig, train
from ctf.training.token_objective import TokenObjective


@dataclasses.dataclass(frozen=True)
class Table:
    output_vocab: int
    grid: tuple[int, int]
    num_classes: int


class Independent(Stage):
    """Independent tokens given the label: a table of logits."""

    kind, Config = "independent", Table

    def __init__(self, config, **facts):
        super().__init__(config, **facts)
        self.table = nn.Parameter(torch.zeros(config.num_classes + 1, self.num_tokens, config.output_vocab))

    @classmethod
    def configure(cls, size, *, vocabulary, given, grid, num_classes):
        return Table(vocabulary, grid, num_classes)

    def logits(self, tokens, labels, sampling=None, kept=None):
        return self.table[labels]

    def steps(self, labels, random, sampling, given, known=None):
        drawn = draw(self.table[labels], random.uniform(self.num_tokens), sampling)
        yield drawn if known is None else known.where(known >= 0, drawn)


def test_a_third_kind(make_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "independent", Independent)
    truth, names = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]), ["up", "down"]
    tokens = write_token_set(tmp_path / "tokens", truth, np.arange(2), 24, (2, 3), names)
    stage = new_stage("independent", "any", name="only", grid=(2, 3), num_classes=2, codebook_size=24)
    loop = LoopConfig(batch_size=2, steps=60, log_every=9, device="cpu", precision="float32")
    metrics = train(TokenObjective(stage, tokens, tokens), tmp_path / "run", OptimizerConfig(0.3, 0.01), loop, loop)
    assert metrics["held_out/bits_per_token"] < 0.1
    pipeline = Pipeline(make_tokenizer(), names, [stage])
    assert pipeline.generate_tokens(torch.arange(2), [0, 1], temperature=0.0).tolist() == truth.tolist()
    pipeline.save_pretrained(tmp_path / "model")
    assert Pipeline.from_pretrained(tmp_path / "model")([1], seed=3)[0].size == (12, 8)
    assert describe(str(tmp_path / "model"))["stages"][0]["kind_of_stage"] == "independent"
    assert pipeline.stages[0].log_prob(torch.tensor(truth), torch.arange(2)).exp().min() > 0.9
    assert describe(str(tmp_path / "run" / "model.safetensors"))["parameters"] == 3 * 6 * 24
