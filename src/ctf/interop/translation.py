"""State dicts of other projects: into our models and back, by one table of names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctf.errors import InputError, shortened
from ctf.files import check_finite


@dataclass(frozen=True)
class Translation:
    """Between the parameters of one of our models and another project's state dict.

    Attributes:
        project: whose layout it is, for errors: "LlamaGen".
        official: our name of a parameter → theirs: several, where ours is the concatenation of theirs.
        buffers: names of their entries that are no parameters.
    """

    project: str
    official: Callable[[str], list[str]]
    buffers: re.Pattern[str]

    def ours(self, model: nn.Module, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """`state` as a float32 state dict of `model`; every entry must be used, and no other be needed.

        Raises:
            InputError: it names the first entries that lack, are too many, of another shape, or not finite.
        """
        wanted = {name: self.official(name) for name in model.state_dict()}
        known = {name for parts in wanted.values() for name in parts}
        if missing := [name for name in sorted(known) if name not in state]:
            raise InputError(
                f"{where} lacks {shortened(missing, 3)}: it is incomplete or not in {self.project}'s layout"
            )
        if unexpected := [name for name in state if name not in known and not self.buffers.fullmatch(name)]:
            raise InputError(
                f"{where} holds {shortened(unexpected, 3)}, which {self.project}'s layout does not have at this size"
            )
        result = {}
        for name, ours in model.state_dict().items():
            parts = [state[part] for part in wanted[name]]
            shape = (ours.shape[0] // len(parts), *ours.shape[1:])
            for part, tensor in zip(wanted[name], parts, strict=True):
                if tensor.shape != shape or not tensor.is_floating_point():
                    found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                    raise InputError(f"{where}: {part} is {found}, the other shapes call for floats {list(shape)}")
            fused = torch.cat(parts) if len(parts) > 1 else parts[0]
            result[name] = fused.to(torch.float32, copy=True)  # never the caller's own tensors, nor a mapped file
        check_finite(where, result)
        return result

    def theirs(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of `model` under their names."""
        state: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            parts = self.official(name)
            state.update(zip(parts, tensor.chunk(len(parts)), strict=True))
        return state

    def check_exportable(self, config: Any, held: Any) -> None:
        """InputError unless the settings that can be read back from the exported weights are those of the model."""
        lost = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(held, f.name)]
        if lost:
            settings = ", ".join(f"{name}={getattr(config, name)}" for name in lost)
            raise InputError(f"{self.project} has no model with {settings}: its layout cannot hold this one")


def renamed(name: str, names: Mapping[str, str | Callable[[re.Match[str]], str]]) -> str:
    """`name` after each replacement of a regular expression, in order."""
    for ours, theirs in names.items():
        name = re.sub(ours, theirs, name)
    return name


def shape(state: Mapping[str, Tensor], name: str, where: str) -> torch.Size:
    """The shape of an entry that has at least two axes, all of at least 1. Raises InputError: there is none."""
    if name not in state or state[name].ndim < 2 or not state[name].numel():
        raise InputError(f"{where} lacks {name}: it is incomplete or of another layout")
    return state[name].shape


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow `prefix` in the names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def convolutional_sizes(
    state: Mapping[str, Tensor], levels: str, blocks: str, decoder_blocks: str, where: str
) -> dict[str, Any]:
    """Settings of a `TokenizerConfig` that are in names and shapes, from the names of the encoder's levels, of the
    residual blocks in them, and of those in a level of the decoder."""
    base = shape(state, "encoder.conv_in.weight", where)[0]
    first = [f"{levels}.{level}.{blocks}.0.conv1.weight" for level in range(count(state, f"{levels}."))]
    if not first:
        raise InputError(
            f"{where} has no {levels}.0: it is a tokenizer of another layout, of which the codebook alone can be "
            "opened, as FILE:quantize.embedding.weight"
        )
    size, dim = shape(state, "quantize.embedding.weight", where)
    return {
        "base_channels": base,
        "channel_multipliers": tuple(shape(state, name, where)[0] // base for name in first),
        "encoder_blocks": count(state, f"{levels}.0.{blocks}."),
        "decoder_blocks": count(state, f"{decoder_blocks}."),
        "codebook_size": size,
        "codebook_dim": dim,
    }
