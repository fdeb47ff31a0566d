"""Manifest: everything that fixes a set of samples, in a file beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ctf.errors import InputError
from ctf.files import fingerprint, read_json, write_json
from ctf.pipeline import PARTS, Pipeline
from ctf.tokens.writer import shorten

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What determines the images, which is what two manifests are compared by, and how they came about.

    Attributes:
        count: number of images.
        image_size: (height, width) in pixels, as the decoder paints them.
        weights: a fingerprint of each part of the pipeline, by its name.
        support: what stage 2 was trained to normalise over.
        label_policy: "balanced" (image i has label i modulo the number of classes), "uniform" (drawn with the seed)
            or "given" (the given labels, repeated as often as needed).
        given_labels: class indices, if given.
        labels: fingerprint of the labels of all images, int64 (count,).
        seed: of image 0.
        seed_rule: the seed of the others.
        settings: guidance, temperature and filters of both stages.
        batch_size: images computed together; batch k holds the images from k · batch_size on.
        dtype: of the computation, see `Pipeline.compute_in`.
        quantize: of the weights in both stages.
        compile: whether steps were compiled, which may round differently.
        decoder: fingerprint of the tokenizer and pixels per side of a token.
        resize: never resized after decoding.
        model: the pipeline as it was asked for.
        device: what it ran on. This and the following are of the command that finished the set.
        processes: that shared the work.
        threads: of each process on the CPU.
        versions: of ctf, torch, numpy and Python.
        command: as a shell line.
        date: when that began, UTC.
    """

    count: int
    image_size: tuple[int, int]
    weights: dict[str, str]
    support: str
    label_policy: str
    given_labels: list[int] | None
    labels: str
    seed: int
    seed_rule: str
    settings: dict[str, Any]
    batch_size: int
    dtype: str
    quantize: str | None
    compile: bool
    decoder: dict[str, Any]
    resize: None
    model: str = field(compare=False)
    device: str = field(compare=False)
    processes: int = field(compare=False)
    threads: int = field(compare=False)
    versions: dict[str, str] = field(compare=False)
    command: str = field(compare=False)
    date: str = field(compare=False)

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        labels: Sequence[int],
        label_policy: str,
        given_labels: list[int] | None,
        seed: int,
        batch_size: int,
        settings: Mapping[str, Any],
        model: str,
        processes: int,
    ) -> Manifest:
        """The manifest of what `pipeline` is about to sample here and now; settings not given have their defaults."""
        downsampling = pipeline.tokenizer.config.downsampling
        defaults = inspect.signature(Pipeline.generate_tokens).parameters.values()
        weights = {name: part_fingerprint(part) for name in PARTS if (part := getattr(pipeline, name)) is not None}
        return cls(
            count=len(labels),
            image_size=(pipeline.grid[0] * downsampling, pipeline.grid[1] * downsampling),
            weights=weights,
            support=pipeline.support,
            label_policy=label_policy,
            given_labels=given_labels,
            labels=fingerprint(torch.tensor(labels, dtype=torch.int64)),
            seed=seed,
            seed_rule="image i uses seed + i",
            settings={p.name: p.default for p in defaults if p.default is not p.empty} | dict(settings),
            batch_size=batch_size,
            dtype=pipeline.dtype,
            quantize=pipeline.quantize,
            compile=pipeline.compile,
            decoder={"fingerprint": weights["tokenizer"], "downsampling": downsampling},
            resize=None,
            model=model,
            device=_device_name(pipeline.device),
            processes=processes,
            threads=torch.get_num_threads(),
            versions=versions(),
            command=shlex.join(sys.argv),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def differences(self, there: Manifest) -> list[str]:
        """What determines the images and is another there than here, each in words."""
        here, other = dict(self._determining()), dict(there._determining())
        return [
            f"{name} is {shorten(other.get(name))} there and {shorten(here.get(name))} here"
            for name in sorted({*here, *other})
            if here.get(name) != other.get(name)
        ]

    def _determining(self) -> Iterator[tuple[str, Any]]:
        for column in dataclasses.fields(self):
            value = getattr(self, column.name)
            if column.compare and isinstance(value, dict):
                yield from ((f"{column.name}.{key}", entry) for key, entry in value.items())
            elif column.compare:
                yield column.name, value

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, {"ctf": "samples", "format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            InputError: missing, not a manifest, or of another version.
        """
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("ctf", None) != "samples":
            raise InputError(f"{path} is not the manifest of a sample set: restore it, or delete it and sample again")
        if values.pop("format", None) != FORMAT or values.keys() != {f.name for f in dataclasses.fields(cls)}:
            raise InputError(f"{path}: this version of ctf reads manifests of format {FORMAT}: update ctf")
        return cls(**values | {"image_size": tuple(values["image_size"])})


def versions() -> dict[str, str]:
    """Of ctf, torch, numpy and Python, as they run here."""
    return {
        "ctf": version("ctf"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def manifest_path(samples: str | Path) -> Path:
    """Where the manifest of a sample set is: in the folder, or `x.manifest.json` beside `x.npz`."""
    samples = Path(samples)
    return samples.with_suffix(".manifest.json") if samples.suffix == ".npz" else samples / "manifest.json"


def part_fingerprint(part: Any) -> str:
    """`ctf.files.fingerprint` of a module's concatenated parameters, without concatenating; or of a coarse map."""
    if not isinstance(part, nn.Module):
        return fingerprint(part.fine_to_coarse)
    parameters = list(part.parameters())
    digest = hashlib.sha256(repr((sum(p.numel() for p in parameters),)).encode())
    for parameter in parameters:
        values = parameter.detach().cpu().to(torch.float32).contiguous() + 0  # −0 is 0
        digest.update(values.numpy().data)
    return digest.hexdigest()[:16]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else str(device)
