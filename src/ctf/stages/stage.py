"""Stage: the interface of every type of stage, and what all types share: levels, likelihood, generation, files."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.codebook.coarse_map import CoarseMap, codebook_fingerprint
from ctf.device import send
from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.layout import Layout
from ctf.models.cluster_head import ClusterMembers
from ctf.models.config import Compute
from ctf.sampling.orders import possible_orders
from ctf.sampling.random import Random
from ctf.sampling.settings import Order, Sampling
from ctf.stages.drawing import DrawPlan, Group, OnStep, draw_all, draw_steps, plan_groups, scale_groups, uniforms
from ctf.stages.inputs import check_classes, check_known, check_labels
from ctf.stages.settings import KindSettings
from ctf.tokenizer.interface import Tokenizer

Support = Literal["cluster", "full"]


class Stage(nn.Module, ABC):
    """Generates the labels of its level from a class label and, if it is given a coarser level, from that one's labels.

    A level is a CoarseMap φ, whose labels are φ(tokens), or None: the codebook's own tokens. A kind of stage is a
    subclass with `kind`, `Config`, `configure`, `logits`, `begin`, `hidden` and `observe`, registered by
    `register_kind`. The maps, the support and the sampling defaults are stored with the weights.

    Args:
        config: the kind's settings: a dataclass with at least `output_vocab`, `layout` and `num_classes`.
        name: what settings, files and reports call the stage; a Python identifier other than tokenizer.
        predicts: φ of the level that the stage predicts; None for the codebook's own tokens.
        given: φ of the coarser level whose labels the stage is given; None for nothing but the class label.
        support: with `given`, normalise over the labels that lie in the given cluster ("cluster"), or over all, as
            the paper does ("full").
        sampling: settings that suit the weights.
        codebook: fingerprint of the codebook whose tokens the stage was trained on, if known.

    Raises:
        InputError: maps, vocabulary and support that do not belong together.
    """

    kind: ClassVar[str]
    Config: ClassVar[type]
    #: Settings of a training that this kind alone has.
    Settings: ClassVar[type[KindSettings]] = KindSettings
    #: Orders in which the kind can draw positions, its default first; a layout may lack some, see `possible_orders`.
    orders: ClassVar[tuple[Order, ...]] = ("raster",)
    #: Whether `hidden` fills a cache, and so must run for kept groups too.
    cached: ClassVar[bool] = False
    #: Names of parameters with a row for each label of a level ("predicts", "given"), or for each class ("classes").
    #: A training can start from them where levels or classes differ.
    rows_of: ClassVar[dict[str, str]] = {}
    #: Suffixes of the names of parameters with two axes or more that do not decay in training.
    undecayed: ClassVar[tuple[str, ...]] = ()
    #: Prefixes of the names of tensors that files keep in float32.
    float32: ClassVar[tuple[str, ...]] = ()
    #: The drawing loop as CUDA graphs, where a packed stage has one.
    recorded: Any = None

    def __init__(
        self,
        config: Any,
        *,
        name: str,
        predicts: CoarseMap | None = None,
        given: CoarseMap | None = None,
        support: Support = "cluster",
        sampling: Sampling | None = None,
        codebook: str | None = None,
    ) -> None:
        super().__init__()
        if not name.isidentifier() or name == "tokenizer":
            raise InputError(f"a stage cannot be called {name!r}: take letters, digits and _, such as coarse")
        if support not in get_args(Support):
            raise InputError(f"support {support!r} does not exist: choose one of {', '.join(get_args(Support))}")
        self.config, self.name = config, name
        self.predicts, self.given, self.support = predicts, given, support
        self.sampling = sampling or Sampling()
        maps = [m for m in (predicts, given) if m is not None]
        fingerprints = [m.codebook_fingerprint for m in maps] + [codebook] * (codebook is not None)
        if len(set(fingerprints)) > 1 or len({m.num_fine for m in maps}) > 1:
            raise InputError(f"stage {name}: its maps and tokens belong to different codebooks: cluster again")
        self.codebook = fingerprints[0] if fingerprints else None
        self.codebook_size: int = maps[0].num_fine if maps else config.output_vocab
        num_labels = self.codebook_size if predicts is None else predicts.num_coarse
        if config.output_vocab != num_labels:
            raise InputError(f"stage {name} predicts {config.output_vocab} labels, its level has {num_labels}")
        self.members: ClusterMembers | None = None
        if given is not None and support == "cluster":
            with torch.device("cpu"):  # where maps are, even while a stage is built on "meta"
                relation = given if predicts is None else predicts.coarsened_by(given)
                if relation is None:
                    raise InputError(
                        f"stage {name}: what it is given is no coarsening of what it predicts: make nested maps "
                        "(`ctf cluster --finer`), or take support full"
                    )
                self.members = ClusterMembers(relation)
        for level in ("predicts", "given"):
            if (coarse_map := getattr(self, level)) is not None:
                self.register_buffer(f"{level}_table", coarse_map.fine_to_coarse, persistent=False)

    @classmethod
    def configure(
        cls, size: str, *, vocabulary: int, given: int, layout: Layout, num_classes: int, **settings: Any
    ) -> Any:
        """A `Config` of a named size.

        Args:
            size: its name.
            vocabulary: labels of the predicted level.
            given: labels of the given level; 0 without one.
            layout: of the image's tokens.
            num_classes: as `Config` has it.
            settings: fields of `Settings` and `Config`.

        Raises:
            InputError: no such size; here none at all.
        """
        raise InputError(f"stages of kind {cls.kind} have no named sizes: make one from its Config")

    @classmethod
    def settings_of(cls, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Arguments of `configure` that follow from the tokenizer whose tokens the stage is for; here none.

        Raises:
            InputError: a tokenizer that the kind cannot work with, or none where it needs one.
        """
        return {}

    @classmethod
    def usual_tokenizer(cls) -> Tokenizer | None:
        """A tokenizer on "meta" to plan with; None where the kind reads nothing of its tokenizer."""
        return None

    def take_from(self, tokenizer: Tokenizer | None) -> None:
        """Copy the tensors of the tokenizer that the stage reads; here none."""

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise InputError unless the stage was trained on tokens of this tokenizer, as far as it knows."""
        if self.codebook_size != tokenizer.codebook_size:
            raise InputError(
                f"stage {self.name} is for a codebook of {self.codebook_size}, the tokenizer has "
                f"{tokenizer.codebook_size}"
            )
        if self.codebook not in (None, codebook_fingerprint(tokenizer.codebook)):
            raise InputError(f"stage {self.name} was trained on tokens of another codebook than the tokenizer's")

    @abstractmethod
    def logits(self, tokens: Tensor, labels: Tensor, plan: DrawPlan | None = None) -> Tensor:
        """Teacher forcing: logits of each position, which sees the true labels of the groups before its own.

        Args:
            tokens: the codebook's own, int64 (B, N) in [0, K).
            labels: int64 (B,) in [0, num_classes]; `num_classes` means unconditional.
            plan: steps, order and kept positions, from `plan`; the stage's defaults when None.

        Returns:
            (B, N, vocabulary); or, with support "cluster" of given labels, (B, N, size of the largest cluster) of the
            members of each position's cluster in order, see `member_logits`.

        Raises:
            InputError: an order that depends on what is drawn.
        """

    @abstractmethod
    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> Any:
        """The state of one call of the drawing loop.

        Args:
            labels: class labels, int64 (rows,); with guidance rows = 2B, the unconditional branch behind.
            given: labels of the given level, int64 (rows, N).
            plan: the groups that will be drawn.
        """

    @abstractmethod
    def hidden(self, state: Any, group: Group) -> Tensor:
        """States before the head at a group's positions: (rows, n, dim)."""

    def observe(self, state: Any, group: Group, labels: Tensor) -> None:
        """Read a group's labels, int64 (rows, n), −1 where still unknown; here they are not read."""

    # A kind may override what follows.

    def head(self, hidden: Tensor, given: Tensor | None) -> Tensor:
        """States (b, n, dim) and given labels (b, n) → float32 logits (b, n, outputs); here they are logits."""
        return hidden.float()

    def of_members(self, logits: Tensor, given: Tensor | None) -> Tensor:
        """Logits (…, outputs): of the given clusters' members, where a kind has computed those of all labels."""
        if self.members is None or logits.shape[-1] == self.outputs:
            return logits
        assert given is not None
        of_cluster = logits.gather(-1, self.members.table[given])
        return of_cluster.masked_fill(~self.members.inside[given], -torch.inf)

    @property
    def vocabulary(self) -> int:
        """Number of labels of the predicted level."""
        return self.config.output_vocab

    @property
    def outputs(self) -> int:
        """Number of logits of a position: of all labels, or of the largest given cluster."""
        return self.vocabulary if self.members is None else max(self.members.sizes)

    @property
    def layout(self) -> Layout:
        """The grids of an image's tokens."""
        return self.config.layout

    @property
    def num_tokens(self) -> int:
        """N, tokens per image."""
        return self.layout.num_tokens

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def own_settings(self) -> dict[str, Any]:
        """The fields of `Settings`, by name, that `configure` needs to make such a stage again."""
        return {}

    #: Whether it draws scale after scale and in no other way; kept labels are then taken when their scale comes.
    by_scales = False

    @property
    def possible_orders(self) -> tuple[Order, ...]:
        """Orders in which the stage can draw, its default first."""
        if self.by_scales:
            return ("scales",)
        orders = possible_orders(self.orders, self.layout)
        return orders if len(self.layout) in self.possible_steps else tuple(o for o in orders if o != "scales")

    @property
    def possible_steps(self) -> range:
        """Numbers of steps in which the stage can draw."""
        return range(len(self.layout), len(self.layout) + 1) if self.by_scales else range(1, 2)

    @property
    def default_steps(self) -> int:
        """The number of steps where settings leave it open: one for every eight positions, if that is possible."""
        return min(max(self.num_tokens // 8, self.possible_steps[0]), self.possible_steps[-1])

    def resolved(self, sampling: Sampling | None = None) -> Sampling:
        """`sampling`, or the stage's defaults, with steps and order filled in.

        Raises:
            InputError: steps or an order that the kind cannot take.
        """
        sampling, orders, scales = sampling or self.sampling, self.possible_orders, len(self.layout)
        order = sampling.order or orders[0]
        if order not in orders:
            can = ", ".join(orders)
            raise InputError(f"stage {self.name} cannot draw in the order {order}: it is {self.kind} and takes {can}")
        steps = sampling.steps or (scales if order == "scales" else self.default_steps)
        if steps not in (possible := self.possible_steps):
            can = f"{possible[0]}" if len(possible) == 1 else f"from {possible[0]} to {possible[-1]}"
            raise InputError(f"stage {self.name} cannot draw in {steps} steps: it is {self.kind} and takes {can}")
        if order == "scales" and steps != scales:
            raise InputError(f"stage {self.name} draws {scales} scales in the order scales: take {scales} steps")
        return dataclasses.replace(sampling, steps=steps, order=order)

    def check_kept(self, kept: Tensor) -> None:
        """Raise InputError if the kind cannot keep the labels at `kept`, bool (N,), and draw the others."""

    def plan(self, sampling: Sampling | None = None, kept: Tensor | None = None) -> DrawPlan:
        """The groups of positions that `sampling`, or the stage's defaults, draw in turn.

        Positions of `kept`, bool (N,), come first.

        Raises:
            InputError: steps or an order that the kind cannot take, or positions that it cannot keep.
        """
        if kept is not None:
            self.check_kept(kept)
        sampling = self.resolved(sampling)
        if self.by_scales:
            return DrawPlan(sampling, scale_groups(self.layout, kept))
        flags = None if kept is None else tuple(kept.tolist())
        return DrawPlan(sampling, plan_groups(sampling, self.layout, self.device, flags))

    def levels(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The codebook's own tokens (B, N) → φ(tokens), eq. 7, of the predicted and the given level, (B, N) both."""
        return (
            tokens if self.predicts is None else self.predicts_table[tokens],  # type: ignore[index]
            None if self.given is None else self.given_table[tokens],  # type: ignore[index]
        )

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The training loss, −log P of labels in nats (eqs. 4, 9, 10), of each position that the kind trains on.

        Arguments as those of `logits`. A label outside its given cluster cannot occur: both come from one token.

        Returns:
            float32 (B, N), or (n,) where some positions are not trained on.
        """
        return -self.log_prob(tokens, labels)

    def log_prob(
        self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """Exact log P of the predicted labels of `tokens`, given their coarser labels: float32 (B, N), in nats.

        The distribution is that of sampling at temperature 1 without guidance and filters, in the steps and the order
        of `sampling`. With support "full" it gives probability to labels outside the given cluster too. Positions of
        `kept` come first, and the others are conditioned on them. Raises InputError as `logits`.
        """
        return self.scores(tokens, labels, sampling, kept)[0]

    def scores(
        self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`log_prob`, and whether the most probable label is the true one: float32 and bool, (B, N) each."""
        targets, given = self.levels(tokens)
        columns = targets if self.members is None else self.members.index[targets]  # (B, N), of the true labels
        logits = self.of_members(self.logits(tokens, labels, self.plan(sampling, kept)).float(), given)
        losses = F.cross_entropy(logits.flatten(0, 1), columns.flatten(), reduction="none")  # (B · N,), eqs. 4, 9, 10
        return -losses.view(targets.shape), logits.argmax(-1) == columns

    def generate(
        self,
        labels: Tensor,
        random: Random,
        sampling: Sampling | None = None,
        given: Tensor | None = None,
        known: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Generate the labels of the stage's level. An image depends on its own seed and labels, not on its batch.

        The stage should be in evaluation mode: dropout drops in training mode.

        Args:
            labels: int64 (B,) in [0, num_classes]; `num_classes` means unconditional.
            random: a seed per image.
            sampling: the stage's defaults when None.
            given: int64 (B, N), labels of the level that the stage is given.
            known: int64 (B, N), labels of the predicted level to keep, −1 where to generate. The positions are the same
                in every image.
            on_step: called after each step with its number and the labels so far, int64 (B, N), −1 where unknown;
                they are overwritten by the next step.

        Returns:
            int64 (B, N) in [0, vocabulary).

        Raises:
            InputError: labels out of range, seeds, given or known labels that do not match, steps or an order that the
                kind cannot take, or positions that it cannot keep.
        """
        labels, given, known, plan = self._checked(labels, random, sampling, given, known)
        tokens = draw_all(self, labels, random, plan, given, known, on_step)
        with torch.inference_mode(False):  # no inference tensor: the caller may train on it
            return tokens.clone()

    def draw(
        self,
        labels: Tensor,
        random: Random,
        sampling: Sampling | None = None,
        given: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Like `generate`, one step at a time: yields what `on_step` is called with."""
        labels, given, known, plan = self._checked(labels, random, sampling, given, known)
        yield from draw_steps(self, labels, uniforms(self, random), plan, given, known)

    def _checked(
        self, labels: Tensor, random: Random, sampling: Sampling | None, given: Tensor | None, known: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, DrawPlan]:
        """Labels, given and known ones on the stage's device, and the plan. Raises InputError as `generate` does."""
        check_classes(labels, self.num_classes)
        shape = len(labels), self.num_tokens
        if len(random.seeds) != len(labels):
            raise InputError(f"{len(random.seeds)} seeds for {len(labels)} labels: one per image is needed")
        if (given is None) != (self.given is None):
            need = "labels of a coarser level: give them" if given is None else "the class label alone"
            raise InputError(f"stage {self.name} is given {need}")
        if given is not None and self.given is not None:
            check_labels("given", given, shape, 0, self.given.num_coarse)
        if known is not None:
            check_known(known, shape, self.vocabulary)
        given, known = (None if x is None else send(x, self.device) for x in (given, known))
        return send(labels, self.device), given, known, self.plan(sampling, None if known is None else known[0] >= 0)

    #: Whether this is a copy made by `pack`.
    packed = False

    def pack(self, compute: Compute) -> Stage:
        """The stage for sampling: its weights at this moment, converted once, in evaluation mode.

        Raises:
            InputError: what `compute` asks for does not exist on the stage's device.
        """
        return self

    def without_values(self, padded: bool = True) -> Stage:
        """A copy on "meta", by which `ctf.stages.cost` counts what the stage takes.

        Args:
            padded: as a GPU computes; else without products that only fill up tiles.
        """
        memo: dict[int, Any] = {id(level): level for level in (self.predicts, self.given)}  # maps stay on the CPU
        memo |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in self.parameters()}
        memo |= {id(b): b.to("meta") for b in self.buffers()}
        return copy.deepcopy(self, memo).eval()

    def weight_bytes(self, compute: Compute, positions: int | None = None) -> float:
        """Bytes of the packed weights that a step over `positions` reads, or over any number of them.

        Embeddings are left out: a step looks up a few of their rows.
        """
        return sum(weight.nbytes for weight in self.multiplied())

    def multiplied(self) -> list[nn.Parameter]:
        """All parameters but those of embeddings."""
        modules = [module for module in self.modules() if not isinstance(module, nn.Embedding)]
        return [parameter for module in modules for parameter in module.parameters(recurse=False)]

    def cache_bytes(self, rows: int, group: Group, compute: Compute) -> int:
        """Bytes of the filled part of a cache that a group's step reads; here there is none."""
        return 0

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, as `dtype`, maps and settings to one safetensors file; `load_stage` reads it."""
        tensors = {
            name: tensor.to(torch.float32 if name.startswith(self.float32) else dtype)
            for name, tensor in self.state_dict().items()
        }
        metadata = {
            "ctf": "stage",
            "kind": self.kind,
            "name": self.name,
            "support": self.support,
            "codebook": self.codebook or "",
            "sampling": json.dumps(self.sampling.for_file()),
            "config": json.dumps(dataclasses.asdict(self.config)),
        }
        for level in ("predicts", "given"):
            if (coarse_map := getattr(self, level)) is not None:
                tensors[level] = coarse_map.fine_to_coarse.to(torch.int32)
                metadata[level] = json.dumps({"method": coarse_map.method, "seed": coarse_map.seed})
        save_tensors(path, tensors, metadata)


def bits(nats: float) -> float:
    """Nats to bits."""
    return nats / math.log(2)
