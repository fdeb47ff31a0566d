"""A model as the web app samples from it: previews with times, a manifest, and what there is to download."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

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
    """A pipeline, what to call it, and the fingerprints of its weights, which do not change any more."""

    pipeline: StagePipeline
    name: str
    weights: dict[str, str]

    @classmethod
    def of(cls, pipeline: StagePipeline, source: str) -> Sampler:
        """`source` is what the pipeline was opened by; of a folder the page says its name, not where it is."""
        return cls(pipeline, Path(source).name if Path(source).exists() else source, weights_of(pipeline))

    def watch(self, request: ImageRequest, known: Tensor | None = None) -> Iterator[tuple[Preview, float]]:
        """Previews, the last of them the images, with the seconds that all so far took to make.

        Args:
            request: what to make.
            known: tokens that every image keeps, see `StagePipeline.known_tokens`.

        Raises:
            InputError: no such class, or settings or known tokens that a stage cannot take.
        """
        labels, seconds = request.labels(self.pipeline), 0.0
        previews = self.pipeline.stream(labels, request.seed, PREVIEWS, known, **request.settings)
        while True:
            start = time.perf_counter()
            preview = next(previews, None)
            seconds += time.perf_counter() - start
            if preview is None:
                return
            yield preview, seconds

    def manifest(self, request: ImageRequest, known: Tensor | None = None) -> Manifest:
        """How these images come about. Its command makes them again, unless they complete a picture."""
        labels = request.labels(self.pipeline)
        manifest = Manifest.of(
            self.pipeline,
            labels,
            request.settings,
            processes=1,
            weights=self.weights,
            label_policy="given",
            given_labels=labels,
            seed=request.seed,
            batch_size=request.num,
            model=self.name,
            known=[] if known is None else known.tolist(),
        )
        words = ["ctf", "app", "--model", self.name]
        if known is None:
            words[1] = "sample"
            typed = [typed_label(self.pipeline.class_names, label) for label in labels]
            words += ["--labels", json.dumps(typed, ensure_ascii=False), "--seed", str(request.seed)]
            words += ["--out", "samples"]
            for name, value in request.settings.items():
                words += [] if value is None else [f"--{name}", str(value)]
        return dataclasses.replace(manifest, command=shlex.join(words))

    def folder(
        self, images: Sequence[Image.Image], request: ImageRequest, known: Tensor | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """The files of a sample set, as `ctf sample` writes it to a folder: names and contents."""
        facts = folder_list(request.labels(self.pipeline), self.pipeline.class_names, request.seed)
        for fact, image in zip(facts, images, strict=True):
            yield fact["file"], png_bytes(image)
        yield SHEET, png_bytes(sheet([np.asarray(image) for image in images]))
        for name, value in ((LIST, facts), ("manifest.json", self.manifest(request, known).as_json())):
            yield name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def archive(folders: Mapping[str, Iterable[tuple[str, bytes]]]) -> bytes:
    """A ZIP file of folders of files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:  # PNGs are compressed already
        for folder, files in folders.items():
            for name, content in files:
                packed.writestr(zipfile.ZipInfo(f"{folder}/{name}"), content)  # of no date: the same bytes again
    return file.getvalue()
