"""Pipeline: from a class label to an image in one call; a folder on disk or on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctf.codebook.coarse_map import CoarseMap
from ctf.device import usable_device
from ctf.errors import InputError
from ctf.files import atomic_path, existing, read_json, write_json, write_text
from ctf.models.transformer import Transformer
from ctf.progress import progress_bar
from ctf.sampling.ahead import one_ahead
from ctf.sampling.decode import generate_tokens
from ctf.sampling.fine import Support, refine_tokens
from ctf.sampling.memory import (
    LARGEST_BATCH,
    SamplingMemory,
    available_memory,
    return_freed_memory,
    sampling_memory,
)
from ctf.sampling.packed import PackedTransformer
from ctf.sampling.products import Quantize
from ctf.tokenizer.paint import paint
from ctf.tokenizer.pretrained import ASSETS
from ctf.tokenizer.vq_tokenizer import VQTokenizer

Dtype = Literal["float32", "bfloat16"]

FORMAT = 1
PARTS = ("tokenizer", "coarse_map", "baseline", "coarse", "fine")


class Pipeline:
    """A tokenizer with either a baseline, or a coarse and a fine model and their coarse map.

    Args:
        tokenizer: paints tokens.
        class_names: the name of each label.
        baseline: causal model over all K tokens; then no other model.
        coarse: stage 1.
        fine: stage 2.
        coarse_map: the clusters that stage 1 and 2 were trained with.
        support: what the fine model was trained to normalise over, see `refine_tokens`.

    Raises:
        InputError: parts that do not belong together.
    """

    def __init__(
        self,
        tokenizer: VQTokenizer,
        class_names: Sequence[str],
        *,
        baseline: Transformer | None = None,
        coarse: Transformer | None = None,
        fine: Transformer | None = None,
        coarse_map: CoarseMap | None = None,
        support: Support = "cluster",
    ) -> None:
        given = [part is not None for part in (baseline, coarse, fine, coarse_map)]
        if given not in ([True, False, False, False], [False, True, True, True]):
            raise InputError("a pipeline has either a baseline, or a coarse model, a fine model and a coarse map")
        first = baseline if baseline is not None else coarse
        assert first is not None
        if first.config.attention != "causal" or (fine is not None and fine.config.attention != "full"):
            raise InputError("a baseline and a coarse model have causal attention, a fine model has full attention")
        if support not in get_args(Support):
            raise InputError(f"support {support!r} does not exist: choose one of {', '.join(get_args(Support))}")
        size = tokenizer.config.codebook_size
        if coarse_map is not None and coarse is not None and fine is not None:
            coarse_map.check_codebook(tokenizer.codebook)
            if (coarse.config.grid, coarse.config.num_classes) != (fine.config.grid, fine.config.num_classes):
                raise InputError("the coarse and the fine model differ in grid or number of classes")
            vocabularies = (coarse.config.output_vocab, fine.config.input_vocab, fine.config.output_vocab)
            if vocabularies != (coarse_map.num_coarse, coarse_map.num_coarse, size):
                raise InputError(f"vocabularies {vocabularies} do not fit the coarse map and the codebook of {size}")
        elif first.config.output_vocab != size:
            raise InputError(f"the baseline predicts {first.config.output_vocab} tokens, the codebook has {size}")
        if len(class_names) != first.config.num_classes:
            raise InputError(f"{len(class_names)} class names for a model of {first.config.num_classes} classes")
        self.tokenizer = tokenizer
        self.class_names = list(class_names)
        self.baseline, self.coarse, self.fine, self.coarse_map = baseline, coarse, fine, coarse_map
        self.support: Support = support
        self.compute_in("float32")
        self._first = first
        self._packed: dict[str, tuple[Any, PackedTransformer]] = {}

    @property
    def device(self) -> torch.device:
        return self._first.head.weight.device

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tokens."""
        return self._first.config.grid

    def compute_in(self, dtype: Dtype = "float32", quantize: Quantize | None = None, compile: bool = False) -> Pipeline:
        """Choose how to sample, in place: the parts stay as they are, sampling converts their weights.

        Args:
            dtype: of products, convolutions and the cache, "float32" or "bfloat16"; norms, guidance and draws
                are always float32.
            quantize: "int8" weights in both stages, on a CPU.
            compile: on a CPU, a compiled step for stage 1 or the baseline: half a minute and a C++ compiler for a
                few percent of the time in float32, a fifth in int8. A GPU always compiles.

        Raises:
            InputError: no such choice.
        """
        for name, value, choices in (("dtype", dtype, get_args(Dtype)), ("quantize", quantize, (None, "int8"))):
            if value not in choices:
                raise InputError(f"{name} {value!r} does not exist: choose one of {', '.join(map(str, choices))}")
        self.dtype: Dtype = dtype
        self.quantize: Quantize | None = quantize
        self.compile = compile
        return self

    def to(self, device: str | torch.device) -> Pipeline:
        """Move every part, in place. Raises InputError if there is no such device."""
        device = usable_device(device)
        for part in (self.tokenizer, self.baseline, self.coarse, self.fine):
            if part is not None:
                part.to(device)
        return self

    def __call__(
        self,
        labels: Sequence[int | str],
        seed: int | Sequence[int] = 0,
        cfg_scale: float = 2.0,
        temperature: float = 1.1,
        top_k: int = 0,
        top_p: float = 1.0,
        fine_temperature: float = 1.1,
        fine_top_k: int = 0,
        fine_top_p: float = 1.0,
        fine_cfg_scale: float = 1.0,
        batch_size: int = 64,
        progress: bool = False,
    ) -> list[Image.Image]:
        """Generate one image per label. An image depends on its own label, seed and settings only.

        Args:
            labels: class indices or names.
            seed: image i uses seed + i; or one seed per label.
            cfg_scale: classifier-free guidance of stage 1 or the baseline; 1 is none.
            temperature: of stage 1 or the baseline; 0 is greedy.
            top_k: of stage 1 or the baseline; 0 keeps all.
            top_p: of stage 1 or the baseline; 1 keeps all.
            fine_temperature: of stage 2.
            fine_top_k: of stage 2.
            fine_top_p: of stage 2.
            fine_cfg_scale: guidance of stage 2.
            batch_size: images at a time; does not change them.
            progress: show a progress bar.

        Raises:
            InputError: an unknown label, seeds that do not match, or settings without meaning.
        """
        arrays = self.generate(
            labels,
            seed,
            cfg_scale=cfg_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            fine_temperature=fine_temperature,
            fine_top_k=fine_top_k,
            fine_top_p=fine_top_p,
            fine_cfg_scale=fine_cfg_scale,
            batch_size=batch_size,
            progress=progress,
        )
        return [Image.fromarray(image) for batch in arrays for image in batch]

    def generate(
        self,
        labels: Sequence[int | str],
        seed: int | Sequence[int] = 0,
        batch_size: int = 64,
        progress: bool = False,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """Like calling the pipeline, as a stream of uint8 batches (b, H, W, 3)."""
        indices = torch.tensor([self.label_index(label) for label in labels], dtype=torch.int64)
        seeds = list(seed) if isinstance(seed, Iterable) else [seed + i for i in range(len(indices))]
        if len(seeds) != len(indices):
            raise InputError(f"{len(seeds)} seeds for {len(indices)} labels: give one int, or one seed per label")
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} must be at least 1")
        parts = [slice(start, start + batch_size) for start in range(0, len(indices), batch_size)]
        fine = {name.removeprefix("fine_"): settings.pop(name) for name in [*settings] if name.startswith("fine_")}
        drafts = (partial(self._draft, indices[part], seeds[part], **settings) for part in parts)
        with progress_bar(len(indices), "sample", "image", hidden=not progress) as bar:
            for part, draft in zip(parts, one_ahead(drafts, self.device), strict=True):
                yield self.paint(self._refine(draft, indices[part], seeds[part], **fine))
                bar.update(len(draft))

    def generate_tokens(
        self,
        labels: Tensor,
        seeds: Sequence[int],
        cfg_scale: float = 2.0,
        temperature: float = 1.1,
        top_k: int = 0,
        top_p: float = 1.0,
        fine_temperature: float = 1.1,
        fine_top_k: int = 0,
        fine_top_p: float = 1.0,
        fine_cfg_scale: float = 1.0,
    ) -> Tensor:
        """Both stages, or the baseline: labels (B,) and seeds → fine tokens int64 (B, N)."""
        draft = self._draft(labels, seeds, cfg_scale, temperature, top_k, top_p)
        return self._refine(draft, labels, seeds, fine_cfg_scale, fine_temperature, fine_top_k, fine_top_p)

    def _draft(
        self,
        labels: Tensor,
        seeds: Sequence[int],
        cfg_scale: float = 2.0,
        temperature: float = 1.1,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """Stage 1, or the baseline: int64 (B, N) coarse labels or fine tokens."""
        model = self._pack(self._first, len(labels) * (1 if cfg_scale == 1 else 2))
        return generate_tokens(model, labels, seeds, cfg_scale, temperature, top_k, top_p)

    def _refine(
        self,
        draft: Tensor,
        labels: Tensor,
        seeds: Sequence[int],
        cfg_scale: float = 1.0,
        temperature: float = 1.1,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """Stage 2, if there is one: coarse labels → fine tokens, int64 (B, N) both."""
        if self.fine is None or self.coarse_map is None:
            return draft
        model = self._pack(self.fine, draft.numel() * (1 if cfg_scale == 1 else 2))
        settings = (cfg_scale, temperature, top_k, top_p)
        return refine_tokens(model, draft, labels, self.coarse_map, seeds, *settings, self.support)

    def _pack(self, model: Transformer, rows: int) -> PackedTransformer:
        """The model ready for sampling: packed at its first batch, and again when its weights or settings change."""
        weights = [(p.data_ptr(), p._version) for p in model.parameters()]
        # On a CPU the layout, and with it rounding, may depend on the rows: equal batches must give equal images. But
        # nobody compiles again for a last batch that is smaller.
        per_rows = self.device.type == "cpu" and not self.compile
        key = (weights, self.dtype, self.quantize, self.compile, rows if per_rows else None)
        name = model.config.attention
        if name not in self._packed or self._packed[name][0] != key:
            how = (getattr(torch, self.dtype), self.quantize, self.compile)
            self._packed[name] = (key, PackedTransformer(model, rows, *how))
        return self._packed[name][1]

    def paint(self, tokens: Tensor) -> np.ndarray:
        """Tokens (B, N) → images uint8 (B, H, W, 3)."""
        return_freed_memory()  # or what stage 2 has freed would stay beside what the decoder takes
        return paint(self.tokenizer, tokens, self.grid, getattr(torch, self.dtype))

    def memory(self, batch_size: int, cfg_scale: float = 2.0) -> SamplingMemory:
        """Predict what a batch adds to the memory of the loaded pipeline."""
        return sampling_memory(
            batch_size,
            self.tokenizer.config,
            self._first.config,
            None if self.fine is None else self.fine.config,
            guided=cfg_scale != 1,
            dtype=getattr(torch, self.dtype),
            quantize=self.quantize,
            device=self.device.type,
        )

    def largest_batch(self, cfg_scale: float = 2.0) -> int:
        """The largest power of two, up to 256, whose batch takes at most four fifths of the memory that is free now.

        Raises:
            InputError: there is not enough for one image.
        """
        free = available_memory(self.device)
        batch = LARGEST_BATCH
        while self.memory(batch, cfg_scale).peak > 0.8 * free:
            if batch == 1:
                raise InputError(
                    f"one image takes {self.memory(1, cfg_scale).peak / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
                    "free: close other programs, or take a smaller model, bfloat16 or int8"
                )
            batch //= 2
        return batch

    def label_index(self, label: int | str) -> int:
        """The index of a class given by index or name.

        Raises:
            InputError: no such class.
        """
        if isinstance(label, str) and not re.fullmatch(r"-?[0-9]+", label):
            if label not in self.class_names:
                raise InputError(f"class {label!r} does not exist: `ctf info` on the model folder lists them")
            return self.class_names.index(label)
        if not 0 <= int(label) < len(self.class_names):
            raise InputError(f"class {label}: the model has the classes 0 … {len(self.class_names) - 1}")
        return int(label)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a model folder, atomically: `config.json`, a safetensors file per part, and a model card.

        Args:
            folder: a model folder that is there already is replaced, anything else is not.
            dtype: of the Transformers' weights. The tokenizer's values are never rounded, since the coarse
                map knows its codebook; they are stored in float16 where that holds them exactly.

        Raises:
            InputError: something other than a model folder is there.
        """
        folder = Path(folder)
        if folder.exists() and not _is_model(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(f"{folder} is there already and is not a model folder: choose another, or delete it")
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name in PARTS:
                part = getattr(self, name)
                if isinstance(part, Transformer):
                    part.save(temporary / f"{name}.safetensors", dtype)
                elif isinstance(part, VQTokenizer):
                    exact = all(torch.equal(p, p.half().float()) for p in part.parameters())
                    part.save(temporary / f"{name}.safetensors", torch.float16 if exact else torch.float32)
                elif part is not None:
                    part.save(temporary / f"{name}.safetensors")
            write_json(
                temporary / "config.json",
                {
                    "ctf": "pipeline",
                    "format": FORMAT,
                    "kind": "baseline" if self.baseline is not None else "coarse-to-fine",
                    "support": self.support,
                    "class_names": self.class_names,
                },
            )
            write_text(temporary / "README.md", self._card())

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device = "cpu",
        dtype: Dtype = "float32",
        quantize: Quantize | None = None,
        compile: bool = False,
    ) -> Pipeline:
        """Open a model: "emoji" (embedded), a folder, or a hub id such as "owner/name".

        `dtype`, `quantize` and `compile` are those of `compute_in`.

        Raises:
            InputError: nothing there, a part missing or damaged, or parts that do not belong together.
        """
        folder = _find(str(source))
        if not _is_model(folder):
            raise InputError(f"{folder} is not a model folder: its config.json is missing or says something else")
        config = read_json(folder / "config.json")
        if config.get("format") != FORMAT or not {"kind", "support", "class_names"} <= config.keys():
            raise InputError(f"{folder}: this version of ctf reads model folders of format {FORMAT}: update ctf")
        models = ("baseline",) if config["kind"] == "baseline" else ("coarse", "fine")
        parts: dict[str, Any] = {name: Transformer.load(folder / f"{name}.safetensors") for name in models}
        tokenizer = VQTokenizer.load(folder / "tokenizer.safetensors")
        if config["kind"] != "baseline":
            parts["coarse_map"] = CoarseMap.load(folder / "coarse_map.safetensors")
        return (
            cls(tokenizer, config["class_names"], support=config["support"], **parts)
            .to(device)
            .compute_in(dtype, quantize, compile)
        )

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload as model "owner/name" to the Hugging Face Hub; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            api = HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=folder))

    def _card(self) -> str:
        models = {name: getattr(self, name) for name in ("baseline", "coarse", "fine")}
        rows = "\n".join(
            f"| {name} | {model.config.layers} × {model.config.dim} | {model.config.input_vocab:,} → "
            f"{model.config.output_vocab:,} | {model.num_parameters() / 1e6:.1f} M |"
            for name, model in models.items()
            if model is not None
        )
        config = self.tokenizer.config
        side = self.grid[0] * config.downsampling, self.grid[1] * config.downsampling
        clusters = "" if self.coarse_map is None else f", {self.coarse_map.num_coarse:,} clusters"
        return (
            "---\nlibrary_name: ctf\npipeline_tag: unconditional-image-generation\ntags: [autoregressive, vq]\n---\n"
            f"# Class-conditional images of {side[0]} × {side[1]} pixels\n\n"
            f"{len(self.class_names)} classes; {self.grid[0]} × {self.grid[1]} tokens of a codebook of "
            f"{config.codebook_size:,}{clusters}.\n\n"
            "| model | layers × width | vocabulary | parameters |\n|---|---|---|---|\n"
            f"{rows}\n\n"
            "```python\nimport ctf\n\n"
            'pipe = ctf.Pipeline.from_pretrained("this folder")\nimages = pipe(labels=[0, 1], seed=0)\n```\n'
        )


def _is_model(folder: Path) -> bool:
    """Whether `save_pretrained` wrote this folder."""
    path = folder / "config.json"
    config = read_json(path) if path.exists() else None
    return isinstance(config, dict) and config.get("ctf") == "pipeline"


def _find(source: str) -> Path:
    if source == "emoji":
        return ASSETS / "emoji"
    if Path(source).exists() or source.count("/") != 1:
        return existing(source, "model folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source))
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source} is neither a folder here nor a model that the hub gives ({reason})") from None
