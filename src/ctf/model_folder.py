"""A pipeline on disk and on the Hub: save, load, assemble, describe, model card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.files import atomic_path, existing, read_json, read_json_lines, read_metadata, write_json, write_text
from ctf.interop.tokenizers import open_tokenizer
from ctf.models.config import MODEL_SIZES, Compute
from ctf.pipeline import StagePipeline
from ctf.sampling.settings import Sampling
from ctf.stages.registry import load_stage
from ctf.stages.stage import Stage
from ctf.tokenizer.registry import ASSETS, load_tokenizer
from ctf.tokens.token_set import TokenSet

FORMAT = 2
CONFIG, SAMPLING, CARD = "config.json", "generation_config.json", "README.md"

#: What a run folder holds beside its config.json.
RUN_LOG, RUN_MODEL, RUN_CHECKPOINTS, RUN_MILESTONES = "log.jsonl", "model.safetensors", "checkpoints", "milestones"


class Pipeline(StagePipeline):
    """A pipeline that is opened from and written to a model folder.

    A model folder holds `config.json` (class names, stages in order), `generation_config.json` (the sampling settings
    of each stage), a safetensors file for the tokenizer and each stage, and a model card.
    """

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a model folder, atomically.

        Args:
            folder: a model folder that is there already is replaced, anything else is not.
            dtype: of the stages' weights. The tokenizer's values are never rounded, since the coarse
                maps know their codebook; they are stored in float16 where that holds them exactly.

        Raises:
            InputError: something other than a model folder is there.
        """
        folder = Path(folder)
        if folder.exists() and not is_model(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"{folder} is there already and is not a model folder: choose another, or delete it")
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            exact = all(torch.equal(p, p.half().float()) for p in self.tokenizer.parameters())
            self.tokenizer.save(_part(temporary, "tokenizer"), torch.float16 if exact else torch.float32)
            for stage in self.stages:
                stage.save(_part(temporary, stage.name), dtype)
            config = {"ctf": "pipeline", "format": FORMAT, "stages": [stage.name for stage in self.stages]}
            write_json(temporary / CONFIG, {**config, "class_names": self.class_names})
            write_json(temporary / SAMPLING, {s.name: dataclasses.asdict(s.sampling) for s in self.stages})
            write_text(temporary / CARD, model_card(self))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device = "cpu", compute: Compute | None = None
    ) -> Pipeline:
        """Open a model: "emoji" (embedded), a folder, or a Hub id such as "owner/name".

        Raises:
            InputError: nothing there, a part missing or damaged, or parts that do not belong together.
        """
        folder = find_model(str(source))
        config = read_json(folder / CONFIG)
        if config.get("format") != FORMAT or not {"stages", "class_names"} <= config.keys():
            raise InputError(f"{folder}: this ctf reads model folders of format {FORMAT}: update it, or assemble again")
        for key in ("stages", "class_names"):
            if not isinstance(config[key], list) or not all(isinstance(name, str) for name in config[key]):
                raise InputError(f"{folder / CONFIG}: {key} is not a list of names: restore it or save the model again")
        stages = [load_stage(_part(folder, name)) for name in config["stages"]]
        settings = read_json(folder / SAMPLING) if (folder / SAMPLING).exists() else {}
        if not isinstance(settings, dict) or not all(isinstance(value, dict) for value in settings.values()):
            raise InputError(f"{folder / SAMPLING} does not hold settings by stage: restore it or save the model again")
        if unknown := settings.keys() - {stage.name for stage in stages}:
            raise InputError(f"{folder / SAMPLING}: the model has no stage {min(unknown)!r}: correct or restore it")
        for stage in stages:
            try:
                stage.sampling = Sampling.of(dataclasses.asdict(stage.sampling) | settings.get(stage.name, {}))
            except InputError as error:
                raise InputError(f"{folder / SAMPLING}, {stage.name}: {error}") from None
        pipeline = cls(load_tokenizer(_part(folder, "tokenizer")), config["class_names"], stages)
        pipeline.to(device).compute_in(compute or Compute())
        return pipeline

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload as model "owner/name" to the Hugging Face Hub; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            api = HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=folder))


