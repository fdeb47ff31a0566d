"""VAR's models (github.com/FoundationVision/VAR): its tokenizer and its transformers into ours.

Sizes are read off names and shapes. The sides of the scales are in the transformer's file only.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError, shortened
from ctf.interop.translation import Translation, convolutional_sizes, count, renamed, shape
from ctf.layout import Layout
from ctf.models.next_scale_config import NextScaleConfig
from ctf.sampling.settings import Sampling
from ctf.stages.next_scale import NextScale
from ctf.tokenizer.config import MultiScaleConfig
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.multi_scale import MultiScaleTokenizer
from ctf.weights import name_of, read_state_dict

#: Our names of the tokenizer's parameters to VAR's, applied in order, once the decoder's levels are counted from the
#: other end.
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

#: Our names of the transformer's parameters to VAR's, applied in order.
NAMES = {
    r"^label_embedding\.": "class_emb.",
    r"^start$": "pos_start",
    r"^position_embedding$": "pos_1LC",
    r"^vector_embedding\.": "word_embed.",
    r"^scale_embedding\.": "lvl_embed.",
    r"^head_modulation\.": "head_nm.ada_lin.1.",
    r"^modulation\.": "shared_ada_lin.1.",
    r"\.modulation\.": ".ada_lin.1.",
    r"\.offset$": ".ada_gss",
    r"\.attention\.": ".attn.",
    r"\.scale$": ".scale_mul_1H11",
    r"\.qkv\.": ".mat_qkv.",
    r"\.out\.": ".proj.",
    r"\.up\.": ".fc1.",
    r"\.down\.": ".fc2.",
}
SCALES, MASK = "lvl_1L", "attn_bias_for_masking"
TRANSLATION = Translation(
    "VAR",
    lambda name: [renamed(name, NAMES)],
    re.compile(rf"{SCALES}|{MASK}|blocks\.\d+\.attn\.zero_k_bias"),
)
#: VAR's settings for FID: its cfg 1.5, reached at the last scale, top-k 900, top-p 0.96.
SAMPLING = Sampling(cfg_scale=2.5, cfg_schedule="steps", top_k=900, top_p=0.96)


def load_tokenizer(
    path_or_state_dict: str | Path | Mapping[str, Any],
    scales: Sequence[int] | None = None,
    *,
    allow_namespace: bool = False,
) -> MultiScaleTokenizer:
    """VAR's tokenizer, of the released or other widths, float32 and in evaluation mode.

    Args:
        path_or_state_dict, allow_namespace: as for `ctf.interop.llamagen.load_gpt`; the weights lie bare, as in
            `vae_ch160v4096z32.pth`, or within a training checkpoint of VAR.
        scales: side of each scale. By default VAR's for 256 × 256 pixels, unless the file says that it has not ten.

    Raises:
        InputError: no such file, truncated, refused by safe unpickling, not such a tokenizer, or scales unknown.
    """
    state = read_state_dict(path_or_state_dict, allow_namespace=allow_namespace, within=("trainer", "vae_local"))
    where = name_of(path_or_state_dict)
    if scales is None:
        scales = MultiScaleConfig.scales
        if USAGE in state and len(state[USAGE]) != len(scales):
            raise InputError(f"{where} has {len(state[USAGE])} scales, not VAR's {len(scales)}: give their sides")
    config = _tokenizer_config(state, tuple(scales), where)
    tokenizer = MultiScaleTokenizer(config)
    tokenizer.load_state_dict(_tokenizer_translation(config).ours(tokenizer, state, where))
    return tokenizer.eval()


def load_var(
    path_or_state_dict: str | Path | Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    predicts: CoarseMap | None = None,
    name: str = "baseline",
    allow_namespace: bool = False,
) -> NextScale:
    """A transformer of VAR's as a stage, float32 and in evaluation mode, with VAR's settings of sampling for FID.

    Args:
        path_or_state_dict, allow_namespace: as for `load_tokenizer`; bare as `var_d16.pth`.
        tokenizer: a multi-scale one, whose codewords and convolutions the stage reads.
        predicts: the level, for a transformer over coarse labels.
        name: of the stage.

    Raises:
        InputError: no such file, truncated, refused by safe unpickling, not such a transformer, or one of another
            tokenizer or level.
    """
    state = read_state_dict(path_or_state_dict, allow_namespace=allow_namespace, within=("trainer", "var_wo_ddp"))
    where = name_of(path_or_state_dict)
    of_tokenizer = NextScale.settings_of(tokenizer)
    assert isinstance(tokenizer, MultiScaleTokenizer)
    config = dataclasses.replace(_transformer_config(state, where), convolutions=of_tokenizer["convolutions"])
    labels = tokenizer.codebook_size if predicts is None else predicts.num_coarse
    needed, held = (labels, of_tokenizer["codeword_dim"]), (config.output_vocab, config.codeword_dim)
    if needed != held:
        raise InputError(
            f"{where} predicts {held[0]} labels from vectors of {held[1]} numbers, the tokenizer and its level have "
            f"{needed[0]} and {needed[1]}: give the parts of one model"
        )
    if (scales := tokenizer.quantizer.scales) != config.layout:
        raise InputError(f"{where} has the scales {config.layout}, the tokenizer {scales}: open it with the file's")
    with torch.device("meta"):  # large ones would take a minute to initialize, for nothing
        stage = NextScale(config, name=name, predicts=predicts, sampling=SAMPLING)
    stage.transformer.load_state_dict(TRANSLATION.ours(stage.transformer, state, where), assign=True)
    stage.take_from(tokenizer)
    return stage.eval()


def scales_of(path_or_state_dict: str | Path | Mapping[str, Any], allow_namespace: bool = False) -> list[int]:
    """Side of each scale of a transformer's file. Raises InputError as `load_var`."""
    state = read_state_dict(path_or_state_dict, allow_namespace=allow_namespace, within=("trainer", "var_wo_ddp"))
    return [rows for rows, _ in _transformer_config(state, name_of(path_or_state_dict)).layout]


