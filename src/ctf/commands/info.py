"""`ctf info`."""

from __future__ import annotations


def info(path: str) -> None:
    """Describe any artefact: token set, coarse map, tokenizer, stage, run or model folder.

    Example:
        ctf info emoji

    Args:
        path: a file or folder; "emoji" is the bundled model, "sizes" the named model sizes.
    """
    import json

    from ctf.model_folder import describe

    print(json.dumps(describe(path), indent=2, ensure_ascii=False))
