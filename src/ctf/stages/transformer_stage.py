"""What the kinds that are Transformers share: the network, its head, packing, and what they cost."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor

from ctf.errors import InputError
from ctf.models.cluster_head import member_logits
from ctf.models.config import Compute, TransformerConfig
from ctf.models.packed import PackedTransformer
from ctf.models.transformer import Transformer
from ctf.stages.stage import Stage


class TransformerStage(Stage):
    """A stage around one `Transformer`; arguments as those of `Stage`."""

    Config = TransformerConfig
    config: TransformerConfig
    attention: ClassVar[Literal["causal", "full"]]

    def __init__(self, config: TransformerConfig, **facts: Any) -> None:
        super().__init__(config, **facts)
        labels = 0 if self.given is None else self.given.num_coarse
        if config.given_vocab != labels:
            raise InputError(f"stage {self.name} reads {config.given_vocab} given labels, their level has {labels}")
        self.transformer = Transformer(config)

    @classmethod
    def configure(
        cls, size: str, *, vocabulary: int, given: int, grid: tuple[int, int], num_classes: int, **settings: Any
    ) -> TransformerConfig:
        facts: dict[str, Any] = {"grid": grid, "num_classes": num_classes, "attention": cls.attention, **settings}
        inputs = cls.inputs(vocabulary, given)
        return TransformerConfig.of_size(size, input_vocab=inputs, output_vocab=vocabulary, given_vocab=given, **facts)

    @classmethod
    @abstractmethod
    def inputs(cls, vocabulary: int, given: int) -> int:
        """How many different tokens the network reads, beside the given labels."""

    def head(self, hidden: Tensor, given: Tensor | None) -> Tensor:
        """States (…, dim) → float32 logits of all labels, or of the members of each given cluster."""
        if self.members is None:
            return self.transformer.head(hidden).float()
        assert given is not None
        return member_logits(hidden, self.transformer.head.weight, given, self.members)

    def pack(self, compute: Compute) -> TransformerStage:
        if self.packed:
            return self
        packed = copy.copy(self)
        packed._modules, packed._buffers = self._modules.copy(), self._buffers.copy()  # not shared with the original
        packed.transformer = PackedTransformer(self.transformer, compute.on(self.device), head=self.members is None)
        packed.packed = True
        return packed.eval()

    def forward_operations(self) -> float:
        """2·n·W + 4·L·dim·n² + 2·N·dim·outputs, for one image.

        W weights in the blocks, L layers, n positions: N under causal attention, where the label takes the place of the
        last token, N + 1 under full attention. Causal attention counts in full, as in PaLM's appendix B.
        """
        c = self.config
        positions = c.num_tokens + (c.attention == "full")
        attention = 4 * c.layers * c.dim * positions**2
        return 2 * positions * c.block_weights + attention + 2 * c.num_tokens * c.dim * self.mean_outputs

    @property
    def mean_outputs(self) -> float:
        """Logits per position: all labels, or the members of one cluster on average."""
        return self.vocabulary if self.members is None else self.vocabulary / len(self.members.sizes)

    def head_bytes(self, compute: Compute) -> int:
        """Of one weight of the head, which is not packed where it is that of members."""
        return compute.weight_bytes if self.members is None else 4

    @property
    def norm_bytes(self) -> int:
        """Of all norms' weights, which are float32: two per block, one before the head."""
        return 4 * (2 * self.config.layers + 1) * self.config.dim

    def packed_memory(self, compute: Compute) -> int:
        """Bytes of weights that sampling converts: on a CPU all into another layout, on a GPU into another dtype."""
        compute = compute.on(self.device)
        if self.device.type != "cpu" and compute.dtype == "float32":
            return 0
        head = 0 if self.members is not None else self.config.dim * self.vocabulary
        return compute.weight_bytes * (self.config.block_weights + head)
