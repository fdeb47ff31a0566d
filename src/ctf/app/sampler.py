"""A model as the web app samples from it: a run with its previews, a manifest, and what there is to download."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ctf.app.classes import Classes
from ctf.app.pictures import difference, file_name, item
from ctf.app.request import ImageRequest
from ctf.classes import typed_label
from ctf.images.sheet import png_bytes
from ctf.pipeline import StagePipeline
from ctf.preview import Preview
from ctf.samples.manifest import Manifest, weights_of
from ctf.samples.sample_set import LIST, SHEET, folder_list, sheet

#: Of each stage, at most: enough to see an image appear, few enough that decoding them costs little.
PREVIEWS = 8


@dataclass(frozen=True)
class Sampler:
    """A pipeline, what to call it, the fingerprints of its weights, which do not change any more, and its classes."""

    pipeline: StagePipeline
    name: str
    weights: dict[str, str]
    classes: Classes

    @classmethod
    def of(cls, pipeline: StagePipeline, source: str) -> Sampler:
        """`source` is what the pipeline was opened by; of a folder the web app says its name, not where it is."""
        name = Path(source).name if Path(source).exists() else source
        return cls(pipeline, name, weights_of(pipeline), Classes(pipeline.class_names))

    @cached_property
    def stage_titles(self) -> dict[str, str]:
        """What to call each stage: "stage 1 · clusters"."""
        return {
            stage.name: f"stage {place} · {'tokens' if stage.predicts is None else 'clusters'}"
            for place, stage in enumerate(self.pipeline.stages, 1)
        }


@dataclass
class Run:
    """A request that a model carries out, and what was seen of it so far.

    Attributes:
        sampler, request: the model, and what it makes.
        known: tokens that every image keeps, see `StagePipeline.known_tokens`.
        frames: the previews. The last one of a run that is done shows the images.
        seconds: that all frames took to make.
        done, stopped: whether it ran to its end, or a visitor stopped it.
        chosen: which image a visitor chose.
    """

    sampler: Sampler
    request: ImageRequest
    known: Tensor | None = None
    frames: list[Preview] = field(default_factory=list)
    seconds: float = 0.0
    done: bool = False
    stopped: bool = False
    chosen: int = 0

    @cached_property
    def labels(self) -> list[int]:
        """A class index for each image. Raises InputError: no such class."""
        return self.request.labels(self.sampler.classes)

    @property
    def images(self) -> list[Image.Image]:
        """As the last frame shows them."""
        return self.frames[-1].images

    def when(self, number: int = 0) -> str:
        """The stage and step of frame `number`, from 1; 0 is the last."""
        frame = self.frames[number - 1]
        return f"{self.sampler.stage_titles[frame.stage]}, step {frame.step} of {frame.steps}"

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.done:
            return f"done in {self.seconds:.1f} s"
        return f"stopped after {self.when()}" if self.stopped else f"{self.when()} · {self.seconds:.1f} s"

    def gallery(self, number: int = 0) -> list[dict[str, Any]]:
        """The images of frame `number`, for Gradio's Gallery. Those of a run that is done say how they were made."""
        final = self.done and number in (0, len(self.frames))
        notes = {"ctf": json.dumps(self.manifest().as_json(), ensure_ascii=False)} if final else {}
        items = []
        for place, (image, label) in enumerate(zip(self.frames[number - 1].images, self.labels, strict=True)):
            name, seed = self.sampler.pipeline.class_names[label], self.request.seed + place
            caption = f"{name}, seed\u00a0{seed}"
            items.append(item(image, caption, file_name(name, f"seed-{seed}"), **notes))
        return items

    def stages(self) -> list[dict[str, Any]]:
        """The chosen image after each stage, and what the last of them changed; nothing of a single stage."""
        seen = {self.sampler.stage_titles[frame.stage]: frame.images[self.chosen] for frame in self.frames}
        if len(seen) == 1:
            return []
        items = [item(image, f"after {title}", file_name(title)) for title, image in seen.items()]
        *_, before, after = seen.values()
        return [*items, item(difference(before, after), f"changed by {[*seen][-1]}; grey: nothing", "changed")]

    def steps(self) -> Iterator[Preview]:
        """Make the images, one frame after another.

        Raises:
            InputError: no such class, or settings or known tokens that a stage cannot take.
        """
        pipeline, request = self.sampler.pipeline, self.request
        previews = pipeline.stream(self.labels, request.seed, PREVIEWS, self.known, **request.settings)
        start = time.perf_counter()
        for preview in previews:
            self.seconds += time.perf_counter() - start
            self.frames.append(preview)
            yield preview
            start = time.perf_counter()
        self.done = True

    def manifest(self) -> Manifest:
        """How these images come about. Its command makes them again, unless they complete a picture."""
        sampler, request = self.sampler, self.request
        manifest = Manifest.of(
            sampler.pipeline,
            self.labels,
            request.settings,
            processes=1,
            weights=sampler.weights,
            label_policy="given",
            given_labels=self.labels,
            seed=request.seed,
            batch_size=request.num,
            model=sampler.name,
            known=[] if self.known is None else self.known.tolist(),
        )
        command = ["ctf", "app", "--model", sampler.name]
        if self.known is None:
            typed = [typed_label(sampler.pipeline.class_names, label) for label in self.labels]
            options = {"labels": json.dumps(typed, ensure_ascii=False), "seed": request.seed, "out": "samples"}
            options["dtype"] = manifest.compute["dtype"]  # `auto` of another machine may be another one
            command = ["ctf", "sample", "--model", sampler.name]
            for name, value in {**options, **request.settings}.items():
                command += [f"--{name}", str(value)]
        return dataclasses.replace(manifest, command=shlex.join(command))


def archive(runs: list[Run]) -> bytes:
    """A ZIP file with a sample set of each run, as `ctf sample` writes it to a folder."""
    file, names = io.BytesIO(), [file_name(run.sampler.name) for run in runs]
    folders = [name if names.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(names, 1)]
    with zipfile.ZipFile(file, "w") as packed:  # PNGs are compressed already
        for folder, run in zip(folders, runs, strict=True):
            facts = folder_list(run.labels, run.sampler.pipeline.class_names, run.request.seed)
            files = {fact["file"]: png_bytes(image) for fact, image in zip(facts, run.images, strict=True)}
            files[SHEET] = png_bytes(sheet([np.asarray(image) for image in run.images]))
            for name, value in ((LIST, facts), ("manifest.json", run.manifest().as_json())):
                files[name] = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
            for name, content in files.items():  # of no date: the same bytes again
                packed.writestr(zipfile.ZipInfo(f"{folder}/{name}"), content)
    return file.getvalue()
