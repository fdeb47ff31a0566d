"""`ctf convert …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctf.layout import Layout


def llamagen(
    out: str,
    tokenizer: str,
    gpt: str,
    num_heads: int | None = None,
    layout: Layout = Layout((16, 16)),
    allow_namespace: bool = False,
) -> None:
    """Turn LlamaGen's tokenizer and class-conditional GPT into a model folder: a baseline.

    Example:
        ctf convert llamagen --tokenizer vq_ds16_c2i.pt --gpt c2i_B_256.pt --out runs/llamagen-b

    Args:
        out: model folder; classes are named by their index.
        tokenizer: a file of LlamaGen's, of any ending, or "owner/name:file" on the Hugging Face Hub.
        gpt: a file, or "owner/name:file" on the Hugging Face Hub.
        num_heads: attention heads, where depth and width are none of LlamaGen's sizes.
        layout: rows x columns of tokens: 16x16 for 256 pixels, 24x24 for 384.
        allow_namespace: accept an argparse.Namespace beside the weights, as some training checkpoints hold.
    """
    from ctf.interop.llamagen import load_gpt, load_tokenizer

    vq = load_tokenizer(tokenizer, allow_namespace=allow_namespace)
    stage = load_gpt(gpt, num_heads, layout=layout, allow_namespace=allow_namespace)
    _save_baseline(out, vq, stage)


def _save_baseline(out: str, tokenizer: Any, stage: Any) -> None:  # types would make --help import torch
    """Write a model folder of one stage, whose classes are named by their index, and print what it is."""
    from ctf.fingerprint import joint_fingerprint
    from ctf.model_folder import Pipeline, describe_pipeline

    pipeline = Pipeline(tokenizer, [str(index) for index in range(stage.num_classes)], [stage])
    pipeline.save_pretrained(out)
    checksums = {name: joint_fingerprint(part.parameters()) for name, part in pipeline.parts().items()}
    classes = f"0 … {stage.num_classes - 1}"
    facts = {"class_names": classes, "size": stage.config.size_name, "checksums": checksums}
    print(json.dumps(describe_pipeline(pipeline) | facts, indent=2, ensure_ascii=False))


def var(
    out: str,
    tokenizer: str,
    var: str | None = None,
    scales: list[int] | None = None,
    allow_namespace: bool = False,
) -> None:
    """Turn VAR's multi-scale tokenizer into a tokenizer file, or with its transformer into a model folder: a baseline.

    Example:
        ctf convert var --tokenizer vae_ch160v4096z32.pth --var var_d16.pth --out runs/var-d16

    Args:
        out: model folder, whose classes are named by their index; without `var` a safetensors file.
        tokenizer: a file of VAR's, of any ending, or "owner/name:file" on the Hugging Face Hub.
        var: the transformer's file, or "owner/name:file" on the Hugging Face Hub.
        scales: side of each scale, such as [1, 2, 3, 4, 6, 9, 13, 18, 24, 32] for 512 pixels. Without it those of
            `var`, or VAR's ten for 256 pixels. One tokenizer's weights serve any.
        allow_namespace: accept an argparse.Namespace beside the weights, as some training checkpoints hold.
    """
    from ctf.interop.var import load_tokenizer, load_var, scales_of

    if var is not None and scales is None:
        scales = scales_of(var, allow_namespace)
    multi_scale = load_tokenizer(tokenizer, scales, allow_namespace=allow_namespace)
    if var is None:
        multi_scale.save(out)
        print(f"{out} written")
        return
    stage = load_var(var, multi_scale, allow_namespace=allow_namespace)
    _save_baseline(out, multi_scale, stage)


def codes(
    out: str,
    source: str,
    image_size: int = 256,
    second: str | None = None,
    num: int | None = None,
    codebook_size: int = 16_384,
    num_classes: int = 1000,
    codebook: str | None = None,
    allow_namespace: bool = False,
) -> None:
    """Read LlamaGen's folders of pre-extracted codes into a token set, without encoding again.

    Example:
        ctf convert codes --source imagenet_code_c2i_flip_ten_crop --second imagenet_code_c2i_flip_ten_crop_105
            --out runs/tokens/imagenet

    Args:
        out: folder of the token set.
        source: folder with imagenet{image_size}_codes and imagenet{image_size}_labels.
        image_size: pixels per side in the names of these folders.
        second: the same images under another crop range, as LlamaGen's ten_crop_105. Its augmentations follow the
            first ones, so that a uniform draw is LlamaGen's: a coin for the set, then one of its crops.
        num: how many images; all files without it. LlamaGen's extraction on several GPUs repeats images behind
            the last to fill its last round: give the number of images to leave those out.
        codebook_size: K.
        num_classes: labels are below this.
        codebook: the codebook of the codes, as for `ctf cluster`, so that a map of another one is refused.
        allow_namespace: accept an argparse.Namespace beside the weights of the codebook's .pt file.
    """
    from ctf.interop.codes import import_codes
    from ctf.interop.tokenizers import open_codebook

    matrix = open_codebook(codebook, allow_namespace) if codebook else None
    print(
        import_codes(
            source, out, image_size, codebook_size, second=second, count=num, num_classes=num_classes, codebook=matrix
        )
    )


def tokens(
    out: str,
    tokens: str,
    labels: str,
    codebook_size: int,
    layout: Layout | None = None,
    codebook: str | None = None,
    allow_namespace: bool = False,
) -> None:
    """Make a token set of arrays from elsewhere: tokens of any tokenizer, also one that we cannot open.

    `ctf.tokens.write_token_set` does the same from arrays in memory.

    Example:
        ctf convert tokens --tokens tokens.npy --labels labels.npy --codebook_size 16384 --out runs/tokens/mine

    Args:
        out: folder of the token set.
        tokens: .npy of integers [n, A, N], A augmentations of n images, or [n, N].
        labels: .npy of integers [n].
        codebook_size: K.
        layout: rows x columns of tokens, such as 16x8, or of several scales, 1x1,2x2,4x4; a square without it.
        codebook: the codebook of the tokens, as for `ctf cluster`, so that a map of another one is refused.
        allow_namespace: accept an argparse.Namespace beside the weights of the codebook's .pt file.
    """
    from ctf.interop.tokenizers import open_codebook
    from ctf.tokens.token_set import read_npy
    from ctf.tokens.writer import write_token_set

    stored, classes = read_npy(Path(tokens), "r"), read_npy(Path(labels))
    matrix = open_codebook(codebook, allow_namespace) if codebook else None
    print(write_token_set(out, stored, classes, codebook_size, layout, codebook=matrix, source=tokens))


def to_codes(out: str, tokens: str, image_size: int | None = None, second: str | None = None) -> None:
    """Write a token set as LlamaGen's folders of pre-extracted codes.

    Example:
        ctf convert to-codes --tokens runs/tokens/train --out runs/codes

    Args:
        out: folder that gets imagenet{image_size}_codes and imagenet{image_size}_labels.
        tokens: folder of the token set.
        image_size: pixels per side for the names of these folders; what the token set says without it.
        second: folder for the second half of the augmentations, as LlamaGen keeps two crop ranges.
    """
    from ctf.interop.codes import export_codes
    from ctf.tokens.token_set import TokenSet

    export_codes(TokenSet.open(tokens), out, image_size, second=second)
    print(f"{out} written")


def half(source: str, out: str, allow_namespace: bool = False) -> None:
    """Round a tokenizer's weights to float16, for shipping. Its codebook is then another one.

    Example:
        ctf convert half --source emoji --out runs/half.safetensors

    Args:
        source: "emoji", "photos", a tokenizer file, a run or model folder, or LlamaGen's file.
        out: a safetensors file.
        allow_namespace: accept an argparse.Namespace beside the weights of a .pt file.
    """
    import torch

    from ctf.interop.tokenizers import open_tokenizer

    open_tokenizer(source, allow_namespace).save(out, torch.float16)
    print(f"{out} written: tokenize and cluster with it, not with {source}")
