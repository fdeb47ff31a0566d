"""A pipeline on disk and on the Hub: save, load, assemble, describe."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ctf.classes import check_same
from ctf.codebook.coarse_map import CoarseMap
from ctf.device import device_name
from ctf.errors import InputError, did_you_mean, nearest, our_name, shortened
from ctf.files import (
    atomic_path,
    existing,
    is_safetensors,
    read_json,
    read_metadata,
    temporary_folder,
    write_json,
)
from ctf.hub import CONFIG, pull, push
from ctf.images.records import warn_of_namesake
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_card import CARD, MANIFEST, SHEET, About, write_about
from ctf.models.config import MODEL_SIZES, Compute
from ctf.models.next_scale_config import NEXT_SCALE_SIZES
from ctf.pipeline import StagePipeline, level
from ctf.run_folder import RUN_CHECKPOINTS, RUN_MODEL, last_entries, latest_checkpoint, run_changes, run_settings
from ctf.sampling.settings import Sampling
from ctf.stages.registry import load_stage
from ctf.stages.stage import Stage
from ctf.tokenizer.registry import BUNDLED, load_tokenizer
from ctf.tokens.token_set import TokenIndex, TokenSet
from ctf.torchrun import rank_and_world

FORMAT = 2
SAMPLING = "generation_config.json"


class Pipeline(StagePipeline):
    """A pipeline that is opened from and written to a model folder.

    A model folder holds `config.json` (class names, stages in order), `generation_config.json` (the sampling settings
    of each stage), a safetensors file for the tokenizer and each stage, `manifest.json` (how they were made), a model
    card, and `samples.png` where there is a sheet.

    Attributes:
        about: what manifest, card and sheet say: yours to set before saving.
    """

    @cached_property
    def about(self) -> About:
        """Nothing, until it is set."""
        return About()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a model folder, atomically.

        Args:
            folder: a model folder that is there already is replaced if it holds nothing else.
            dtype: of the stages' weights. The tokenizer's values are never rounded, since the coarse
                maps know their codebook; they are stored in float16 where that holds them exactly.

        Raises:
            InputError: something other than a model folder is there, or in it.
        """
        folder = Path(folder)
        if folder.exists() and not is_model(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"{folder} is there already and is not a model folder: choose another, or delete it")
        if is_model(folder):
            files = model_files(read_json(folder / CONFIG)) or []
            if others := sorted(path.name for path in folder.iterdir() if path.name not in files):
                raise InputError(f"{folder} also holds {shortened(others)}: choose another, or move what would be lost")
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            exact = all(torch.equal(t, t.half().to(t.dtype)) for t in self.tokenizer.state_dict().values())
            self.tokenizer.save(_part(temporary, "tokenizer"), torch.float16 if exact else torch.float32)
            for stage in self.stages:
                stage.save(_part(temporary, stage.name), dtype)
            config = {"ctf": "pipeline", "format": FORMAT, "stages": [stage.name for stage in self.stages]}
            write_json(temporary / CONFIG, {**config, "class_names": self.class_names})
            write_json(temporary / SAMPLING, {s.name: s.sampling.for_file() for s in self.stages})
            write_about(temporary, self, self.about, dtype)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device = "auto",
        compute: Compute | None = None,
        revision: str | None = None,
        **others: Any,
    ) -> Pipeline:
        """Open a model: "emoji" or "photos" (bundled), a folder, or a Hub id: "owner/name", "owner/name@revision".

        Args:
            source: what to open.
            device: where to put it: "auto" (a GPU where there is one, which a line on standard error then says), "cpu",
                "cuda", "cuda:1", …
            compute: how to sample.
            revision: branch, tag or commit of a Hub id.
            others: none; what diffusers calls otherwise is answered with our name.

        Raises:
            InputError: nothing there, a part missing or damaged, or parts that do not belong together.
        """
        for name in others:
            raise InputError(our_name(name) or f"from_pretrained has no argument {name}")
        folder = find_model(str(source), revision)
        stages, class_names = stages_in(folder)
        pipeline = cls(load_tokenizer(_part(folder, "tokenizer")), class_names, stages)
        pipeline.about = About.load(folder)
        pipeline.to(device).compute_in(compute or Compute())
        if device == "auto" and pipeline.device.type != "cpu" and rank_and_world()[0] == 0:
            print(
                f"{source} is on {pipeline.device} ({device_name(pipeline.device)}), {pipeline.dtype}", file=sys.stderr
            )
        return pipeline

    def push_to_hub(self, name: str, private: bool = False, dtype: torch.dtype = torch.float32) -> str:
        """Save, and publish on the Hugging Face Hub as "owner/name" in one commit; returns its address.

        Args:
            name: a model of ctf that is there already is replaced, anything else is not.
            private: whether only its owner may see it.
            dtype: of the stages' weights.

        Raises:
            InputError: as those of `ctf.hub.push`.
        """
        with temporary_folder() as temporary:
            folder = temporary / "model"
            self.save_pretrained(folder, dtype)
            return push(folder, name, private, model_files)


