"""The types of stages by name, and stages made from settings or read from files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.files import contents_of_kind
from ctf.layout import Layout, with_layout
from ctf.models.config import Compute
from ctf.plugins import import_plugins, load_object
from ctf.sampling.random import Random
from ctf.sampling.settings import Sampling
from ctf.stages.any_order import AnyOrder
from ctf.stages.autoregressive import Autoregressive
from ctf.stages.masked import Masked
from ctf.stages.next_scale import NextScale
from ctf.stages.settings import KindSettings
from ctf.stages.stage import Stage
from ctf.tokenizer.interface import Tokenizer

#: Types of stages by the name that files and `--kind` use.
KINDS: dict[str, type[Stage]] = {kind.kind: kind for kind in (Autoregressive, Masked, AnyOrder, NextScale)}


def register_kind(kind: type[Stage]) -> type[Stage]:
    """Register a type of stage under its `kind`; a class decorator."""
    KINDS[kind.kind] = kind
    return kind


def find_kind(name: str) -> type[Stage]:
    """The kind called `name`, or of a user's file: "file.py:Class". Raises InputError if there is none."""
    if ":" in name:
        found = load_object(name)
        if not (isinstance(found, type) and issubclass(found, Stage) and "kind" in vars(found)):
            raise InputError(
                f"{name} is no kind of stage: name a subclass of ctf.stages.Stage with a `kind` of its own"
            )
        return register_kind(found)
    if name not in KINDS:
        import_plugins()
    if name not in KINDS:
        raise InputError(
            f"kind {name!r} of stage does not exist: choose one of {', '.join(KINDS)}, or file.py:Class; a model of a "
            "kind of yours opens where $CTF_PLUGINS names the file that registers it"
        )
    return KINDS[name]


def kind_settings(kind: str, **settings: Any) -> KindSettings:
    """A kind's own settings. Raises InputError: there is no such kind, or it has no such setting."""
    chosen = find_kind(kind)
    if unknown := settings.keys() - {field.name for field in dataclasses.fields(chosen.Settings)}:
        raise InputError(f"stages of kind {chosen.kind} have no setting {min(unknown)}: leave it out")
    return chosen.Settings(**settings)


def new_stage(
    kind: str,
    size: str,
    *,
    name: str,
    layout: Layout,
    num_classes: int,
    codebook_size: int,
    predicts: CoarseMap | None = None,
    given: CoarseMap | None = None,
    support: Any = "cluster",
    sampling: Sampling | None = None,
    codebook: str | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | None = None,
    **settings: Any,
) -> Stage:
    """A stage of a named size with random weights.

    `settings` are fields of the kind's `Config` and `Settings`, such as `dropout`. `tokenizer` made the tokens; only
    some kinds read it. Weights are drawn on `device`, where the stage then is: a CPU takes many seconds for XL,
    and a GPU draws other numbers from the same seed.

    Raises:
        InputError: no such kind or size, or parts that do not belong together.
    """
    for coarse_map in (predicts, given):
        if coarse_map is not None and coarse_map.num_fine != codebook_size:
            raise InputError(
                f"the tokens are of a codebook of {codebook_size}, the coarse map is for {coarse_map.num_fine}: "
                "cluster the codebook that made the tokens"
            )
    chosen = find_kind(kind)
    config = chosen.configure(
        size,
        vocabulary=codebook_size if predicts is None else predicts.num_coarse,
        given=0 if given is None else given.num_coarse,
        layout=layout,
        num_classes=num_classes,
        **chosen.settings_of(tokenizer),
        **settings,
    )
    facts: dict[str, Any] = {"predicts": predicts, "given": given, "support": support, "sampling": sampling}
    with device or nullcontext():
        stage = chosen(config, name=name, codebook=codebook, **facts)
    stage.take_from(tokenizer)  # it reads maps, which are on the CPU
    return stage if device is None else stage.to(device)


class WithoutRandomStart(TorchFunctionMode):
    """While entered, `torch.nn.init` draws no random numbers: for weights that a file replaces.

    Those of XL take seconds. "meta" would leave buffers without values.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") not in ("normal_", "uniform_", "kaiming_uniform_"):
            return function(*args, **(kwargs or {}))
        if args:  # a method, called by `trunc_normal_`, which draws until all values are within its limits
            return args[0].detach().zero_()
        return kwargs["tensor"]


def load_stage(path: str | Path) -> Stage:
    """Read what `Stage.save` wrote, of any kind; float32 weights, in evaluation mode.

    Raises:
        InputError: missing, truncated, not a stage, of an unknown kind, with NaN in it, or written by an incompatible
            version.
    """
    with contents_of_kind(path, "stage") as (tensors, metadata):
        if ":" in metadata["kind"]:
            raise InputError("the file names code to run as its kind")
        kind = find_kind(metadata["kind"])
        maps = {}
        for level in ("predicts", "given"):
            if level in tensors:
                origin = json.loads(metadata[level])
                maps[level] = CoarseMap(tensors.pop(level), origin["method"], origin["seed"], metadata["codebook"])
        with WithoutRandomStart():
            stage = kind(
                kind.Config(**with_layout(json.loads(metadata["config"]))),
                name=metadata["name"],
                support=metadata["support"],  # type: ignore[arg-type]
                sampling=Sampling.of_file(json.loads(metadata["sampling"])),
                codebook=metadata["codebook"] or None,
                **maps,
            )
        stage.load_state_dict(tensors)
    return stage.eval()


def generate_tokens(
    stage: Stage,
    labels: Tensor,
    seeds: Sequence[int] | Tensor | None = None,
    given: Tensor | None = None,
    place: int = 0,
    **sampling: Any,
) -> Tensor:
    """Generate the labels of a stage's level: (B,) class labels → int64 (B, N).

    Args:
        stage: of any kind. To generate several batches, pack it once: `stage.pack(Compute())`.
        labels: int64 (B,) in [0, num_classes]; `num_classes` means unconditional.
        seeds: one integer per image; fresh ones from torch's global generator when None.
        given: int64 (B, N), for a stage that is given labels of a coarser level.
        place: the stage's place in its pipeline, from 0: stages use different random numbers with the same seeds.
        sampling: fields of `Sampling`; by default nothing is filtered or guided.

    Raises:
        InputError: a label out of range, seeds or given labels that do not match, or a setting without meaning.
    """
    settings = Sampling.of(sampling)
    random = Random(torch.randint(2**63 - 1, (len(labels),)) if seeds is None else seeds, place)
    return stage.pack(Compute("float32")).generate(labels, random, settings, given)
