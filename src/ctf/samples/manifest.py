"""Manifest: everything that fixes a set of samples, in a file beside them."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from ctf.device import device_name
from ctf.errors import InputError
from ctf.files import flattened, read_json, write_json
from ctf.fingerprint import fingerprint
from ctf.model_card import part_fingerprint, versions
from ctf.pipeline import StagePipeline
from ctf.plugins import source_fingerprint
from ctf.sampling.settings import Sampling, is_own
from ctf.tokens.writer import shorten

FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """Settings that determine the images, by which two manifests are compared, and how they were made.

    Attributes:
        count: number of images.
        image_size: (height, width) in pixels, as they are decoded.
        weights: a fingerprint of each part of the pipeline, by its name; a stage's covers its maps.
        stages: name, kind and support of each stage, in order.
        sampling: guidance, temperature and filters of each stage, by its name, the model's defaults included.
        compute: dtype, quantization and compilation of the stages, and the dtype of the decoder.
        label_policy: "balanced" (image i has label i modulo the number of classes), "uniform" (drawn with the seed)
            or "given" (the given labels, repeated as often as needed).
        given_labels: class indices, none but with the policy "given".
        labels: fingerprint of the labels of all images, int64 (count,).
        seed: of image 0.
        batch_size: images computed together; batch k holds the images from k · batch_size on.
        model: the pipeline as it was asked for.
        device: what it ran on. This and the following are of the command that finished the set.
        processes: that shared the work.
        threads: of each process on the CPU.
        versions: of ctf, torch, numpy and Python.
        command: as a shell line.
        date: when that began, UTC.
        seed_rule: the seeds of the other images.
        resize: never resized after decoding.
        known: tokens that every image keeps, −1 where they are generated; [] where all are.
    """

    count: int
    image_size: tuple[int, int]
    weights: dict[str, str]
    stages: list[dict[str, str]]
    sampling: dict[str, dict[str, Any]]
    compute: dict[str, Any]
    label_policy: str
    given_labels: list[int]
    labels: str
    seed: int
    batch_size: int
    model: str = field(compare=False)
    device: str = field(compare=False)
    processes: int = field(compare=False)
    threads: int = field(compare=False)
    versions: dict[str, str] = field(compare=False)
    command: str = field(compare=False)
    date: str = field(compare=False)
    seed_rule: str = "image i uses seed + i"
    resize: None = None
    known: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        pipeline: StagePipeline,
        labels: Sequence[int],
        overrides: Mapping[str, Any],
        processes: int,
        weights: dict[str, str] | None = None,
        **asked: Any,
    ) -> Manifest:
        """The manifest of what `pipeline` is about to sample here and now.

        Args:
            pipeline: the model, on its device.
            labels: of all images.
            overrides: of the model's sampling settings, see `StagePipeline.sampling`.
            processes: that share the work.
            weights: what `weights_of` gave for these weights earlier.
            asked: `label_policy`, `given_labels`, `seed`, `batch_size`, `model`; `known` where images are completed.

        Raises:
            InputError: settings that no stage has, or without meaning.
        """
        return cls(
            count=len(labels),
            image_size=pipeline.image_size,
            weights=weights or weights_of(pipeline),
            stages=[{key: getattr(stage, key) for key in ("name", "kind", "support")} for stage in pipeline.stages],
            sampling={name: _with_code(used) for name, used in pipeline.sampling(**overrides).items()},
            compute=dataclasses.asdict(pipeline.compute),
            labels=fingerprint(torch.tensor(labels, dtype=torch.int64)),
            device=device_name(pipeline.device),
            processes=processes,
            threads=torch.get_num_threads(),
            versions=versions(),
            command=shlex.join(sys.argv),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **asked,
        )

    def differences(self, other: Manifest) -> list[str]:
        """The determining settings that differ between this manifest (here) and `other` (there), each in words."""
        here, there = dict(flattened(self._determining())), dict(flattened(other._determining()))
        return [
            f"{name} is {shorten(there.get(name))} there and {shorten(here.get(name))} here"
            for name in sorted({*here, *there})
            if here.get(name) != there.get(name)
        ]

    def check_equal(self, path: Path, where: str, remedy: str) -> None:
        """Raise InputError, "`where` samples with other settings …: `remedy`", if the manifest in `path` differs."""
        if found := self.differences(Manifest.load(path)):
            raise InputError(f"{where} samples with other settings: {'; '.join(found)}: {remedy}")

    def _determining(self) -> dict[str, Any]:
        values = {column.name: getattr(self, column.name) for column in dataclasses.fields(self) if column.compare}
        return values | {"stages": {stage["name"]: stage for stage in self.stages}}

    def as_json(self) -> dict[str, Any]:
        """The content of a manifest's file."""
        return {"ctf": "samples", "format": FORMAT, **dataclasses.asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.as_json())

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            InputError: missing, not a manifest, or of another version.
        """
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("ctf", None) != "samples":
            raise InputError(f"{path} is not the manifest of a sample set: restore it, or delete it and sample again")
        types = {name: get_origin(hint) or hint for name, hint in get_type_hints(cls).items()}
        if values.pop("format", None) != FORMAT or values.keys() != types.keys():
            raise InputError(f"{path} is not of format {FORMAT}, which this version of ctf reads: sample again")
        if isinstance(values["image_size"], list):
            values["image_size"] = tuple(values["image_size"])
        for name, value in values.items():
            if not isinstance(value, types[name]):
                raise InputError(f"{path}: {name} is {shorten(value)}: restore the file, or sample again")
        return cls(**values)


def _with_code(sampling: Sampling) -> dict[str, Any]:
    """The settings, with the fingerprint of a user's own code behind its name."""
    values = dataclasses.asdict(sampling)
    return {name: f"{value} {source_fingerprint(value)}" if is_own(value) else value for name, value in values.items()}


def manifest_path(samples: str | Path) -> Path:
    """Path of the manifest of a sample set: in the folder, or `x.manifest.json` beside `x.npz`."""
    samples = Path(samples)
    return samples.with_suffix(".manifest.json") if samples.suffix == ".npz" else samples / "manifest.json"


def is_sample_set(folder: str) -> bool:
    """Whether a folder holds the manifest of a sample set. Raises InputError: a damaged one."""
    path = manifest_path(folder)
    return path.exists() and isinstance(values := read_json(path), dict) and values.get("ctf") == "samples"


def weights_of(pipeline: StagePipeline) -> dict[str, str]:
    """`part_fingerprint` of each part by its name."""
    return {name: part_fingerprint(part) for name, part in pipeline.parts().items()}
