"""What the web app does: each method takes what a visitor gives, and returns or yields what is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctf.app.clusters import METHODS, Clusters
from ctf.app.pictures import data_url, file_name, item, label_colours, read_upload
from ctf.app.request import Control, ImageRequest, controls_of, number
from ctf.app.sampler import Run, Sampler, archive
from ctf.classes import check_same
from ctf.completion import fitted
from ctf.errors import InputError
from ctf.images.sheet import png_bytes


class Studio:
    """A model, perhaps a baseline beside it, and its codebook.

    Args:
        model: the model that is shown.
        baseline: shown on request, with its own settings.

    Raises:
        InputError: the two know different classes.
    """

    def __init__(self, model: Sampler, baseline: Sampler | None = None) -> None:
        self.model, self.baseline, self.pipeline = model, baseline, model.pipeline
        if baseline is not None:
            check_same(baseline.pipeline.class_names, self.pipeline.class_names, baseline.name, model.name)
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
        """What a form holds. Raises InputError as `checked`, and for a number out of bounds."""
        whole = subject in self.classes.names  # typed with its design
        label = " ".join(str(part) for part in ("" if whole else design, subject) if part)
        return self.checked(ImageRequest.from_form(self.controls, label, num, seed, settings))

    def generate(
        self, subject: Any, design: Any, num: Any, seed: Any, beside: Any, *values: Any
    ) -> Iterator[list[Run]]:
        """The model's run and perhaps the baseline's, after each of their frames."""
        settings = dict(zip([control.key for control in self.controls], values, strict=True))
        request = self.request(subject, design, num, seed, settings)
        runs = [Run(self.model, request)]
        if beside and self.baseline:  # settings are of the model's stages
            runs.append(Run(self.baseline, ImageRequest(request.label, request.num, request.seed)))
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
        if not runs or not 1 <= int(number("frame", frame)) <= len(runs[0].frames):
            raise InputError("these images are not kept any more: press Generate again")
        return runs[0]

    def links(self, runs: list[Run]) -> str:
        """What there is to download, and the address that leads back, as HTML. Of runs that were stopped nothing is to
        be downloaded: their images are not the model's."""
        request, links = runs[0].request, ""
        if all(run.done for run in runs):
            folders = {file_name(run.sampler.name): run.folder() for run in runs}
            name = file_name(self.model.name, request.label or "all classes", f"seed-{request.seed}")
            packed = data_url(archive(folders), "application/zip")
            links = f'<a class="zip" href="{packed}" download="{name}.zip">Download all (ZIP)</a>'
        if runs[0].known is None:
            address = escape(f"?{request.query()}", quote=True)
            links += f'<a id="permalink" href="{address}">Link to these images</a>'
        return f'<div class="links">{links}</div>'

    # Complete

    def marks(self, rows: Any) -> str:
        """A "1" for each token of the upper rows, and a "0" for each below."""
        kept = min(max(int(number("rows", rows)), 0), self.rows) * self.columns
        return "1" * kept + "0" * (self.rows * self.columns - kept)

    def picture(self, image: Image.Image, rows: Any, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A picture to complete, as the web app keeps it: of the model's size, the upper rows marked to be kept, with
        the settings that it was made with."""
        source = data_url(png_bytes(fitted(image, self.pipeline.image_size)))
        return {"src": source, "keep": self.marks(rows), "settings": dict(settings or {})}

    def upload(self, url: Any, rows: Any) -> dict[str, Any]:
        """A picture that was dropped. Raises InputError as `read_upload`."""
        return self.picture(read_upload(url), rows)

    def take(self, runs: list[Run] | None, rows: Any) -> tuple[dict[str, Any], str, str]:
        """The chosen image of Generate, its subject and its design. Raises InputError: there is none."""
        if not runs or not runs[0].done:
            raise InputError("no finished image in the tab Generate: press Generate there first")
        run = runs[0]
        label = run.labels[run.chosen]
        name = self.classes.names[label]
        subject, design = self.classes.parted(name if self.classes.names.count(name) == 1 else str(label))
        return self.picture(run.images[run.chosen], rows, run.request.settings), subject, design

    def settings_note(self, picture: Any) -> str:
        """What settings a picture's completions are made with, in words."""
        given = (picture or {}).get("settings") or {}
        changed = [f"{c.key} {given[c.key]}" for c in self.controls if given.get(c.key, c.value) != c.value]
        return "Settings of the picture: " + (", ".join(changed) or "the model's own") + "."

    def complete(self, picture: Any, subject: Any, design: Any, num: Any, seed: Any) -> Iterator[list[Run]]:
        """The same as `generate` for a picture of which a part is kept, with the picture's settings."""
        known = self.known(picture)
        request = self.request(subject, design, num, seed, picture.get("settings") or {})
        yield from self._watch([Run(self.model, request, known)])

    def known(self, picture: Any) -> Tensor:
        """The tokens to keep of a picture from the web app, {"src": data URL, "keep": a "1" for each token that stays}.

        Raises:
            InputError: no picture, no marks or nothing but marks, or a part that the model cannot keep.
        """
        if not isinstance(picture, Mapping) or not picture.get("src"):
            raise InputError("no picture: drop one, or take one from the tab Generate")
        rows, columns = self.rows, self.columns
        keep = picture.get("keep") or "0" * (rows * columns)
        if not isinstance(keep, str) or not re.fullmatch(f"[01]{{{rows * columns}}}", keep):
            raise InputError(f"marks: a 0 or 1 for each of {rows} × {columns} tokens, row by row")
        if len({*keep}) == 1:
            raise InputError("mark what to keep first" if "0" in keep else "leave a part unmarked, to generate")
        image = fitted(read_upload(picture["src"]), self.pipeline.image_size)
        generated = np.array([mark == "0" for mark in keep]).reshape(rows, columns)
        mask = generated.repeat(image.height // rows, 0).repeat(image.width // columns, 1)
        known = self.pipeline.known_tokens(image, mask)
        for stage in self.pipeline.stages:
            stage.check_kept(known >= 0)
        return known

    # For programs

    def api_generate(
        self, label: str = "", num: int = 1, seed: int = 0, settings: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Images of a class as data URLs of PNG files, with the manifest of how they were made.

        label: name of a class or its index, or words that find one, "" for classes evenly spread over all; num: how
        many; seed: image i uses seed + i; settings: in place of the model's own, such as {"coarse_temperature": 0.9}.
        Says on the way which step is done: {"stage", "step", "steps"}; the last answer is {"images", "manifest"}.
        """
        yield from self._answer(ImageRequest.from_form(self.controls, label, num, seed, settings or {}), None)

    def api_complete(
        self,
        picture: str,
        keep: str,
        label: str = "",
        num: int = 1,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """As generate, but a part of a picture stays.

        picture: a data URL; keep: a "1" for each token that stays and a "0" for each to generate, row by row.
        """
        request = ImageRequest.from_form(self.controls, label, num, seed, settings or {})
        yield from self._answer(request, self.known({"src": picture, "keep": keep}))

    def _answer(self, request: ImageRequest, known: Tensor | None) -> Iterator[dict[str, Any]]:
        run = Run(self.model, request, known)
        for preview in run.steps():
            yield {"stage": preview.stage, "step": preview.step, "steps": preview.steps}
        yield {"images": [data_url(png_bytes(image)) for image in run.images], "manifest": run.manifest().as_json()}

    # Clusters and codebook

    def swap(self, picture: Any, share: Any, count: Any) -> list[dict[str, Any]]:
        """Fig. 1: a picture, its tokens and clusters, and what is left of it after swaps within clusters."""
        if not isinstance(picture, Mapping) or not picture.get("src"):
            raise InputError("no picture: drop one, or take one from the tab Generate")
        image = fitted(read_upload(picture["src"]), self.pipeline.image_size)
        clusters, count = self.clusters, int(number("clusters", count))
        tokens, coarse_map = clusters.tokens(image), clusters.clustering(count)
        swaps = clusters.swaps(tokens, float(number("share", share, whole=False)) / 100, count)
        labels, finest = coarse_map.to_coarse(tokens), self.pipeline.layout.slices[-1]
        shown = [
            item(Image.fromarray(clusters.decoded(tokens)), "its tokens, decoded"),
            item(Image.fromarray(clusters.means(labels, coarse_map)), "its clusters alone"),
            item(
                label_colours(labels[finest].reshape(self.rows, self.columns)),
                "its clusters, a colour for each",
            ),
        ]
        for swap in swaps:
            loss = f"{swap.swapped} of {len(tokens)} swapped within {METHODS[swap.method]} clusters"
            shown.append(item(swap.image, f"{loss} · {swap.psnr:.1f} dB" if swap.swapped else loss))
        return shown

    def codebook(self, count: Any) -> Iterator[dict[str, str]]:
        """The whole codebook as a picture of blocks, while it is decoded."""
        for picture, _ in self.clusters.overview(int(number("clusters", count))):
            yield item(Image.fromarray(picture))["image"]

    def cluster_at(self, count: Any, x: Any, y: Any) -> int:
        """The cluster whose block is at a pixel of the picture."""
        count = int(number("clusters", count))
        *_, (picture, order) = self.clusters.overview(count)
        columns = math.ceil(math.sqrt(count))
        block = picture.shape[1] // columns
        place = int(number("y", y, whole=False) // block) * columns + int(number("x", x, whole=False) // block)
        return order[min(max(place, 0), count - 1)]

    def members(self, count: Any, cluster: Any) -> list[dict[str, Any]]:
        """Every codeword of a cluster as a tile."""
        tokens, tiles = self.clusters.member_tiles(int(number("clusters", count)), int(number("cluster", cluster)))
        return [item(Image.fromarray(tile), str(token)) for token, tile in zip(tokens, tiles, strict=True)]
