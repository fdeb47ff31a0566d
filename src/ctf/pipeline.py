"""From class labels to images: a tokenizer and a list of stages."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ctf.classes import class_index
from ctf.codebook.coarse_map import CoarseMap
from ctf.completion import split_by_mask
from ctf.device import available_memory, return_freed_memory, usable_device
from ctf.errors import InputError, our_name
from ctf.images.pixels import to_tensor
from ctf.layout import Layout
from ctf.models.config import Compute
from ctf.preview import Preview, preview_of
from ctf.progress import progress_bar
from ctf.sampling.prefetch import prefetch
from ctf.sampling.random import Random
from ctf.sampling.settings import Sampling, overridden
from ctf.stages.stage import Stage
from ctf.tokenizer.decode import decode_images
from ctf.tokenizer.interface import Tokenizer

#: `largest_batch` takes at most this many images: beyond, a step is bound by arithmetic, not by reading weights.
LARGEST_BATCH = 256

#: Called with the work that was done since the last call, in images.
OnProgress = Callable[[float], object]

#: One class or several, each by its index or its name.
Labels = int | str | Sequence[int | str]


def _no_attribute(self: object, name: str) -> NoReturn:
    """Name what stands here for an attribute of diffusers' pipelines."""
    raise AttributeError(our_name(name) or f"{type(self).__name__!r} object has no attribute {name!r}")


class Images(list[Image.Image]):
    """A list of PIL images: what calling a pipeline returns."""

    if not TYPE_CHECKING:  # to which no attribute would then be a mistake
        __getattr__ = _no_attribute


