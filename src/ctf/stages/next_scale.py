"""Next-scale stages: all labels of a scale at once, given the scales before (VAR, arXiv 2404.02905, eq. 6)."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctf.codebook.coarse_map import codebook_fingerprint
from ctf.errors import InputError
from ctf.models.cache import KeyValueCache
from ctf.models.config import Compute
from ctf.models.linear import packed_bytes
from ctf.models.next_scale import NextScaleTransformer
from ctf.models.next_scale_config import NextScaleConfig
from ctf.models.packed import PackedConvolution, PackedNextScale
from ctf.stages.cached import CachedStage
from ctf.stages.drawing import DrawPlan, Group
from ctf.stages.settings import NextScaleSettings
from ctf.stages.transformer_stage import TrainingStates
from ctf.tokenizer.config import MultiScaleConfig
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.multi_scale import MultiScaleTokenizer
from ctf.tokenizer.residual import ResidualSum


@dataclass
class ScaleState:
    """The state of one call.

    Attributes:
        condition: embeddings of the class labels, (rows, dim).
        modulations: of each block, (rows, 1, 6, dim).
        cache: keys and values of the scales before.
        given: given labels (rows, N), if the stage has any.
        f_hat: f̂, the sum of what the scales before contribute, float32 (rows, d, H, W).
    """

    condition: Tensor
    modulations: list[Tensor]
    cache: KeyValueCache
    given: Tensor | None
    f_hat: Tensor


class NextScale(CachedStage):
    """Labels of a scale from the class, the sum of the scales before, and given labels of the scale's positions.

    The network reads what labels contribute to the feature map instead of the labels. So the stage holds its
    tokenizer's convolutions and a vector for each label: the codeword, or the mean of a cluster's codewords. Both are
    the same in training and in sampling, so the likelihood is exact.
    """

    kind, attention, by_scales = "next_scale", "scales", True
    Config, Settings = NextScaleConfig, NextScaleSettings
    Network, Packed = NextScaleTransformer, PackedNextScale
    config: NextScaleConfig  # type: ignore[assignment]
    float32 = ("vectors", "residual.")
    undecayed = ("start", "position_embedding", "scale_embedding.weight", "offset", "attention.scale")
    vectors: Tensor  # (vocabulary, d)

    def __init__(self, config: NextScaleConfig, **facts: Any) -> None:
        super().__init__(config, **facts)  # type: ignore[arg-type]
        self.residual = ResidualSum(config.codeword_dim, config.convolutions).requires_grad_(False)
        self.residual.convolution_of_scale(config.layout)  # raises for numbers of scales that no tokenizer has
        self.register_buffer("vectors", torch.zeros(config.output_vocab, config.codeword_dim))

    @classmethod
    def settings_of(cls, tokenizer: Tokenizer | None) -> dict[str, Any]:
        if not isinstance(tokenizer, MultiScaleTokenizer):
            raise InputError(
                f"stages of kind {cls.kind} read the codewords of a multi-scale tokenizer: "
                + ("give the one that made the tokens" if tokenizer is None else "this tokenizer has one scale")
            )
        convolutions = len(tokenizer.quantizer.residual.convolutions)
        return {"codeword_dim": tokenizer.quantizer.weight.shape[1], "convolutions": convolutions}

    @classmethod
    def usual_tokenizer(cls) -> Tokenizer:
        with torch.device("meta"):
            return MultiScaleTokenizer(MultiScaleConfig())

    def take_from(self, tokenizer: Tokenizer | None) -> None:
        assert isinstance(tokenizer, MultiScaleTokenizer)
        if tokenizer.quantizer.weight.is_meta:
            return  # `usual_tokenizer`
        self.codebook = self.codebook or codebook_fingerprint(tokenizer.codebook)
        convolutions = {name: x.cpu().clone() for name, x in tokenizer.quantizer.residual.state_dict().items()}
        self.residual.load_state_dict(convolutions, assign=True)
        self.vectors = self._vectors_of(tokenizer).clone()

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        super().check_tokenizer(tokenizer)
        settings = self.settings_of(tokenizer)
        assert isinstance(tokenizer, MultiScaleTokenizer)
        if (
            settings != {name: getattr(self.config, name) for name in settings}
            or tokenizer.quantizer.residual.fingerprint(self._vectors_of(tokenizer)) != self.fingerprint
        ):
            raise InputError(
                f"stage {self.name} reads the codewords and convolutions of another tokenizer: give the one that it "
                "was trained with"
            )

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the vectors and convolutions that the stage holds."""
        return self.residual.fingerprint(self.vectors)

    def _vectors_of(self, tokenizer: Tokenizer) -> Tensor:
        codebook = tokenizer.codebook.detach().float().cpu()
        return codebook if self.predicts is None else self.predicts.means(codebook)

    def inputs(self, targets: Tensor) -> Tensor:
        """Inputs of the scales behind the first, f̂ pooled to each: labels (B, N) → float32 (B, N − p₀², d)."""
        with torch.no_grad():
            return self.residual.next_scale_input(self.vectors[targets], self.layout)

    def training_states(self, targets: Tensor, labels: Tensor, given: Tensor | None) -> TrainingStates:
        return self.transformer.hidden(self.inputs(targets), labels, given), targets, given

    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> ScaleState:  # type: ignore[override]
        network = self.transformer
        condition = network.condition(labels)
        f_hat = condition.new_zeros(len(labels), self.config.codeword_dim, *self.layout.finest, dtype=torch.float32)
        return ScaleState(condition, network.modulations(condition), self.new_cache(labels), given, f_hat)

    def hidden(self, state: ScaleState, group: Group) -> Tensor:
        network, scale = self.transformer, group.number
        if scale == 0:
            inputs = network.first(state.condition)
        else:
            inputs = network.vector_embedding(self.residual.input_of_scale(state.f_hat, scale, self.layout))
        inputs = network.placed(inputs, scale, state.given)  # (rows, p², dim)
        return network.step(inputs, state.condition, state.modulations, state.cache, group.before)

    def observe(self, state: ScaleState, group: Group, labels: Tensor) -> None:  # type: ignore[override]
        if group.number < len(self.layout) - 1:  # nothing reads f̂ behind the last scale
            state.f_hat = state.f_hat + self.residual.contribution(self.vectors[labels], group.number, self.layout)

    def weight_bytes(self, compute: Compute, positions: int | None = None) -> float:
        """As `Stage.weight_bytes`. The blocks' modulations are read once a batch: a step counts its share of them.

        What `PackedNextScale` does not quantise, or keeps in float32, counts as such.
        """
        width, network = packed_bytes(compute, self.device), self.transformer
        whole = packed_bytes(dataclasses.replace(compute, quantize=None), self.device)
        more = (whole - width) * (self.config.modulation_weights + network.vector_embedding.weight.numel())
        if self.members is None:
            more += (4 - width) * network.head.weight.numel()
        others = 0 if positions is None else 1 - 1 / len(self.layout)
        return super().weight_bytes(compute, positions) + more - others * self.config.block_modulation_weights * whole

    def pack(self, compute: Compute) -> NextScale:
        packed = super().pack(compute)
        assert isinstance(packed, NextScale)
        if packed is not self and self.device.type == "cpu":
            packed.residual = copy.deepcopy(self.residual)
            layers: Any = self.residual.convolutions
            packed.residual.convolutions = nn.ModuleList(PackedConvolution(layer) for layer in layers)
        return packed