def open_stage(source: str | Path) -> Stage:
    """A stage from its file, or from the folder of the run that trained it.

    Raises:
        InputError: nothing there, not a stage, or a run that has not finished.
    """
    path = Path(source)
    if path.is_dir():
        if (path / RUN_CHECKPOINTS).is_dir() and not (path / RUN_MODEL).exists():
            raise InputError(f"{path} is a run that has not finished: continue it with --loop.resume true")
        path = path / RUN_MODEL
    return load_stage(path)


def assemble(
    out: str | Path,
    tokenizer: str,
    stages: Sequence[str],
    classes: str,
    half: bool = False,
    allow_namespace: bool = False,
) -> Pipeline:
    """Read trained parts, check that they belong together, and write a model folder. See `ctf assemble`.

    Raises:
        InputError: a part is missing or damaged, or they do not belong together.
    """
    tokens = TokenSet.open(classes)
    pipeline = Pipeline(
        open_tokenizer(tokenizer, allow_namespace), tokens.class_names, [open_stage(stage) for stage in stages]
    )
    tokens.check_codebook(pipeline.tokenizer.codebook)
    if tokens.grid != pipeline.grid:
        raise InputError(
            f"{classes} has a grid of {tokens.grid}, the stages have {pipeline.grid}: give their token set"
        )
    pipeline.save_pretrained(out, torch.float16 if half else torch.float32)
    return pipeline


def describe(source: str) -> dict[str, Any]:
    """Everything that `ctf info` prints of a token set, coarse map, tokenizer, stage, run or model folder.

    Raises:
        InputError: nothing there, or nothing of ours.
    """
    if source == "sizes":
        return {name: dict(zip(("layers", "heads", "dim"), size, strict=True)) for name, size in MODEL_SIZES.items()}
    if source == "emoji" or is_model(Path(source)):
        return describe_pipeline(Pipeline.from_pretrained(source))
    path = existing(source)
    if (settings := run_settings(path)) is not None:
        return _describe_run(path, settings)
    if (path / "index.json").exists():
        return {"kind": "token set", **TokenSet.open(path).describe()}
    if path.is_file() and path.suffix == ".safetensors":
        return _describe_file(path)
    raise InputError(f"{source} is no token set, coarse map, tokenizer, stage, run or model folder")


def _describe_file(path: Path) -> dict[str, Any]:
    metadata = read_metadata(path)
    if "ctf" not in metadata:
        raise InputError(f"{path} is a safetensors file, but ctf did not write it")
    if metadata["ctf"] == "stage":
        return {"kind": "stage", "bytes": path.stat().st_size, **describe_stage(load_stage(path))}
    facts: dict[str, Any] = {"kind": metadata["ctf"].replace("_", " "), "bytes": path.stat().st_size, **metadata}
    del facts["ctf"]
    if "config" in facts:
        try:
            facts["config"] = json.loads(facts["config"])
        except ValueError as error:
            raise InputError(f"{path}: its settings are not valid JSON ({error}): copy or write it again") from None
    if metadata["ctf"] == "coarse_map":
        sizes = CoarseMap.load(path).sizes
        facts["cluster_sizes"] = {"min": int(sizes.min()), "median": int(sizes.median()), "max": int(sizes.max())}
    return facts


