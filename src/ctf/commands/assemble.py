"""`ctf assemble`."""

from __future__ import annotations


def assemble(
    out: str,
    tokenizer: str,
    stages: list[str],
    tokens: str,
    half: bool = False,
    allow_namespace: bool = False,
) -> None:
    """Put a tokenizer and trained stages together into a model folder.

    Example:
        ctf assemble --tokenizer emoji --stages runs/coarse runs/fine --tokens runs/tokens/train
            --out runs/model

    Args:
        out: model folder.
        tokenizer: "emoji", "photos", a tokenizer file, a run or model folder, or LlamaGen's file.
        stages: run folders or files of the stages in order: one for a baseline, coarse and fine for the paper's
            system. Their maps are inside.
        tokens: the token set that the stages were trained on: it knows the names of the classes.
        half: store the stages in float16.
        allow_namespace: accept an argparse.Namespace beside the weights of a .pt file.
    """
    from ctf.model_folder import assemble
    from ctf.tokenizer.registry import BUNDLED

    assemble(out, tokenizer, stages, tokens, half, allow_namespace)
    out = f"./{out}" if out in BUNDLED else out
    print(f"{out}: open it with ctf.Pipeline.from_pretrained({out!r}) or `ctf sample --model {out}`")
