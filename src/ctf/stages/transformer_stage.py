"""The base of kinds that are Transformers: the network, its head, packing, and bytes of weights."""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models.cluster_head import member_logits
from ctf.models.config import Compute, NetworkConfig, TransformerConfig
from ctf.models.linear import packed_bytes
from ctf.models.loss import ClusterLoss, linear_cross_entropy
from ctf.models.packed import PackedTransformer
from ctf.models.transformer import Transformer
from ctf.sampling.cuda_graph import RecordedLoops
from ctf.stages.stage import Stage

#: States (…, dim) before the head, with their targets and given labels (…).
TrainingStates = tuple[Tensor, Tensor, Tensor | None]


class TransformerStage(Stage):
    """A stage around one `Transformer`; arguments as those of `Stage`.

    A kind around another network names it, its packed form and its settings.
    """

    Config: ClassVar[type[NetworkConfig]] = TransformerConfig
    config: TransformerConfig
    attention: ClassVar[Literal["causal", "full", "groups", "scales"]]
    rows_of: ClassVar[dict[str, str]] = {
        "transformer.label_embedding.weight": "classes",
        "transformer.token_embedding.weight": "predicts",
        "transformer.given_embedding.weight": "given",
        "transformer.head.weight": "predicts",
        "transformer.head.bias": "predicts",
    }
    Network: ClassVar[Any] = Transformer
    Packed: ClassVar[Any] = PackedTransformer

    def __init__(self, config: TransformerConfig, **facts: Any) -> None:
        super().__init__(config, **facts)
        num_given = 0 if self.given is None else self.given.num_coarse
        if config.given_vocab != num_given:
            raise InputError(f"stage {self.name} reads {config.given_vocab} given labels, their level has {num_given}")
        self.transformer = self.Network(config)

    @classmethod
    def configure(
        cls, size: str, *, vocabulary: int, given: int, layout: Layout, num_classes: int, **settings: Any
    ) -> NetworkConfig:
        fields = {field.name for field in dataclasses.fields(cls.Config)}
        if unknown := settings.keys() - fields:
            raise InputError(f"stages of kind {cls.kind} have no setting {min(unknown)}: leave it out")
        facts = {
            "input_vocab": vocabulary,
            "output_vocab": vocabulary,
            "given_vocab": given,
            "layout": layout,
            "num_classes": num_classes,
            "attention": cls.attention,
        }
        return cls.Config.of_size(size, **{name: facts[name] for name in facts.keys() & fields} | settings)

    def head(self, hidden: Tensor, given: Tensor | None) -> Tensor:
        """States (…, dim) → float32 logits of all labels, or of the members of each given cluster."""
        if self.members is None:
            return self.transformer.head(hidden).float()
        assert given is not None
        head = self.transformer.head
        logits = member_logits(hidden, head.weight, given, self.members)  # (…, size of the largest cluster)
        return logits if head.bias is None else logits + head.bias[self.members.table[given]]

    @abstractmethod
    def training_states(self, targets: Tensor, labels: Tensor, given: Tensor | None) -> TrainingStates:
        """What a training step's loss is computed from.

        Targets and given labels of all positions are (B, N); a kind may leave positions out, or reorder them.
        """

    def forward(self, tokens: Tensor, labels: Tensor, cluster_loss: ClusterLoss | None = None) -> Tensor:
        """The training loss of each position that the kind trains on, as `Stage.forward`; plus IAR's `cluster_loss`.

        Raises:
            InputError: `cluster_loss` for a stage whose support is that of clusters already.
        """
        targets, given = self.levels(tokens)
        hidden, targets, given = self.training_states(targets, labels, given)
        if self.members is None:
            head = self.transformer.head
            return linear_cross_entropy(hidden, head.weight, targets, cluster_loss, head.bias)
        if cluster_loss is not None:
            raise InputError(f"stage {self.name} chooses within a cluster: a loss on clusters says nothing there")
        logits = self.head(hidden, given).flatten(0, -2)
        return F.cross_entropy(logits, self.members.index[targets].flatten(), reduction="none").view(targets.shape)

    def pack(self, compute: Compute) -> TransformerStage:
        if self.packed:
            return self
        packed = copy.copy(self)
        packed._modules, packed._buffers = self._modules.copy(), self._buffers.copy()  # not shared with the original
        packed.transformer = self.Packed(self.transformer, compute.on(self.device), head=self.members is None)
        if self.members is not None and self.device.type == "cpu":  # once, not in every step
            head = packed.transformer.head
            head.weight = nn.Parameter(self.members.sorted_weight(head.weight.detach()), requires_grad=False)
            packed.members = self.members.of_sorted_weight()
        packed.packed = True
        packed.recorded = RecordedLoops() if self.cached and self.device.type == "cuda" else None
        return packed.eval()

    def without_values(self, padded: bool = True) -> Stage:
        bare: Any = super().without_values(padded)
        if bare.members is not None and not padded:  # the head multiplies by the members of one cluster, on average
            outputs = round(self.vocabulary / len(bare.members.sizes))
            bare.transformer.head = nn.Linear(self.config.dim, outputs, bias=False, device="meta")
            bare.members = None
        return bare

    def weight_bytes(self, compute: Compute, positions: int | None = None) -> float:
        """As `Stage.weight_bytes`. Norms and a head over members are float32; a position reads one cluster of it."""
        width, head = packed_bytes(compute, self.device), self.transformer.head.weight
        weights = sum(w.numel() * (width if w.ndim == 2 else 4) for w in self.multiplied() if w is not head)
        if self.members is None:
            return weights + width * head.numel()
        share = 1 if positions is None else min(1, positions / len(self.members.sizes))
        return weights + 4 * share * head.numel()
