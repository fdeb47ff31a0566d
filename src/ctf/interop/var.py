"""VAR's models (github.com/FoundationVision/VAR): its tokenizer's file into ours and back; its transformers beside.

Levels, blocks and channels are read off names and shapes. The sides of the scales are in no shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.interop.translation import Translation, count, few, renamed, shape
from ctf.interop.var_transformer import load_var as load_var
from ctf.interop.var_transformer import scales_of as scales_of
from ctf.interop.var_transformer import size_name as size_name
from ctf.interop.var_transformer import var_state as var_state
from ctf.interop.var_weights import read_part
from ctf.tokenizer.config import MultiScaleConfig
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.multi_scale import MultiScaleTokenizer
from ctf.weights import name_of

#: Our names to VAR's, applied in order, once the decoder's levels are counted from the other end.
TOKENIZER_NAMES = {
    r"^encoder\.levels\.": "encoder.down.",
    r"\.blocks\.": ".block.",
    r"\.attention\.": ".attn.",
    r"^(encoder.*)\.resize\.": r"\1.downsample.",
    r"^(decoder.*)\.resize\.": r"\1.upsample.",
    r"\.middle\.0\.": ".mid.block_1.",
    r"\.middle\.1\.": ".mid.attn_1.",
    r"\.middle\.2\.": ".mid.block_2.",
    r"\.shortcut\.": ".nin_shortcut.",
    r"\.proj\.": ".proj_out.",
    r"^quantizer\.residual\.convolutions\.": "quantize.quant_resi.qresi_ls.",
    r"^quantizer\.": "quantize.embedding.",
}

#: How often each scale used each codeword in training, (S, K): the only trace of the number of scales.
USAGE = "quantize.ema_vocab_hit_SV"


def load_tokenizer(
    path_or_state_dict: str | Path | Mapping[str, Any],
    scales: Sequence[int] | None = None,
    *,
    allow_namespace: bool = False,
) -> MultiScaleTokenizer:
    """VAR's tokenizer, of the released or other widths, float32 and in evaluation mode.

    Args:
        path_or_state_dict: a `torch.save` or safetensors file, "owner/name:file" on the Hugging Face Hub, or a state
            dict, bare as `vae_ch160v4096z32.pth` or within a training checkpoint of VAR.
        scales: side of each scale. By default VAR's for 256 × 256 pixels, unless the file says that it has not ten.
        allow_namespace: accept `argparse.Namespace` beside the weights, and nothing else that is not plain data.

    Raises:
        InputError: no such file, truncated, refused by safe unpickling, not such a tokenizer, or scales unknown.
    """
    state = read_part(path_or_state_dict, "vae_local", allow_namespace)
    where = name_of(path_or_state_dict)
    if scales is None:
        scales = MultiScaleConfig.scales
        if USAGE in state and len(state[USAGE]) != len(scales):
            raise InputError(f"{where} has {len(state[USAGE])} scales, not VAR's {len(scales)}: give their sides")
    config = _config(state, tuple(scales), where)
    tokenizer = MultiScaleTokenizer(config)
    tokenizer.load_state_dict(_translation(config).ours(tokenizer, state, where))
    return tokenizer.eval()


def tokenizer_state(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights under VAR's names, all that its class loads: `torch.save` makes a file of VAR's of them.

    Raises:
        InputError: a tokenizer of another family, or with a setting that VAR's lacks.
    """
    if not isinstance(tokenizer, MultiScaleTokenizer):
        raise InputError(f"VAR's layout holds multi-scale tokenizers only, not one of the family {tokenizer.family}")
    config = tokenizer.config
    translation = _translation(config)
    state = translation.theirs(tokenizer)
    translation.check_exportable(config, _config(state, config.scales, "the tokenizer"))
    return {**state, USAGE: torch.zeros(len(config.scales), config.codebook_size)}


def _translation(config: MultiScaleConfig) -> Translation:
    last = len(config.channel_multipliers) - 1

    def official(name: str) -> list[str]:
        """VAR numbers the decoder's levels by resolution, the finest 0; we in the order in which they are applied."""
        name = re.sub(r"^decoder\.levels\.(\d+)", lambda level: f"decoder.up.{last - int(level[1])}", name)
        return [renamed(name, TOKENIZER_NAMES)]

    return Translation("VAR", official, re.compile(re.escape(USAGE)))


def _config(state: Mapping[str, Tensor], scales: tuple[int, ...], where: str) -> MultiScaleConfig:
    """The settings in names and shapes. Raises InputError: not a tokenizer of VAR's, or with other convolutions."""
    if "encoder.down.0.block.0.conv1.weight" not in state:
        what = "VAR's transformer" if "word_embed.weight" in state else f"another model ({few(list(state))})"
        raise InputError(f"{where} is {what}, not VAR's tokenizer: it has no encoder.down")
    convolutions = sorted({name.rpartition(".")[0] for name in state if name.startswith("quantize.quant_resi.")})
    if convolutions != [f"quantize.quant_resi.qresi_ls.{number}" for number in range(4)]:
        raise InputError(f"{where}: the scales share {few(convolutions) or 'no convolution'}; ctf reads four, as VAR's")
    base = shape(state, "encoder.conv_in.weight", where)[0]
    levels = range(count(state, "encoder.down."))
    widths = [shape(state, f"encoder.down.{level}.block.0.conv1.weight", where)[0] for level in levels]
    size, dim = shape(state, "quantize.embedding.weight", where)
    return MultiScaleConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        encoder_blocks=count(state, "encoder.down.0.block."),
        decoder_blocks=count(state, "decoder.up.0.block."),
        z_channels=dim,
        codebook_size=size,
        codebook_dim=dim,
        scales=scales,
    )
