"""What the web app does: each method takes what a visitor gives and returns HTML, or yields it while it appears."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctf.app.clusters import METHODS, Clusters
from ctf.app.pictures import data_url, enlarged, figure, read_upload, token_grid
from ctf.app.request import Control, ImageRequest, controls_of, number
from ctf.app.sampler import Sampler, archive
from ctf.classes import check_same, composed
from ctf.completion import fitted
from ctf.errors import InputError
from ctf.images.sheet import png_bytes
from ctf.preview import Preview
from ctf.stages.stage import Stage

#: Pixels on the screen of an image that stands alone, and of a codeword.
LARGE, TILE = 320, 44
#: The link to a single image leads to the chosen one, or the first.
CHOSEN = (
    "const all = this.closest('.results'); const image = all.querySelector('img.chosen') || all.querySelector('img'); "
    "this.href = image.src"
)


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
        self.controls: list[Control] = [c for stage in self.pipeline.stages for c in controls_of(stage)]

    def classes(self) -> list[tuple[str, str]]:
        """What to show and what to say for each class, first for all of them: its name, or its index where the name
        occurs twice."""
        names = [composed(name) for name in self.pipeline.class_names]  # as a keyboard types them in the search
        times = Counter(names)
        single = ((f"{name} ({i})", str(i)) if times[name] > 1 else (name, name) for i, name in enumerate(names))
        return [("all classes, evenly spread", ""), *single]

    def keeps(self) -> str:
        """What of a picture the model can keep, in words."""
        last = torch.arange(self.pipeline.layout.num_tokens) == self.pipeline.layout.num_tokens - 1
        for stage in self.pipeline.stages:
            try:
                stage.check_kept(last)
            except InputError:
                return (
                    f"This model's stage {stage.name} is {stage.kind}: it continues a picture from above and can keep "
                    "rows from the top only (of the last of them the left part)."
                )
        return "This model can keep any part."

    def half(self) -> str:
        """Marks on the upper half."""
        rows, columns = self.pipeline.layout.finest
        upper = (rows + 1) // 2 * columns
        return "1" * upper + "0" * (rows * columns - upper)

    def example(self, html: str) -> dict[str, str]:
        """A picture for the visitor who has none at hand: one of those that `generate` gave, its upper half marked."""
        sources = re.findall('src="(data:image/png[^"]+)"', html)
        return {"src": sources[len(sources) // 3], "keep": self.half()}

    # Generate and complete

    def checked(self, request: ImageRequest) -> ImageRequest:
        """The same. Raises InputError: no such class, or settings that a stage cannot take."""
        request.labels(self.pipeline)
        self.pipeline.sampling(**request.settings)
        return request

    def request(self, label: Any, num: Any, seed: Any, values: tuple[Any, ...]) -> ImageRequest:
        """What the form holds. Raises InputError as `checked`, and for a number out of bounds."""
        keys = [control.key for control in self.controls]
        return self.checked(
            ImageRequest.from_form(self.controls, label, num, seed, dict(zip(keys, values, strict=True)))
        )

    def generate(self, label: Any, num: Any, seed: Any, beside: Any, *values: Any) -> Iterator[tuple[str, str]]:
        """Panels of images while they appear, then what there is to download and the address that leads back."""
        request = self.request(label, num, seed, values)
        yield from self._watch(request, None, bool(beside), f"?{request.query()}")

    def complete(self, picture: Any, label: Any, num: Any, seed: Any, *values: Any) -> Iterator[tuple[str, str]]:
        """The same for a picture of which a part is kept."""
        request = self.request(label, num, seed, values)
        yield from self._watch(request, self.known(picture), False, "")

    def _watch(
        self, request: ImageRequest, known: Tensor | None, beside: bool, address: str
    ) -> Iterator[tuple[str, str]]:
        done, folders = "", {}
        theirs = ImageRequest(request.label, request.num, request.seed)  # settings are of the model's stages
        rows = [(self.model, request)] + ([(self.baseline, theirs)] if beside and self.baseline else [])
        for sampler, wanted in rows:
            for preview, seconds in sampler.watch(wanted, known):
                where = f"{preview.stage}: step {preview.step} of {preview.steps}"
                yield panels(done + self._panel(sampler, wanted, preview, f"{where} · {seconds:.1f} s"), len(rows)), ""
            made = json.dumps(sampler.manifest(wanted, known).as_json(), ensure_ascii=False)
            done += self._panel(sampler, wanted, preview, f"done in {seconds:.1f} s", ctf=made)
            folders[re.sub(r"\W+", "-", sampler.name)] = sampler.folder(preview.images, wanted, known)
        packed = data_url(archive(folders), "application/zip")
        name = f"{next(iter(folders))}-seed-{request.seed}"
        links = f'<a class="zip" href="{packed}" download="{name}.zip">Download all (ZIP)</a>'
        links += f'<a class="png" href="" download="{name}.png" onclick="{CHOSEN}">Download the chosen one (PNG)</a>'
        if address:
            links += f'<a id="permalink" href="{escape(address, quote=True)}">Link to these images</a>'
        yield panels(done, len(rows)), f'<div class="links">{links}</div>'

    @staticmethod
    def _panel(sampler: Sampler, request: ImageRequest, preview: Preview, state: str, **notes: str) -> str:
        """A model's images so far; `notes` go into their PNGs, as how they were made into those of finished ones."""
        pipeline = sampler.pipeline
        names = [pipeline.class_names[label] for label in request.labels(pipeline)]
        figures = "".join(
            figure(image, name, f"seed {request.seed + i}", notes=notes)
            for i, (image, name) in enumerate(zip(preview.images, names, strict=True))
        )
        return (
            f'<section data-stage="{preview.stage}" data-done="{len(notes)}"><h3>{escape(sampler.name)}'
            f"<span>{state}</span></h3><div class='grid'>{figures}</div></section>"
        )

    def known(self, picture: Any) -> Tensor:
        """The tokens to keep of a picture from the web app, {"src": data URL, "keep": a "1" for each token that stays}.

        Raises:
            InputError: no picture, no marks or nothing but marks, or a part that the model cannot keep.
        """
        if not isinstance(picture, Mapping) or not picture.get("src"):
            raise InputError("no picture: drop one, or take one from the tab Generate")
        rows, columns = self.pipeline.layout.finest
        keep = picture.get("keep") or "0" * (rows * columns)
        if not isinstance(keep, str) or not re.fullmatch(f"[01]{{{rows * columns}}}", keep):
            raise InputError(f"marks: a 0 or 1 for each of {rows} × {columns} tokens, row by row")
        if len({*keep}) == 1:
            raise InputError("mark what to keep first" if "0" in keep else "leave a part unmarked, to generate")
        image = fitted(read_upload(picture["src"]), self.pipeline.image_size)
        drawn = np.array([mark == "0" for mark in keep]).reshape(rows, columns)
        mask = drawn.repeat(image.height // rows, 0).repeat(image.width // columns, 1)
        known = self.pipeline.known_tokens(image, mask)
        for stage in self.pipeline.stages:
            stage.check_kept(known >= 0)
        return known

    def upload(self, url: Any) -> dict[str, str]:
        """A picture that was dropped → what the web app keeps of it: of the model's size, its upper half marked."""
        return {"src": data_url(png_bytes(fitted(read_upload(url), self.pipeline.image_size))), "keep": self.half()}

    # For programs

    def api_generate(
        self, label: str = "", num: int = 1, seed: int = 0, settings: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Images of a class as data URLs of PNG files, with the manifest of how they were made.

        label: name of a class, or else its index, "" for classes evenly spread over all; num: how many; seed: image i
        uses seed + i; settings: in place of the model's own, such as {"coarse_temperature": 0.9}. Says on the way which
        step is done: {"stage", "step", "steps"}; the last answer is {"images", "manifest"}.
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
        for preview, _ in self.model.watch(request, known):
            yield {"stage": preview.stage, "step": preview.step, "steps": preview.steps}
        images = [data_url(png_bytes(image)) for image in preview.images]
        yield {"images": images, "manifest": self.model.manifest(request, known).as_json()}

    # Clusters and codebook

    def swap(self, picture: Any, share: Any, count: Any) -> str:
        """Fig. 1: a picture, its tokens and clusters, and what is left of it after swaps within clusters."""
        if not isinstance(picture, Mapping) or not picture.get("src"):
            raise InputError("no picture: drop one, or take one from the tab Generate")
        image = fitted(read_upload(picture["src"]), self.pipeline.image_size)
        clusters, count = self.clusters, int(number("clusters", count))
        tokens, coarse_map = clusters.tokens(image), clusters.clustering(count)
        swaps = clusters.swaps(tokens, float(number("share", share, whole=False)) / 100, count)
        labels = coarse_map.to_coarse(tokens)
        parts = {
            "the picture": image,
            "its tokens, decoded": Image.fromarray(clusters.decoded(tokens)),
            "its clusters alone": Image.fromarray(clusters.means(labels, coarse_map)),
        }
        width = enlarged(image, LARGE // 2)
        figures = "".join(figure(part, name, width=width) for name, part in parts.items())
        layout = self.pipeline.layout
        shown = layout.slices[-1]
        cells = token_grid(tokens[shown].tolist(), labels[shown].tolist(), layout.finest[1])
        figures += f'<figure style="width:{width}px">{cells}<figcaption>clusters of its tokens</figcaption></figure>'
        after = "".join(
            figure(
                swap.image,
                f"within {METHODS[swap.method]} clusters",
                f"{swap.psnr:.1f} dB" if swap.swapped else "nothing swapped",
                enlarged(image, LARGE),
            )
            for swap in swaps
        )
        head = f"{swaps[0].swapped} of {len(tokens)} tokens swapped for another of their cluster"
        return (
            f"<section><div class='grid'>{figures}</div></section>"
            f"<section data-swapped='{swaps[0].swapped}'><h3>{head}</h3><div class='grid'>{after}</div></section>"
        )

    def codebook(self, count: Any) -> Iterator[str]:
        """The whole codebook as a picture of blocks, while it is drawn."""
        count = int(number("clusters", count))
        for picture, _ in self.clusters.overview(count):
            image = Image.fromarray(picture)
            yield f'<img src="{data_url(png_bytes(image))}" alt="the codebook, a block of tiles for each cluster">'

    def cluster_at(self, count: Any, x: Any, y: Any) -> int:
        """The cluster whose block is at this place of the picture, shares of its width and height from 0 to 1."""
        count = int(number("clusters", count))
        *_, (_, order) = self.clusters.overview(count)
        columns = math.ceil(math.sqrt(count))
        rows = -(-count // columns)
        place = int(number("y", y, whole=False) * rows) * columns + int(number("x", x, whole=False) * columns)
        return order[min(max(place, 0), count - 1)]

    def members(self, count: Any, cluster: Any) -> str:
        """Every codeword of a cluster as a tile."""
        count, cluster = int(number("clusters", count)), int(number("cluster", cluster))
        tokens, tiles = self.clusters.member_tiles(count, cluster)
        width = enlarged(Image.fromarray(tiles[0]), TILE)
        figures = "".join(
            figure(Image.fromarray(tile), str(token), width=width) for token, tile in zip(tokens, tiles, strict=True)
        )
        head = f"<h3>cluster {cluster}: {len(tokens)} tokens</h3>"
        return f"<section>{head}<div class='grid tiles'>{figures}</div></section>"


def panels(content: str, count: int) -> str:
    """Panels beside each other."""
    return f'<div class="panels" style="--count:{count}">{content}</div>'


def stage_in_words(stage: Stage) -> str:
    """What a stage does, for a visitor."""
    sampling = stage.resolved()
    level = f"{stage.vocabulary:,} {'tokens' if stage.predicts is None else 'clusters'}"
    steps = f"{sampling.steps} steps" if sampling.steps != 1 else "one step"
    return f"{stage.name}: {stage.kind}, {stage.num_tokens} positions among {level} in {steps}"
