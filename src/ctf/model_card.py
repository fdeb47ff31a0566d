"""Data, licence, measurements and training settings of a model, and the card that tells them."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ctf
from ctf.errors import InputError
from ctf.files import atomic_path, read_json, write_json, write_text
from ctf.fingerprint import joint_fingerprint
from ctf.pipeline import StagePipeline, level
from ctf.sampling.settings import Sampling

CARD, MANIFEST, SHEET = "README.md", "manifest.json", "samples.png"
FORMAT = 1


@dataclass(frozen=True)
class About:
    """Facts about a model that its weights do not hold; an entry is empty where it is not known.

    Attributes:
        data: what the model was trained on, in words.
        licence: as the Hub abbreviates it, such as "apache-2.0".
        metrics: figures by name.
        training: settings and last log entries of the run behind each stage, by the stage's name.
        sheet: a PNG file of samples.
    """

    data: str = ""
    licence: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    sheet: bytes = field(default=b"", repr=False)

    @classmethod
    def load(cls, folder: Path) -> About:
        """Read what `write_about` wrote into a model folder; all entries of an older folder are empty.

        Raises:
            InputError: a manifest that is damaged or of another version.
        """
        sheet = (folder / SHEET).read_bytes() if (folder / SHEET).exists() else b""
        path = folder / MANIFEST
        if not path.exists():
            return cls(sheet=sheet)
        values = read_json(path)
        kinds = {"data": str, "licence": str, "metrics": dict, "training": dict}
        if not isinstance(values, dict) or values.get("ctf") != "model" or values.get("format") != FORMAT:
            raise InputError(f"{path} is not the manifest of a model, or of another version: delete or restore it")
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind):
                raise InputError(f"{path}: {name} is {values.get(name)!r}: delete or restore it")
        if not all(_is_number(value) for value in values["metrics"].values()):
            raise InputError(f"{path}: metrics are not all numbers: delete or restore it")
        return cls(**{name: values[name] for name in kinds}, sheet=sheet)


def write_about(folder: Path, pipeline: StagePipeline, about: About, dtype: torch.dtype | None = None) -> None:
    """Write manifest.json, samples.png and the card into a model folder; each of them is whole or as it was.

    Args:
        folder: of the pipeline's weights.
        pipeline: for sizes, settings and the fingerprints of the parts.
        about: the rest.
        dtype: in which the stages' weights are stored, if not as they are.
    """
    if about.sheet:
        with atomic_path(folder / SHEET) as temporary:
            temporary.write_bytes(about.sheet)
    parts = {"tokenizer": part_fingerprint(pipeline.tokenizer)}
    parts |= {stage.name: part_fingerprint(stage, dtype) for stage in pipeline.stages}
    known = {name: value for name, value in dataclasses.asdict(about).items() if name != "sheet"}
    manifest = {"ctf": "model", "format": FORMAT, **known, "weights": parts, "versions": versions()}
    write_json(folder / MANIFEST, manifest)
    write_text(folder / CARD, model_card(pipeline, about))


def part_fingerprint(part: nn.Module, dtype: torch.dtype | None = None) -> str:
    """16 hexadecimal digits of a module's parameters and, for a stage, of the maps it predicts and is given.

    With `dtype`, of the parameters rounded to it, as `Stage.save` does.
    """
    maps = [relation for name in ("predicts", "given") if (relation := getattr(part, name, None)) is not None]
    exact: tuple[str, ...] = getattr(part, "float32", ())
    rounded = (t if name.startswith(exact) else t.to(dtype) for name, t in part.state_dict().items())
    return joint_fingerprint([*rounded, *(relation.fine_to_coarse for relation in maps)])


def versions() -> dict[str, str]:
    """Versions of ctf, torch, numpy and Python, as they run here."""
    return {
        "ctf": ctf.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def read_metrics(path: str | Path) -> dict[str, float]:
    """The numbers in a JSON object, or in its entry "metrics", as `ctf evaluate samples` and `likelihood` write them.

    Raises:
        InputError: there are none, or several of each.
    """
    read = read_json(path)
    values: dict[str, Any] = read if isinstance(read, dict) else {}
    if "rows" in values:
        raise InputError(f"{path} holds figures in several numbers of steps: give those of one, without --steps")
    if isinstance(values.get("metrics"), dict):
        values = values["metrics"]
    if "unconditional_bits_per_token" in values:
        raise InputError(f"{path} holds the bits of a part of images: give those of whole ones, without --region")
    numbers = {n: v for n, v in values.items() if _is_number(v)}
    if numbers and values.get("bound"):
        numbers = {f"{name}_at_most" if name == "bits_per_token" else name: value for name, value in numbers.items()}
    if not numbers:
        raise InputError(
            f"{path} holds no figures: give what `ctf evaluate samples` or `likelihood` writes, or a JSON object of "
            "numbers"
        )
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def model_card(pipeline: StagePipeline, about: About) -> str:
    """The README.md of a model folder."""
    licence = f"license: {json.dumps(about.licence)}\n" if about.licence else ""
    height, width = pipeline.image_size
    kinds = (stage.kind.replace("_", "-") for stage in pipeline.stages)
    starts = dict.fromkeys(s for made in about.training.values() if (s := made.get("settings", {}).get("start_from")))
    tags = dict.fromkeys(["autoregressive", "vq", pipeline.tokenizer.family, *kinds])  # each once
    parts = [
        f"---\n{licence}library_name: ctf\npipeline_tag: unconditional-image-generation\n"
        f"tags: [{', '.join(tags)}]\n---",
        f"# Class-conditional images of {height} × {width} pixels",
        f"![samples]({SHEET})" if about.sheet else "",
        f"{len(pipeline.class_names)} classes; {pipeline.layout.words} tokens of a codebook of "
        f"{pipeline.tokenizer.codebook_size:,}.",
        "```python\nimport ctf\n\n"
        'pipe = ctf.Pipeline.from_pretrained(".")  # this folder; or its name on the Hub\n'
        "images = pipe(labels=[0], seed=0)\n```",
        _table(
            "| stage | kind | predicts | parameters | sampling |",
            [
                f"{stage.name} | {stage.kind} | {level(stage.predicts, stage.codebook_size)} | "
                f"{stage.num_parameters() / 1e6:.1f} M | {_settings(stage.resolved())}"
                for stage in pipeline.stages
            ],
        ),
        f"**Data.** {about.data or 'Not stated.'}",
        f"**Licence.** {about.licence or 'Not stated.'}",
        f"**Started from** {', '.join(starts)}, whose terms may bind these weights too." if starts else "",
        _table("| measured | |", [f"{name.replace('_', ' ')} | {value:.6g}" for name, value in about.metrics.items()]),
        f"{'Settings of the training runs, versions' if about.training else 'Versions'} and fingerprints of the "
        f"weights: [{MANIFEST}]({MANIFEST}).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *(f"| {row} |" for row in rows)]) if rows else ""


def _settings(sampling: Sampling) -> str:
    values = {name: value for name, value in dataclasses.asdict(sampling).items() if value is not None}
    if sampling.order != "confidence":
        del values["noise"]
    return ", ".join(f"{name} {v:g}" if isinstance(v, float) else f"{name} {v}" for name, v in values.items())