def publish(model: str | Path, name: str, private: bool = False, about: About | None = None) -> str:
    """Publish a model folder as it is, after a look whether it opens; returns its address. See `ctf push`.

    Args:
        model: the folder, or "emoji".
        name: "owner/name".
        private: whether only its owner may see it.
        about: what to add to its card first, see `complete_card`.

    Raises:
        InputError: not a model folder, or the bundled one with `about`; those of `ctf.hub.push`.
    """
    if model not in BUNDLED:
        _existing(model, "model folder")
    folder = find_model(str(model))
    if about is None:
        Pipeline.from_pretrained(folder, "cpu")
    elif model in BUNDLED:
        raise InputError("the card of the bundled model is complete: leave out what would be added")
    else:
        complete_card(folder, about)
    return push(folder, name, private, model_files)


def complete_card(folder: str | Path, about: About) -> None:
    """Add to what manifest, card and sheet of a model folder say; the weights stay as they are.

    Args:
        folder: a model folder.
        about: whatever is not empty replaces what is there; metrics are added one by one.

    Raises:
        InputError: not a model folder, or a damaged one.
    """
    pipeline = Pipeline.from_pretrained(folder, "cpu")
    new = {column.name: value for column in dataclasses.fields(about) if (value := getattr(about, column.name))}
    new["metrics"] = pipeline.about.metrics | about.metrics
    write_about(Path(folder), pipeline, dataclasses.replace(pipeline.about, **new))


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
    opened = [open_stage(stage) for stage in stages]
    pipeline = Pipeline(open_tokenizer(tokenizer, allow_namespace), tokens.class_names, opened)
    for run in map(Path, stages):
        trained_on = Path((run_settings(run) or {}).get("tokens", run))
        if (trained_on / "index.json").exists():  # the tokens still lie where they were
            check_same(TokenIndex.load(trained_on).class_names, tokens.class_names, str(trained_on), classes)
    tokens.check_tokenizer(pipeline.tokenizer)
    if tokens.layout != pipeline.layout:
        raise InputError(
            f"{classes} has the layout {tokens.layout}, the stages have {pipeline.layout}: give their token set"
        )
    training = {s.name: made for s, run in zip(opened, stages, strict=True) if (made := _training(Path(run), s))}
    pipeline.about = About(data=data_in_words(tokens), training=training)
    pipeline.save_pretrained(out, torch.float16 if half else torch.float32)
    return pipeline


def data_in_words(tokens: TokenSet) -> str:
    """The source of a token set in words. Of a path only the last name, because the rest is of this machine."""
    index = tokens.index
    source = os.path.basename(os.path.abspath(index.source)) if index.source else "images from elsewhere"
    split = f", {index.split}" if index.split else ""
    views = f", {count} stored views of each" if (count := len(index.augmentations)) > 1 else ""
    return f"{source}{split}: {len(tokens):,} images of {tokens.num_classes:,} classes{views}"


#: Of a run's settings, what does not depend on where it ran.
PUBLISHED = ("kind", "size", "dropout", "class_dropout", "support", "cluster_loss_weight", "optimizer")
PUBLISHED_OF_LOOP = ("batch_size", "epochs", "steps", "accumulate", "precision", "ema", "seed")


def _training(run: Path, stage: Stage) -> dict[str, Any]:
    """Settings, what resuming changed of them, and last log entries of a run folder; nothing of a stage's file."""
    settings = run_settings(run) if run.is_dir() else None
    if settings is None:
        return {}
    names = [*PUBLISHED, *(field.name for field in dataclasses.fields(stage.Settings))]
    last = last_entries(run)
    last.pop("steps_per_second", None)
    loop = {name: settings["loop"][name] for name in PUBLISHED_OF_LOOP}
    made = {"settings": {n: settings[n] for n in names if n in settings} | {"loop": loop}, "last": last}
    start = settings.get("started", {}).get("source", settings.get("start_from"))  # a resumed run may name none
    if start:  # whose terms may bind these weights; of a path its last name
        made["settings"]["start_from"] = start if _is_hub_id(start) else Path(start).name
    published = {"step", *(f"loop.{name}" for name in PUBLISHED_OF_LOOP)}
    lines = [
        {name: value for name, value in line.items() if name in published or name.split(".")[0] in names}
        for line in run_changes(run)
    ]
    return made | ({"changes": changes} if (changes := [line for line in lines if line.keys() > {"step"}]) else {})


def model_files(config: Any) -> list[str] | None:
    """The files that a model folder with this config.json may have; None if it is no model folder's."""
    if not isinstance(config, dict) or config.get("ctf") != "pipeline":
        return None
    stages = config.get("stages")
    parts = [f"{name}.safetensors" for name in ("tokenizer", *(stages if isinstance(stages, list) else []))]
    return [CONFIG, SAMPLING, *parts, MANIFEST, SHEET, CARD]


