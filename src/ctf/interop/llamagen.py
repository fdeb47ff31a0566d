"""LlamaGen's checkpoints: its class-conditional GPTs and its tokenizers, into our models and back.

Files hold weights only. Sizes are read off the shapes; the number of heads and the layout are in no shape, so they
come from `MODEL_SIZES` and from the caller. One table per model translates our names to LlamaGen's; loading and
exporting both go through it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctf.errors import InputError, shortened
from ctf.files import atomic_path, save_tensors
from ctf.interop.translation import Translation, convolutional_sizes, count, renamed, shape
from ctf.layout import Layout
from ctf.models.config import MODEL_SIZES, TransformerConfig
from ctf.models.rotary import rotary_table
from ctf.sampling.settings import Sampling
from ctf.stages.autoregressive import Autoregressive
from ctf.stages.stage import Stage
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.vq_tokenizer import VQTokenizer
from ctf.weights import name_of, read_state_dict

#: Our names to LlamaGen's, applied in order.
GPT_NAMES = {
    r"^label_embedding\.": "cls_embedding.embedding_table.",
    r"^token_embedding\.": "tok_embeddings.",
    r"^blocks\.": "layers.",
    r"\.attention\.qkv\.": ".attention.wqkv.",
    r"\.attention\.out\.": ".attention.wo.",
    r"\.ffn\.": ".feed_forward.",
    r"^head\.": "output.",
}
TOKENIZER_NAMES = {
    r"\.levels\.": ".conv_blocks.",
    r"\.blocks\.": ".res.",
    r"\.attention\.": ".attn.",
    r"^(encoder.*)\.resize\.": r"\1.downsample.",
    r"^(decoder.*)\.resize\.": r"\1.upsample.",
    r"\.middle\.": ".mid.",
    r"\.shortcut\.": ".nin_shortcut.",
    r"\.proj\.": ".proj_out.",
    r"^quantizer\.": "quantize.embedding.",
}

#: LlamaGen's own guidance where it is not 2 (its sampler's temperature is 1, without filters).
CFG_SCALES = {"XL": 1.75}

#: Entries that are no parameters: positions and caches of generation, and the record of recently used codewords.
GPT_BUFFERS = re.compile(r"freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\.[kv]_cache")
TOKENIZER_BUFFERS = re.compile(r"quantize\.codebook_used")
GPT = Translation("LlamaGen", lambda name: official_names(name, GPT_NAMES), GPT_BUFFERS)
TOKENIZER = Translation("LlamaGen", lambda name: official_names(name, TOKENIZER_NAMES), TOKENIZER_BUFFERS)
CODEBOOK_USED = 65_536


def load_gpt(
    path_or_state_dict: str | Path | Mapping[str, Any],
    num_heads: int | None = None,
    *,
    layout: Layout = Layout((16, 16)),
    name: str = "baseline",
    allow_namespace: bool = False,
) -> Autoregressive:
    """A class-conditional LlamaGen GPT as a stage, float32 and in evaluation mode, with LlamaGen's sampling settings.

    Args:
        path_or_state_dict: a `torch.save` or safetensors file, "owner/name:file" on the Hugging Face Hub, or a state
            dict; the weights lie bare or under "model", "module" or "state_dict", in float32, float16 or bfloat16.
            Prefixes that DDP, FSDP and torch.compile put before names are left out.
        num_heads: attention heads; by default those of the size in `MODEL_SIZES` with this depth and width.
        layout: where the tokens lie: 16 × 16 for 256 pixels, 24 × 24 for 384 with VQ-16.
        name: of the stage.
        allow_namespace: accept `argparse.Namespace` beside the weights, and nothing else that is not plain data.

    Raises:
        InputError: no such file, truncated, refused by safe unpickling, not such a GPT, or heads unknown.
    """
    state = read_state_dict(path_or_state_dict, allow_namespace=allow_namespace)
    where = name_of(path_or_state_dict)
    _check_kind(state, "tok_embeddings.weight", "GPT", where)
    config = _gpt_config(state, num_heads, layout, where)
    sampling = Sampling(cfg_scale=CFG_SCALES.get(config.size_name, 2.0))
    with torch.device("meta"):  # the 3B model would take a minute to initialize, for nothing
        stage = Autoregressive(config, name=name, sampling=sampling)
    transformer = stage.transformer
    transformer.load_state_dict(GPT.ours(transformer, state, where), assign=True)
    transformer.rotary = rotary_table(config.layout, config.head_dim, config.rope_base)
    return stage.eval()


def load_tokenizer(
    path_or_state_dict: str | Path | Mapping[str, Any], *, ema: bool = False, allow_namespace: bool = False
) -> VQTokenizer:
    """A LlamaGen tokenizer, VQ-16, VQ-8 or of other widths, as a `VQTokenizer`, float32 and in evaluation mode.

    Args:
        path_or_state_dict, allow_namespace: as for `load_gpt`.
        ema: take the moving average ("ema") of the weights that tokenizer training stores beside them.

    Raises:
        InputError: no such file, truncated, refused by safe unpickling, or not such a tokenizer.
    """
    state = read_state_dict(path_or_state_dict, ema=ema, allow_namespace=allow_namespace)
    where = name_of(path_or_state_dict)
    _check_kind(state, "quantize.embedding.weight", "tokenizer", where)
    tokenizer = VQTokenizer(_tokenizer_config(state, where))
    tokenizer.load_state_dict(TOKENIZER.ours(tokenizer, state, where))
    return tokenizer.eval()


def export_gpt(stage: Stage, path: str | Path) -> None:
    """Write `stage` in LlamaGen's layout: `{"model": state_dict}` for torch.load, bare for *.safetensors.

    Raises:
        InputError: the stage is of another kind, or has a setting that LlamaGen's GPT lacks.
    """
    if not isinstance(stage, Autoregressive):
        raise InputError(f"stage {stage.name} is {stage.kind}: LlamaGen's layout holds autoregressive ones only")
    state, c = GPT.theirs(stage.transformer), stage.config
    if c.layout != Layout.square(math.isqrt(c.num_tokens)):
        raise InputError(f"stage {stage.name} has tokens of {c.layout.words}: LlamaGen's GPT holds one square of them")
    held = _gpt_config(state, c.heads, c.layout, str(path))
    same = dataclasses.replace(c, dropout=held.dropout, class_dropout=held.class_dropout, kv_heads=held.kv_heads)
    GPT.check_exportable(same, held)
    _write(state, path)


def export_tokenizer(tokenizer: VQTokenizer, path: str | Path) -> None:
    """Write `tokenizer` in LlamaGen's layout: `{"model": state_dict}` for torch.load, bare for *.safetensors.

    Raises:
        InputError: the tokenizer has a setting that LlamaGen's lacks.
    """
    state = TOKENIZER.theirs(tokenizer)
    TOKENIZER.check_exportable(tokenizer.config, _tokenizer_config(state, str(path)))
    # LlamaGen loads strictly, so the record of recently used codewords must be there, be it empty.
    _write({**state, "quantize.codebook_used": torch.zeros(CODEBOOK_USED)}, path)


def official_names(name: str, names: Mapping[str, str]) -> list[str]:
    """LlamaGen's names of our parameter `name`: three for the tokenizer's fused q, k, v, else one."""
    name = renamed(name, names)
    return [name.replace(".qkv.", f".{part}.") for part in "qkv"] if ".qkv." in name else [name]


def _gpt_config(state: Mapping[str, Tensor], num_heads: int | None, layout: Layout, where: str) -> TransformerConfig:
    vocab, dim = shape(state, "tok_embeddings.weight", where)
    layers = count(state, "layers.")
    known = {(depth, width): heads for depth, heads, width in MODEL_SIZES.values()}
    heads = num_heads or known.get((layers, dim))
    if heads is None:
        raise InputError(
            f"{where} has {layers} layers of width {dim}, which is none of LlamaGen's sizes, and the number of heads "
            "is not in the file: give num_heads"
        )
    rows = shape(state, "layers.0.attention.wqkv.weight", where)[0]
    kv_heads, rest = divmod((rows - dim) * heads, 2 * dim)  # rows = (heads + 2·kv_heads) · dim/heads
    if rest or kv_heads < 1 or dim % heads:
        raise InputError(f"{where}: {heads} heads do not fit an attention of {rows} × {dim}: give another num_heads")
    return TransformerConfig(
        input_vocab=vocab,
        output_vocab=vocab,
        layout=layout,
        num_classes=shape(state, "cls_embedding.embedding_table.weight", where)[0] - 1,  # the last is unconditional
        layers=layers,
        heads=heads,
        dim=dim,
        kv_heads=None if kv_heads == heads else kv_heads,
    )


def _tokenizer_config(state: Mapping[str, Tensor], where: str) -> TokenizerConfig:
    sizes = convolutional_sizes(state, "encoder.conv_blocks", "res", "decoder.conv_blocks.0.res", where)
    return TokenizerConfig(**sizes, z_channels=shape(state, "encoder.conv_out.weight", where)[0])


def _check_kind(state: Mapping[str, Tensor], mark: str, wanted: str, where: str) -> None:
    """InputError unless `state` has the entry `mark` of the `wanted` kind, naming what it is instead."""
    if any(name.startswith(("cls_embedding.cap_proj.", "cls_embedding.uncond_embedding")) for name in state):
        raise InputError(f"{where} is a text-conditional (t2i) GPT: ctf has class labels, so give a c2i checkpoint")
    if any(name.startswith("quantize.quant_resi.") for name in state):
        raise InputError(f"{where} is VAR's tokenizer: `ctf convert var` makes a file of it that opens here")
    if mark in state:
        return
    if "tok_embeddings.weight" in state:
        raise InputError(f"{where} is a GPT, not a tokenizer: load it with load_gpt")
    if "quantize.embedding.weight" in state:
        raise InputError(f"{where} is a tokenizer, not a GPT: load it with load_tokenizer")
    raise InputError(f"{where} is not a LlamaGen {wanted}: it has no {mark} (it begins with {shortened([*state], 3)})")


def _write(state: Mapping[str, Tensor], path: str | Path) -> None:
    if Path(path).suffix == ".safetensors":
        save_tensors(path, state)
    else:
        with atomic_path(path) as temporary:
            # Cloned, since torch.save writes the whole storage behind a view.
            torch.save({"model": {name: tensor.detach().cpu().clone() for name, tensor in state.items()}}, temporary)
