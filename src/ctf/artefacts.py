"""What a file or folder is, and how parts become a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.files import existing, fingerprint, read_json, read_metadata
from ctf.interop import llamagen
from ctf.interop.tokenizers import open_tokenizer
from ctf.models.config import MODEL_SIZES
from ctf.models.transformer import Transformer
from ctf.pipeline import Pipeline
from ctf.tokens.token_set import TokenSet
from ctf.training.checkpoint import latest_checkpoint
from ctf.training.log import read_log


def describe(source: str) -> dict[str, Any]:
    """Everything that `ctf info` prints of a token set, coarse map, tokenizer, model, run or model folder.

    Raises:
        InputError: nothing there, or nothing of ours.
    """
    if source == "sizes":
        return {name: dict(zip(("layers", "heads", "dim"), size, strict=True)) for name, size in MODEL_SIZES.items()}
    if source == "emoji":
        return _pipeline(Pipeline.from_pretrained(source))
    path = existing(source)
    if (path / "config.json").exists():
        config = read_json(path / "config.json")
        if isinstance(config, dict) and config.get("ctf") == "pipeline":
            return _pipeline(Pipeline.from_pretrained(path))
        if isinstance(config, dict) and "loop" in config:
            return _run(path, config)
    if (path / "index.json").exists():
        return {"kind": "token set", **TokenSet.open(path).describe()}
    if path.is_file() and path.suffix == ".safetensors":
        return _file(path)
    raise InputError(f"{source} is no token set, coarse map, tokenizer, model, run or model folder")


def _file(path: Path) -> dict[str, Any]:
    metadata = read_metadata(path)
    if "config" in metadata:
        metadata["config"] = json.loads(metadata["config"])
    kind = metadata.pop("ctf", None)
    if kind is None:
        raise InputError(f"{path} is a safetensors file, but ctf did not write it")
    facts: dict[str, Any] = {"kind": kind.replace("_", " "), "bytes": path.stat().st_size, **metadata}
    if kind == "coarse_map":
        sizes = CoarseMap.load(path).sizes
        facts["cluster_sizes"] = {"min": int(sizes.min()), "median": int(sizes.median()), "max": int(sizes.max())}
    return facts


def _run(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    lines = read_log(run / "log.jsonl") if (run / "log.jsonl").exists() else []
    last: dict[str, float] = {}
    for line in lines:
        last |= line
    checkpoint = latest_checkpoint(run)
    finished = (run / "model.safetensors").exists()
    facts = {"kind": "run", "finished": finished, "last": last, "settings": settings}
    return {**facts, "checkpoint": str(checkpoint) if checkpoint else None}


def _pipeline(pipeline: Pipeline) -> dict[str, Any]:
    config = pipeline.tokenizer.config
    facts: dict[str, Any] = {
        "kind": "baseline pipeline" if pipeline.baseline is not None else "coarse-to-fine pipeline",
        "image_size": [side * config.downsampling for side in pipeline.grid],
        "grid": list(pipeline.grid),
        "codebook": {"size": config.codebook_size, "dim": config.codebook_dim},
        "parameters": {"tokenizer": sum(p.numel() for p in pipeline.tokenizer.parameters())},
    }
    for name in ("baseline", "coarse", "fine"):
        model: Transformer | None = getattr(pipeline, name)
        if model is not None:
            facts["parameters"][name] = model.num_parameters()
    if pipeline.coarse_map is not None:
        facts |= {"clusters": pipeline.coarse_map.num_coarse, "support": pipeline.support}
    return {**facts, "class_names": pipeline.class_names}


def assemble(
    out: str | Path,
    tokenizer: str,
    classes: str,
    coarse: str | None = None,
    fine: str | None = None,
    coarse_map: str | None = None,
    baseline: str | None = None,
    support: Literal["cluster", "full"] | None = None,
    half: bool = False,
) -> Pipeline:
    """Read trained parts, check that they belong together, and write a model folder. See `ctf convert pipeline`.

    Raises:
        InputError: a part is missing or damaged, or they do not belong together.
    """
    tokens = TokenSet.open(classes)
    pipeline = Pipeline(
        open_tokenizer(tokenizer),
        tokens.class_names,
        baseline=_transformer(baseline),
        coarse=_transformer(coarse),
        fine=_transformer(fine),
        coarse_map=CoarseMap.load(coarse_map) if coarse_map else None,
        support=support or _trained_support(fine),
    )
    tokens.check_codebook(pipeline.tokenizer.codebook)
    if tokens.grid != pipeline.grid:
        raise InputError(
            f"{classes} has a grid of {tokens.grid}, the models have {pipeline.grid}: give their token set"
        )
    pipeline.save_pretrained(out, torch.float16 if half else torch.float32)
    return pipeline


def from_llamagen(
    out: str | Path,
    tokenizer: str,
    gpt: str,
    num_heads: int | None = None,
    grid: tuple[int, int] = (16, 16),
    allow_namespace: bool = False,
) -> dict[str, Any]:
    """Write official LlamaGen files as a baseline pipeline; classes are named by their index.

    Returns:
        What `ctf info` says of it, and the fingerprint of each part's weights.

    Raises:
        InputError: see `ctf.interop.llamagen`; or a GPT and a tokenizer of different codebooks.
    """
    vq = llamagen.load_tokenizer(tokenizer, allow_namespace=allow_namespace)
    model = llamagen.load_gpt(gpt, num_heads, grid=grid, allow_namespace=allow_namespace)
    names = [str(index) for index in range(model.config.num_classes)]
    pipeline = Pipeline(vq, names, baseline=model)
    pipeline.save_pretrained(out)
    facts = _pipeline(pipeline) | {"class_names": f"0 … {len(names) - 1}"}
    shape = (model.config.layers, model.config.dim)
    size = next((name for name, (layers, _, dim) in MODEL_SIZES.items() if (layers, dim) == shape), "custom")
    checksums = {
        name: fingerprint(torch.cat([p.detach().flatten() for p in part.parameters()]))
        for name, part in (("tokenizer", vq), ("baseline", model))
    }
    return {**facts, "size": size, "checksums": checksums}


def _trained_support(fine: str | None) -> Literal["cluster", "full"]:
    """What the settings in a fine model's run folder say; a lone file says nothing, and the default it is."""
    settings = Path(fine or "") / "config.json"
    return read_json(settings).get("support", "cluster") if fine and settings.exists() else "cluster"


def _transformer(source: str | None) -> Transformer | None:
    if source is None:
        return None
    path = Path(source)
    return Transformer.load(path / "model.safetensors" if path.is_dir() else path)