def _tokenizer_translation(config: MultiScaleConfig) -> Translation:
    last = len(config.channel_multipliers) - 1

    def official(name: str) -> list[str]:
        """VAR numbers the decoder's levels by resolution, the finest 0; we in the order in which they are applied."""
        name = re.sub(r"^decoder\.levels\.(\d+)", lambda level: f"decoder.up.{last - int(level[1])}", name)
        return [renamed(name, TOKENIZER_NAMES)]

    return Translation("VAR", official, re.compile(re.escape(USAGE)))


def _tokenizer_config(state: Mapping[str, Tensor], scales: tuple[int, ...], where: str) -> MultiScaleConfig:
    """The settings in names and shapes. Raises InputError: not a tokenizer of VAR's, or with other convolutions."""
    if "encoder.down.0.block.0.conv1.weight" not in state:
        what = "VAR's transformer" if "word_embed.weight" in state else f"another model ({shortened([*state], 3)})"
        raise InputError(f"{where} is {what}, not VAR's tokenizer: it has no encoder.down")
    convolutions = sorted({name.rpartition(".")[0] for name in state if name.startswith("quantize.quant_resi.")})
    if convolutions != [f"quantize.quant_resi.qresi_ls.{number}" for number in range(4)]:
        raise InputError(
            f"{where}: the scales share {shortened(convolutions, 3) or 'no convolution'}; ctf reads four, as VAR's"
        )
    sizes = convolutional_sizes(state, "encoder.down", "block", "decoder.up.0.block", where)
    return MultiScaleConfig(**sizes, z_channels=sizes["codebook_dim"], scales=scales)


def _transformer_config(state: Mapping[str, Tensor], where: str) -> NextScaleConfig:
    """The settings in names and shapes. Raises InputError: another model, or one without normalised queries."""
    if "word_embed.weight" not in state:
        what = (
            "VAR's tokenizer" if "quantize.embedding.weight" in state else f"another model ({shortened([*state], 3)})"
        )
        raise InputError(f"{where} is {what}, not VAR's transformer: it has no word_embed")
    if "blocks.0.attn.scale_mul_1H11" not in state:
        raise InputError(f"{where} has no blocks.0.attn.scale_mul_1H11: ctf reads transformers with normalised queries")
    dim, codeword_dim = shape(state, "word_embed.weight", where)
    heads = shape(state, "blocks.0.attn.scale_mul_1H11", where)[1]
    if dim % heads:
        raise InputError(f"{where}: {heads} heads do not fit a width of {dim}")
    return NextScaleConfig(
        output_vocab=shape(state, "head.weight", where)[0],
        layout=_layout(state, where),
        num_classes=shape(state, "class_emb.weight", where)[0] - 1,  # the last is unconditional
        layers=count(state, "blocks."),
        heads=heads,
        dim=dim,
        codeword_dim=codeword_dim,
        shared_modulation="shared_ada_lin.1.weight" in state,
    )


def _layout(state: Mapping[str, Tensor], where: str) -> Layout:
    """The scales, from that of each position."""
    scale = state.get(SCALES, torch.zeros(0)).flatten()
    sizes = scale.long().clamp(min=0).bincount().tolist()
    sides = [math.isqrt(size) for size in sizes]
    in_order = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    if not sizes or [side**2 for side in sides] != sizes or not torch.equal(scale, in_order):
        raise InputError(f"{where} has no table {SCALES} of square scales, one after the other: it is incomplete")
    return Layout.square(*sides)
