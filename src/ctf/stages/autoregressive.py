"""Autoregressive stages: labels one after another in raster order (paper, section 4.2.1, eq. 8; of tokens, eq. 3)."""

from __future__ import annotations

from torch import Tensor

from ctf.errors import InputError
from ctf.stages.cached import CachedStage, CacheState
from ctf.stages.drawing import Group
from ctf.stages.transformer_stage import TrainingStates


class Autoregressive(CachedStage):
    """LlamaGen's GPT: label i from the class, the labels before it, and given labels up to i."""

    kind, attention = "autoregressive", "causal"

    @property
    def possible_steps(self) -> range:
        return range(self.num_tokens, self.num_tokens + 1)

    def training_states(self, targets: Tensor, labels: Tensor, given: Tensor | None) -> TrainingStates:
        return self.transformer.hidden(targets, labels, given), targets, given

    def check_kept(self, kept: Tensor) -> None:
        count = int(kept.sum())
        if not kept[:count].all():
            raise InputError(
                f"stage {self.name} is autoregressive: it continues images from their first tokens, row by row; other "
                "parts are kept by stages of kind any_order and masked"
            )

    def hidden(self, state: CacheState, group: Group) -> Tensor:
        network, inputs, position = self.transformer, state.inputs[:, 0], group.before
        if state.given is not None:
            inputs = inputs + network.given_embedding(state.given[:, position])
        return network.step(inputs, state.cache, position)[:, None]