def _describe_run(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    last: dict[str, float] = {}
    for line in read_json_lines(run / RUN_LOG) if (run / RUN_LOG).exists() else []:
        last |= line
    checkpoint = latest_checkpoint(run)
    facts = {"kind": "run", "finished": (run / RUN_MODEL).exists(), "last": last, "settings": settings}
    return {**facts, "checkpoint": str(checkpoint) if checkpoint else None}


def run_settings(run: Path) -> dict[str, Any] | None:
    """What a run folder was made from; None of a folder that is no run."""
    config = read_json(run / CONFIG) if (run / CONFIG).exists() else None
    return config if isinstance(config, dict) and "loop" in config else None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest last."""
    return sorted((run / RUN_CHECKPOINTS).glob("step-*.safetensors"))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run folder."""
    return max(checkpoints(run), default=None)


def describe_pipeline(pipeline: StagePipeline) -> dict[str, Any]:
    """Sizes, stages and class names, ready for JSON."""
    tokenizer = pipeline.tokenizer
    return {
        "kind": "pipeline",
        "image_size": list(pipeline.image_size),
        "grid": list(pipeline.grid),
        "codebook": {"size": tokenizer.codebook_size, "dim": tokenizer.codebook.shape[1]},
        "tokenizer": {"family": tokenizer.family, "parameters": sum(p.numel() for p in tokenizer.parameters())},
        "stages": [describe_stage(stage) for stage in pipeline.stages],
        "class_names": pipeline.class_names,
    }


def describe_stage(stage: Stage) -> dict[str, Any]:
    """What a stage is, ready for JSON."""
    return {
        "name": stage.name,
        "kind_of_stage": stage.kind,
        "predicts": _level(stage.predicts, stage.codebook_size),
        "given": "class label" if stage.given is None else _level(stage.given, stage.codebook_size),
        **({} if stage.given is None else {"support": stage.support}),
        "parameters": stage.num_parameters(),
        "sampling": dataclasses.asdict(stage.resolved()),
        "codebook": stage.codebook,
        "config": dataclasses.asdict(stage.config),
    }


def _level(coarse_map: CoarseMap | None, codebook_size: int) -> str:
    if coarse_map is None:
        return f"{codebook_size:,} tokens"
    return f"{coarse_map.num_coarse:,} clusters ({coarse_map.method}) of {codebook_size:,} tokens"


def model_card(pipeline: StagePipeline) -> str:
    """The README.md of a model folder."""
    rows = "\n".join(
        f"| {stage.name} | {stage.kind} | {_level(stage.predicts, stage.codebook_size)} | "
        f"{stage.num_parameters() / 1e6:.1f} M | {_settings(stage.resolved())} |"
        for stage in pipeline.stages
    )
    height, width = pipeline.image_size
    rows_of_tokens, columns = pipeline.grid
    return (
        "---\nlibrary_name: ctf\npipeline_tag: unconditional-image-generation\ntags: [autoregressive, vq]\n---\n"
        f"# Class-conditional images of {height} × {width} pixels\n\n"
        f"{len(pipeline.class_names)} classes; {rows_of_tokens} × {columns} tokens of a codebook of "
        f"{pipeline.tokenizer.codebook_size:,}.\n\n"
        "| stage | kind | predicts | parameters | sampling |\n|---|---|---|---|---|\n"
        f"{rows}\n\n"
        "```python\nimport ctf\n\n"
        'pipe = ctf.Pipeline.from_pretrained("this folder")\nimages = pipe(labels=[0, 1], seed=0)\n```\n'
    )


def _settings(sampling: Sampling) -> str:
    values = dataclasses.asdict(sampling).items()
    return ", ".join(f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}" for name, value in values)


def is_model(folder: Path) -> bool:
    """Whether `save_pretrained` wrote this folder."""
    path = folder / CONFIG
    config = read_json(path) if path.exists() else None
    return isinstance(config, dict) and config.get("ctf") == "pipeline"


def find_model(source: str) -> Path:
    """The model folder of "emoji", a folder, or a Hub id. Raises InputError if there is none."""
    if source == "emoji":
        return ASSETS / "emoji"
    if Path(source).exists() or source.count("/") != 1:
        folder = existing(source, "model folder")
    else:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source))
        except Exception as error:  # the Hub's client raises many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{source} is neither a folder here nor a model that the Hub gives ({reason})") from None
    if not is_model(folder):
        raise InputError(f"{folder} is not a model folder: its config.json is missing or says something else")
    return folder


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