class StagePipeline:
    """A tokenizer and the stages that run in turn; `ctf.Pipeline` adds files to it.

    A baseline is a pipeline of one stage, the paper's system of two. Several threads may sample from one pipeline.

    Args:
        tokenizer: decodes the last stage's tokens.
        class_names: the name of each label.
        stages: the first is given nothing, each later one the level that the one before it predicts, and the last
            predicts the codebook's own tokens.

    Raises:
        InputError: parts that do not belong together.
    """

    def __init__(self, tokenizer: Tokenizer, class_names: Sequence[str], stages: Sequence[Stage]) -> None:
        if not stages:
            raise InputError("a pipeline has at least one stage")
        self.tokenizer, self.class_names, self.stages = tokenizer, list(class_names), list(stages)
        level: CoarseMap | None = None
        for place, stage in enumerate(stages):
            if stage.given != level:
                needs = "nothing but the class label" if level is None else f"what {stages[place - 1].name} predicts"
                raise InputError(
                    f"stage {stage.name} must be given {needs}, and was trained with something else: give the stages "
                    "of one system, coarse ones first"
                )
            stage.check_tokenizer(tokenizer)
            if (stage.layout, stage.num_classes) != (stages[0].layout, stages[0].num_classes):
                raise InputError(f"stages {stages[0].name} and {stage.name} differ in layout or number of classes")
            size = tokenizer.image_size(stage.layout)
            if (made := tokenizer.layout(size)) != stage.layout:
                raise InputError(
                    f"stage {stage.name} is for tokens of {stage.layout}, the tokenizer makes {made} of "
                    f"{size[0]} × {size[1]} pixels"
                )
            level = stage.predicts
        if level is not None:
            raise InputError(f"the last stage, {stages[-1].name}, predicts coarse labels: a finer stage is missing")
        if len({stage.name for stage in stages}) < len(stages):
            raise InputError(f"stages of one name: {', '.join(stage.name for stage in stages)}")
        if len(self.class_names) != stages[0].num_classes:
            raise InputError(f"{len(self.class_names)} class names for a model of {stages[0].num_classes} classes")
        self._compute = Compute()
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes, which pack the stages themselves."""
        return {name: value for name, value in vars(self).items() if name not in ("_packed", "_packing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._packed: dict[str, tuple[Any, Stage]] = {}
        self._packing = threading.Lock()

    if not TYPE_CHECKING:  # to which no attribute would then be a mistake
        __getattr__ = _no_attribute

    def __repr__(self) -> str:
        height, width = self.image_size
        what = f"{height} × {width} pixels, {len(self.class_names)} classes, {self.device}, {self.compute.dtype}"
        lines = [
            f"  {stage.name}: {stage.kind}, predicts {level(stage.predicts, stage.codebook_size)}, "
            f"{stage.num_parameters() / 1e6:.1f} M parameters"
            for stage in self.stages
        ]
        return "\n".join([f"{type(self).__name__} of {what}", *lines])

    @property
    def device(self) -> torch.device:
        """The device that samples."""
        return self.stages[0].device

    @property
    def compute(self) -> Compute:
        """How its device samples."""
        return self._compute.on(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the stages sample; their weights stay as they are."""
        return self.compute.torch_dtype

    @property
    def layout(self) -> Layout:
        """The grids of an image's tokens."""
        return self.stages[0].layout

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.tokenizer.image_size(self.layout)

    def stage(self, name: str) -> Stage:
        """The stage called `name`. Raises InputError if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InputError(f"no stage {name!r}: there are {', '.join(stage.name for stage in self.stages)}")

    def parts(self) -> dict[str, nn.Module]:
        """The tokenizer and the stages by their names."""
        return {"tokenizer": self.tokenizer, **{stage.name: stage for stage in self.stages}}

    def compute_in(self, compute: Compute) -> StagePipeline:
        """Choose how to sample, in place: the parts stay as they are, sampling converts their weights."""
        if not isinstance(compute, Compute):
            raise InputError(f"compute {compute!r}: give Compute({compute!r}), from ctf.models")
        self._compute = compute
        return self

    def to(self, device: str | torch.device) -> StagePipeline:
        """Move every part, in place. Raises InputError if there is no such device."""
        if isinstance(device, torch.dtype):
            raise InputError(our_name("torch_dtype"))
        device = usable_device(device)
        for part in self.parts().values():
            part.to(device)
        return self

    def sampling(self, **overrides: Any) -> dict[str, Sampling]:
        """The settings of each stage by its name: its own, with `overrides` in place of single ones.

        A setting alone is that of the first stage (`temperature=0.9`), with a stage's name before it that stage's
        (`fine_temperature=0.7`). Steps and order are always said. Raises InputError: no such setting, or a value
        without meaning, or that the stage cannot take.
        """
        for name in overrides:
            if ours := our_name(name):
                raise InputError(ours)
        settings = overridden([(stage.name, stage.sampling) for stage in self.stages], overrides)
        return {stage.name: stage.resolved(settings[stage.name]) for stage in self.stages}

    def __call__(
        self,
        labels: Labels | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        progress: bool = False,
        known: Tensor | None = None,
        **overrides: Any,
    ) -> list[Image.Image]:
        """Generate one image per label, as a list. An image depends on its own label, seed and settings only.

        In float32 on a CPU that is exact. On a GPU, products round differently with the size of the batch, and now
        and then another token is sampled.

        Args:
            labels: class indices (int) or names (str); one alone gives a list of one image.
            seed: image i uses seed + i; or one seed per label.
            batch_size: images at a time.
            progress: show a progress bar.
            known: tokens that every image keeps, from `known_tokens`.
            overrides: settings that differ from the model's own, see `sampling`.

        Raises:
            InputError: an unknown label, seeds that do not match, settings without meaning, or known tokens that a
                stage cannot keep.
        """
        if labels is None:
            self.sampling(**overrides)  # names diffusers' word for labels, if that was given
            raise InputError("labels are missing: give names or indices of classes")
        batches = self.generate(labels, seed, batch_size, progress, known, **overrides)
        return Images(Image.fromarray(image) for batch in batches for image in batch)

    def generate(
        self,
        labels: Labels,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        progress: bool = False,
        known: Tensor | None = None,
        on_progress: OnProgress | None = None,
        **overrides: Any,
    ) -> Iterator[np.ndarray]:
        """Like calling the pipeline, as a stream of uint8 batches (b, H, W, 3).

        `on_progress` is called after every step (on a GPU, after every stage) with what was done since the last call,
        in images: the numbers of a batch add up to its size.
        """
        indices, seeds = self._images(labels, seed)
        settings = self.sampling(**overrides)
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} must be at least 1")
        self._check_known(known)
        parts = [slice(start, start + batch_size) for start in range(0, len(indices), batch_size)]
        with progress_bar(len(indices), "sample", "image", hidden=not progress) as bar:
            tick = on_progress or (bar.update if progress else None)
            first = (partial(self._run, 0, indices[part], seeds[part], settings, None, known, tick) for part in parts)
            for part, tokens in zip(parts, prefetch(first, self.device), strict=True):
                for place in range(1, len(self.stages)):
                    tokens = self._run(place, indices[part], seeds[part], settings, tokens, known, tick)
                yield self.decode(tokens)
            bar.update(len(indices) - bar.n)  # parts of images add up to almost as many

    def generate_tokens(
        self, labels: Tensor, seeds: Sequence[int], known: Tensor | None = None, **overrides: Any
    ) -> Tensor:
        """All stages: labels int64 (B,) and seeds → tokens of the codebook, int64 (B, N); `known` as in a call."""
        settings, tokens = self.sampling(**overrides), None
        self._check_known(known)
        for place in range(len(self.stages)):
            tokens = self._run(place, labels, seeds, settings, tokens, known)
        assert tokens is not None
        return tokens

    def known_tokens(self, image: Image.Image, mask: np.ndarray | Image.Image) -> Tensor:
        """Tokens of the kept part of an image: int64 (N,), −1 where to generate.

        A token is kept if no pixel of its patch, in the model's size, is to be generated. Its neighbours influence how
        it is decoded: kept pixels change a little along the border, and everywhere by as much as the tokenizer loses.

        Args:
            image: of any size; what the model cannot show is cut off by ADM's centre crop.
            mask: of the same size, resized with the image: light (128 or more) where to generate; or an array
                (height, width) of uint8, or of bool with true there.

        Raises:
            InputError: sizes that differ, a mask that keeps all or nothing, or an image of another size than the
                model's, whose images are not square.
        """
        image, generated = split_by_mask(image, mask, self.image_size, self.layout)
        pixels = np.array(image)
        with torch.no_grad():
            tokens = self.tokenizer.encode(to_tensor(pixels[None]).to(self.device))[0].cpu()
        return tokens.masked_fill(generated, -1)

    def complete(
        self,
        image: Image.Image,
        mask: np.ndarray | Image.Image,
        labels: Labels,
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        progress: bool = False,
        **overrides: Any,
    ) -> list[Image.Image]:
        """Keep a part of an image and generate the rest, once for each label: inpainting and outpainting.

        An autoregressive stage continues an image from above, `any_order` and `masked` ones fill any part of it.

        Args:
            image, mask: what to keep, see `known_tokens`.
            labels, seed, batch_size, progress, overrides: as those of a call.

        Raises:
            InputError: as `known_tokens` and a call; a part that a stage cannot keep.
        """
        return self(labels, seed, batch_size, progress, self.known_tokens(image, mask), **overrides)

    def _check_known(self, known: Tensor | None) -> None:
        if known is None:
            return
        count = self.layout.num_tokens
        if known.shape != (count,):
            raise InputError(f"known tokens of shape {tuple(known.shape)}: give {count}, -1 where to generate")
        if not -1 <= int(known.min()) <= int(known.max()) < self.tokenizer.codebook_size:
            raise InputError(
                f"known tokens range from {int(known.min())} to {int(known.max())}: the codebook has "
                f"{self.tokenizer.codebook_size}, and -1 is where to generate"
            )
        for stage in self.stages:
            stage.check_kept(known >= 0)

    def stream(
        self,
        labels: Labels,
        seed: int | Sequence[int] = 0,
        previews: int = 8,
        known: Tensor | None = None,
        **overrides: Any,
    ) -> Iterator[Preview]:
        """Generate one batch and yield what can be seen on the way; the last preview shows the images.

        Args:
            labels: a class index or name, or several.
            seed: image i uses seed + i; or one seed per label.
            previews: of each stage, at most, evenly spread over its steps and after the last of them.
            known: tokens that every image keeps, from `known_tokens`; a stage may then take fewer steps.
            overrides: settings that differ from the model's own, see `sampling`.
        """
        indices, seeds = self._images(labels, seed)
        settings, given = self.sampling(**overrides), None
        self._check_known(known)
        for place, stage in enumerate(self.packed()):
            sampling = settings[stage.name]
            count = len(stage.plan(sampling, None if known is None else known >= 0).drawn)
            every = math.ceil(count / max(1, previews))
            steps = stage.draw(indices, Random(seeds, place), sampling, given, known_labels(stage, known, len(indices)))
            show = preview_of(self.tokenizer, self.layout, stage, given)
            for number, tokens in enumerate(steps, start=1):
                if number % every == 0 or number == count:
                    done = number == count and stage.predicts is None  # all tokens are known: the images themselves
                    images = self.decode(tokens) if done else show(tokens)
                    yield Preview(stage.name, number, count, [Image.fromarray(image) for image in images])
            given = tokens.clone()

    def _images(self, labels: Labels, seed: int | Sequence[int]) -> tuple[Tensor, list[int]]:
        """Labels as indices (B,), and a seed for each."""
        labels = labels if isinstance(labels, Iterable) and not isinstance(labels, str) else [labels]
        indices = torch.tensor([self.label_index(label) for label in labels], dtype=torch.int64)
        try:
            given = seed if isinstance(seed, Iterable) else [seed + i for i in range(len(indices))]
            seeds = [*map(index, given)]
        except TypeError:
            raise InputError(f"seed {seed!r}: give an int, or one for each label") from None
        if len(seeds) != len(indices):
            raise InputError(f"{len(seeds)} seeds for {len(indices)} labels: give one int, or one seed per label")
        return indices, seeds

    def _run(
        self,
        place: int,
        labels: Tensor,
        seeds: Sequence[int],
        settings: dict[str, Sampling],
        given: Tensor | None = None,
        known: Tensor | None = None,
        on_progress: OnProgress | None = None,
    ) -> Tensor:
        stage, random = self.packed()[place], Random(seeds, place)
        steps = {name: sampling.steps or 1 for name, sampling in settings.items()}
        left, per_step = steps[stage.name], len(labels) / sum(steps.values())

        def on_step(number: int, tokens: Tensor) -> None:
            nonlocal left
            left -= 1
            assert on_progress is not None
            on_progress(per_step)

        # Whoever watches the steps of a recorded loop would have them run one by one.
        watch = on_step if on_progress is not None and stage.recorded is None else None
        kept = known_labels(stage, known, len(labels))
        tokens = stage.generate(labels, random, settings[stage.name], given, kept, on_step=watch)
        if on_progress is not None:
            on_progress(left * per_step)
        return tokens

    def packed(self) -> list[Stage]:
        """The stages made ready for sampling: packed once, and again when their weights or `compute` change.

        A change through a weight's `.data` is not seen: write to the weight itself, under `torch.no_grad()`.
        """
        with self._packing:
            return [self._pack(stage) for stage in self.stages]

    def _pack(self, stage: Stage) -> Stage:
        # Weights that were opened in inference mode have no version: they cannot be trained.
        weights = [(p.data_ptr(), None if p.is_inference() else p._version) for p in stage.parameters()]
        key = (weights, self.compute, stage.sampling)
        if stage.name not in self._packed or self._packed[stage.name][0] != key:
            self._packed.pop(stage.name, None)  # its memory goes first
            self._packed[stage.name] = (key, stage.pack(self.compute))
        return self._packed[stage.name][1]

    def decode(self, tokens: Tensor) -> np.ndarray:
        """Tokens of the codebook (B, N) → images uint8 (B, H, W, 3)."""
        return_freed_memory()  # or what the stages have freed would stay beside what the decoder takes
        return decode_images(self.tokenizer, tokens, self.layout, getattr(torch, self.compute.decoder_dtype))

    def memory(self, batch_size: int, **overrides: Any) -> int:
        """Predict the bytes that a batch adds to the memory of the loaded pipeline."""
        from ctf.stages.cost import sampling_memory  # only here: what counts takes a second to import

        settings, dtype = self.sampling(**overrides), getattr(torch, self.compute.decoder_dtype)
        decoding = self.tokenizer.decoding_memory(batch_size, self.layout, self.device.type, dtype)
        stages = [(stage, settings[stage.name]) for stage in self.stages]
        return sampling_memory(stages, batch_size, self.compute, decoding)

    def largest_batch(self, **overrides: Any) -> int:
        """The largest power of two, up to 256, whose batch takes at most four fifths of the memory that is free now.

        On a CPU half of it: what rounds of different sizes free there leaves holes that the next cannot use.

        Raises:
            InputError: there is not enough for one image.
        """
        room = (0.5 if self.device.type == "cpu" else 0.8) * available_memory(self.device)
        batch = LARGEST_BATCH
        while (needed := self.memory(batch, **overrides)) > room:
            if batch == 1:
                raise InputError(
                    f"one image takes {needed / 2**30:.1f} GiB and {room / 2**30:.1f} GiB "
                    "may be taken: close other programs, or take a smaller model, bfloat16 or int8"
                )
            batch //= 2
        return batch

    def label_index(self, label: int | str) -> int:
        """The index of a class given by index (int) or name (str), see `ctf.classes.class_index`.

        Raises:
            InputError: no such class.
        """
        return class_index(self.class_names, label)


def known_labels(stage: Stage, known: Tensor | None, images: int) -> Tensor | None:
    """Labels of the stage's level that every image keeps, (images, N), from known tokens (N,), −1 where to generate."""
    if known is None:
        return None
    labels, _ = stage.levels(known.clamp(min=0).to(stage.device))
    return labels.masked_fill(known.to(stage.device) < 0, -1).expand(images, -1)


def level(coarse_map: CoarseMap | None, codebook_size: int) -> str:
    """A level in words."""
    if coarse_map is None:
        return f"{codebook_size:,} tokens"
    return f"{coarse_map.num_coarse:,} clusters ({coarse_map.method}) of {codebook_size:,} tokens"