def describe(source: str) -> dict[str, Any]:
    """Everything that `ctf info` prints of a token set, coarse map, tokenizer, stage, run or model folder.

    Raises:
        InputError: nothing there, or nothing of ours.
    """
    if source == "sizes":
        sizes = MODEL_SIZES | NEXT_SCALE_SIZES
        return {name: dict(zip(("layers", "heads", "dim"), size, strict=True)) for name, size in sizes.items()}
    if source in BUNDLED or is_model(Path(source)) or _is_hub_id(source):
        return describe_pipeline(Pipeline.from_pretrained(source, "cpu"))
    path = _existing(source, "file or folder")
    if (settings := run_settings(path)) is not None:
        facts = {"kind": "run", "finished": (path / RUN_MODEL).exists(), "last": last_entries(path)}
        checkpoint = latest_checkpoint(path)
        facts |= {"settings": settings, "changes": run_changes(path)}
        return facts | {"checkpoint": str(checkpoint) if checkpoint else None}
    if (path / "index.json").exists():
        tokens = TokenSet.open(path)
        return {"kind": "token set", **tokens.describe(), "class_names": tokens.class_names}
    if is_safetensors(path):
        return _describe_file(path)
    where = f": its model is in {path / 'model'}" if is_model(path / "model") else ""
    raise InputError(f"{source} is no token set, coarse map, tokenizer, stage, run or model folder{where}")


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


def describe_pipeline(pipeline: Pipeline) -> dict[str, Any]:
    """Sizes, stages, what the card says and class names, ready for JSON."""
    tokenizer = pipeline.tokenizer
    return {
        "kind": "pipeline",
        "image_size": list(pipeline.image_size),
        "layout": pipeline.layout,
        "codebook": {"size": tokenizer.codebook_size, "dim": tokenizer.codebook.shape[1]},
        "tokenizer": {"family": tokenizer.family, "parameters": sum(p.numel() for p in tokenizer.parameters())},
        "stages": [describe_stage(stage) for stage in pipeline.stages],
        **{name: getattr(pipeline.about, name) for name in ("data", "licence", "metrics")},
        "class_names": pipeline.class_names,
    }


def describe_stage(stage: Stage) -> dict[str, Any]:
    """Levels, size and settings of a stage, ready for JSON."""
    return {
        "name": stage.name,
        "kind_of_stage": stage.kind,
        "predicts": level(stage.predicts, stage.codebook_size),
        "given": "class label" if stage.given is None else level(stage.given, stage.codebook_size),
        **({} if stage.given is None else {"support": stage.support}),
        "parameters": stage.num_parameters(),
        "sampling": dataclasses.asdict(stage.resolved()),
        "codebook": stage.codebook,
        "config": dataclasses.asdict(stage.config),
    }


def stages_in(folder: Path) -> tuple[list[Stage], list[str]]:
    """The stages in a model folder, without its tokenizer, and its class names. Raises InputError: damaged files."""
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
            stage.sampling = Sampling.of_file(stage.sampling.for_file() | settings.get(stage.name, {}))
        except InputError as error:
            raise InputError(f"{folder / SAMPLING}, {stage.name}: {error}") from None
    return stages, config["class_names"]


def is_model(folder: Path) -> bool:
    """True if `save_pretrained` wrote this folder."""
    path = folder / CONFIG
    return path.exists() and model_files(read_json(path)) is not None


def find_model(source: str, revision: str | None = None) -> Path:
    """The model folder of a bundled name, a folder, or a Hub id of `revision`. Raises InputError: none is there."""
    local = source in BUNDLED or Path(source).exists() or source.count("/") != 1
    if local and revision is not None:
        raise InputError(f"revision {revision}: only models on the Hub have any, and {source} is no owner/name of one")
    if source in BUNDLED:
        warn_of_namesake(source, CONFIG)
        return BUNDLED[source]
    if local:
        folder = _existing(source, "model folder")
    else:
        name, _, at = source.partition("@")
        folder = pull(name, revision or at or None, model_files)
    if is_model(folder):
        return folder
    if run_settings(folder) is not None:
        raise InputError(
            f"{folder} is {_run_in_words(folder)}, not a model folder: `ctf assemble` makes one of it and the others"
        )
    if is_model(folder / "model"):
        raise InputError(f"{folder} is not a model folder: its model is in {folder / 'model'}")
    raise InputError(f"{folder} is not a model folder: its config.json is missing or says something else")


def _is_hub_id(source: str) -> bool:
    """Whether a name that may be a path or "owner/name" is the latter: no such folder is here, nor the one above it."""
    return source.count("/") == 1 and not Path(source).parent.exists()


def _existing(source: str | Path, what: str) -> Path:
    """`existing`, but for the name of what is bundled, spelt nearly right."""
    if not Path(source).exists() and (near := nearest(str(source), BUNDLED)):
        raise InputError(f"{source}: no such {what}{did_you_mean(near)}")
    return existing(source, what)


def _run_in_words(run: Path) -> str:
    """The product of a training run in words."""
    if not (run / RUN_MODEL).exists():
        return "a training run that has not finished"
    made = read_metadata(run / RUN_MODEL)
    return f"the training run of the {made.get('ctf')} {made.get('name', '')}".rstrip()


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
