"""What the web app does: each method takes what a visitor gives, and returns or yields what is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctf.app.clusters import Clusters
from ctf.app.pictures import data_url, file_name, item, label_colours
from ctf.app.request import Control, ImageRequest, controls_of
from ctf.app.sampler import Run, Sampler, archive
from ctf.classes import check_same
from ctf.completion import fitted
from ctf.errors import InputError
from ctf.images.sheet import png_bytes
from ctf.samples.complete import read_picture

#: Of a file that a visitor uploads, 8 MiB, and of the picture in it.
MOST_BYTES, MOST_PIXELS = 8 << 20, 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class Given(NamedTuple):
    """A picture that a visitor gave, in RGB and of the model's size, and the settings that it was made with."""

    image: Image.Image
    settings: Mapping[str, Any]


class Studio:
    """A model, perhaps another one beside it, and its codebook.

    Args:
        model: the model that is shown.
        against: shown on request, with its own settings.

    Raises:
        InputError: the two know different classes.
    """

    def __init__(self, model: Sampler, against: Sampler | None = None) -> None:
        self.model, self.against, self.pipeline = model, against, model.pipeline
        if against is not None:
            check_same(against.pipeline.class_names, self.pipeline.class_names, against.name, model.name)
        self.clusters = Clusters(self.pipeline)
        self.classes = model.classes
        self.controls: list[Control] = [c for stage in self.pipeline.stages for c in controls_of(stage)]
        self.rows, self.columns = self.pipeline.layout.finest

    @cached_property
    def continues(self) -> bool:
        """Whether the model only continues pictures from above, where others keep any part."""
        last = torch.arange(self.pipeline.layout.num_tokens) == self.pipeline.layout.num_tokens - 1
        try:
            for stage in self.pipeline.stages:
                stage.check_kept(last)
        except InputError:
            return True
        return False

    # Generate

    def checked(self, request: ImageRequest) -> ImageRequest:
        """The same. Raises InputError: no such class, or settings that a stage cannot take."""
        request.labels(self.classes)
        self.pipeline.sampling(**request.settings)
        return request

    def request(self, subject: Any, design: Any, num: Any, seed: Any, settings: Any) -> ImageRequest:
        """What a form holds. Raises InputError as `checked` and `ImageRequest`."""
        whole = subject in self.classes.names  # typed with its design
        label = " ".join(str(part) for part in ("" if whole else design, subject) if part)
        return self.checked(ImageRequest(label, num, seed, settings))

    def generate(
        self, subject: Any, design: Any, num: Any, seed: Any, beside: Any, *values: Any
    ) -> Iterator[list[Run]]:
        """The model's run and perhaps the other one's, after each of their frames."""
        given = zip(self.controls, values, strict=True)
        settings = {control.key: value for control, value in given if value is not None}
        request = self.request(subject, design, num, seed, settings)
        runs = [Run(self.model, request)]
        if beside and self.against:  # settings are of the model's stages
            runs.append(Run(self.against, ImageRequest(request.label, request.num, request.seed)))
        yield from self._watch(runs)

    @staticmethod
    def _watch(runs: list[Run]) -> Iterator[list[Run]]:
        for run in runs:
            for _ in run.steps():
                yield runs
        yield runs

    @staticmethod
    def frame(runs: list[Run] | None, frame: Any) -> Run:
        """The first run, of which there is frame `frame`, from 1. Raises InputError: there is none."""
        if not runs or frame not in range(1, len(runs[0].frames) + 1):
            raise InputError("these images are not kept any more: press Generate again")
        return runs[0]

    def links(self, runs: list[Run]) -> str:
        """What there is to download, and the address that leads back, as HTML. Of runs that were stopped nothing is to
        be downloaded: their images are not the model's."""
        request, links = runs[0].request, ""
        if all(run.done for run in runs):
            name = file_name(self.model.name, request.label or "all classes", f"seed-{request.seed}")
            packed = data_url(archive(runs), "application/zip")
            links = f'<a class="zip" href="{packed}" download="{name}.zip">Download all (ZIP)</a>'
        if runs[0].known is None:
            address = escape(f"?{request.query()}", quote=True)
            links += f'<a id="permalink" href="{address}">Link to these images</a>'
        return f'<div class="links">{links}</div>'

    # Complete

    def upload(self, encoded: bytes | None) -> Given:
        """A file that a visitor uploaded, cut to the model's size. Raises InputError as `read_picture`."""
        image = read_picture(encoded or b"", "the upload", FORMATS, MOST_PIXELS)
        return Given(fitted(image, self.pipeline.image_size), {})

    def take(self, runs: list[Run] | None) -> tuple[Given, str, str]:
        """The chosen image of Generate, its subject and its design. Raises InputError: there is none."""
        if not runs or not runs[0].done:
            raise InputError("no finished image in the tab Generate: press Generate there first")
        run = runs[0]
        label = run.labels[run.chosen]
        name = self.classes.names[label]
        subject, design = self.classes.parted(name if self.classes.names.count(name) == 1 else str(label))
        return Given(run.images[run.chosen], run.request.settings), subject, design

    def settings_note(self, given: Given) -> str:
        """What settings a picture's completions are made with, in words."""
        settings = given.settings
        changed = [f"{c.key} {settings[c.key]}" for c in self.controls if settings.get(c.key, c.value) != c.value]
        return "Settings of the picture: " + (", ".join(changed) or "the model's own") + "."

    def marked(self, given: Given, rows: int) -> dict[str, str]:
        """A picture for the mask editor, and a "1" for each of its tokens that is kept: those of the upper rows."""
        kept = min(max(int(rows), 0), self.rows) * self.columns  # of whoever asks: a string of any length else
        keep = "1" * kept + "0" * (self.rows * self.columns - kept)
        return {"src": data_url(png_bytes(given.image)), "keep": keep}

    def known(self, given: Given | None, keep: Any) -> Tensor:
        """The tokens to keep of a picture; `keep`: "1" for each of those, "0" for each to generate, row by row.

        Raises:
            InputError: no picture, other marks, or a part that the model cannot keep.
        """
        if given is None:
            raise InputError("no picture: give one, or take one from the tab Generate")
        if not re.fullmatch(f"[01]{{{self.rows * self.columns}}}", str(keep)) or len({*keep}) == 1:
            raise InputError("keep a part of the picture, and leave a part to generate")
        height, width = self.pipeline.image_size
        mask = np.array([*keep]).reshape(self.rows, self.columns) == "0"
        mask = mask.repeat(height // self.rows, 0).repeat(width // self.columns, 1)
        return self.pipeline.known_tokens(given.image, mask)

    def complete(
        self, given: Given | None, keep: Any, subject: Any, design: Any, num: Any, seed: Any
    ) -> Iterator[list[Run]]:
        """The same as `generate` for a picture of which a part is kept, with the picture's settings."""
        known = self.known(given, keep)
        request = self.request(subject, design, num, seed, given.settings if given else {})
        yield from self._watch([Run(self.model, request, known)])

    # Clusters and codebook

    def swap(self, given: Given | None, share: float, count: int) -> list[dict[str, Any]]:
        """Fig. 1: a picture, its tokens and clusters, and what is left when `share` % are swapped within clusters."""
        if given is None:
            return []
        tokens, coarse_map = self.clusters.tokens(given.image), self.clusters.clustering(count)
        labels, finest = coarse_map.to_coarse(tokens), self.pipeline.layout.slices[-1]
        shown = {
            "the picture": given.image,
            "its tokens, decoded": Image.fromarray(self.clusters.decoded(tokens)),
            "its clusters alone": Image.fromarray(self.clusters.means(labels, coarse_map)),
            "its clusters, a colour for each": label_colours(labels[finest].reshape(self.rows, self.columns)),
            **self.clusters.swaps(tokens, share / 100, count),
        }
        return [item(image, caption) for caption, image in shown.items()]

    def codebook(self, count: int) -> Iterator[dict[str, str]]:
        """The whole codebook as a picture of blocks, while it is decoded."""
        for picture, _ in self.clusters.overview(count):
            yield item(picture)["image"]

    def members(self, count: int, cluster: int | None) -> list[dict[str, Any]]:
        """Every codeword of a cluster as a tile."""
        if cluster is None:  # a field that was emptied
            return []
        tokens, tiles = self.clusters.member_tiles(count, cluster)
        return [item(Image.fromarray(tile), str(token)) for token, tile in zip(tokens, tiles, strict=True)]
