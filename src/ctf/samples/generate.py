"""Sample a set: any number of processes, interrupted and resumed at will, write the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from ctf.classes import typed_index
from ctf.errors import InputError
from ctf.files import check_writable
from ctf.images.sheet import save_png
from ctf.pipeline import StagePipeline
from ctf.progress import progress_bar
from ctf.samples.labels import LabelPolicy, choose_labels
from ctf.samples.manifest import Manifest, manifest_path
from ctf.samples.sample_set import SHEET_IMAGES, ImageArray, folder_list, sheet, write_folder, write_images
from ctf.torchrun import rank_and_world, wait_until


def sample_to(
    pipeline: StagePipeline,
    out: str | Path,
    labels: Sequence[int | str] | None = None,
    num: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = 64,
    overrides: Mapping[str, Any] | None = None,
    label_policy: LabelPolicy | None = None,
    model: str = "",
    known: Tensor | None = None,
    before: Sequence[np.ndarray] = (),
) -> str | None:
    """Sample and write; image i has the seed `seed + i`. Under torchrun the processes share the batches.

    Finished batches are kept in `<out>.parts` until all are there: the same call continues after an interruption
    and gives the same bytes, with any number of processes of as many threads. A finished set is left as it is.

    Args:
        pipeline: the model, on this process's device.
        out, labels, num, seed, batch_size, label_policy: the options of `ctf sample`, see `ctf.commands.sample`.
        overrides: of the model's sampling settings, see `StagePipeline.sampling`.
        model: where the pipeline came from, for the manifest.
        known: tokens that every image keeps, see `StagePipeline.known_tokens`.
        before: images that the contact sheet begins with, uint8 (H, W, 3) each.

    Returns:
        One line that says what was written; None in every process but the main one.

    Raises:
        InputError: nothing to sample, what the pipeline refuses, or other samples under this name.
    """
    out, overrides = Path(out), overrides or {}
    out = out.resolve() if out.is_symlink() else out
    wrong = out.suffix not in (".png", ".npz") and out.suffix.lower() in {".npz", *Image.registered_extensions()}
    if wrong or out.name in ("", ".."):
        raise InputError(f"{out}: samples are a new folder, an .npz, or a .png for the contact sheet: take such a name")
    rank, processes = rank_and_world()
    is_main_process = rank == 0
    given = [typed_index(pipeline.class_names, label) for label in labels or []]
    policy, chosen = choose_labels(len(pipeline.class_names), label_policy, given, num, seed)
    if batch_size == "auto" and processes > 1:
        raise InputError("batch_size auto is for one process, since all must cut the same batches: give a number")
    if batch_size == "auto":
        batch_size = _earlier_batch_size(out) or min(pipeline.largest_batch(**overrides), len(chosen))
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    if out.suffix == ".png":
        if not is_main_process:
            return None
        check_writable(out)
        chosen = chosen[: SHEET_IMAGES - len(before)]
        batches = pipeline.generate(chosen, seed, batch_size, progress=True, known=known, **overrides)
        images = [image for batch in batches for image in batch]
        save_png(out, sheet([*before, *images]))
        return f"{out}: contact sheet of {len(images)} images"

    asked: dict[str, Any] = {"label_policy": policy, "given_labels": given, "seed": seed, "batch_size": batch_size}
    asked |= {"model": model, "known": [] if known is None else known.tolist()}
    manifest = Manifest.of(pipeline, chosen, overrides, processes, **asked)
    facts = f"{manifest.count:,} images of {manifest.image_size[0]} × {manifest.image_size[1]} pixels"
    finished = _finished(out, manifest)
    if not finished:
        check_writable(out, "file" if out.suffix == ".npz" else "folder")
        _sample(pipeline, Shards(out, manifest), chosen, overrides, known)
        finished = _finished(out, manifest)  # by the same command, started twice
    if not is_main_process:  # one that starts late: the main process may be removing the parts
        return None
    shards = Shards(out, manifest)
    if finished:
        shards.remove()  # also left by a process that was killed at the very end
        return f"{out}: {facts}, sampled before with the same settings and left as they are"
    merged = shards.folder / f"merged{out.suffix}"
    if out.suffix == ".npz":
        write_images(merged, shards.batches(), manifest.count, manifest.image_size, np.array(chosen, np.int64))
    else:
        write_folder(merged, shards.batches(), folder_list(chosen, pipeline.class_names, seed), before)
    manifest.save(manifest_path(merged))
    if out.suffix == ".npz":  # before the images, because a set is finished once `out` exists
        os.replace(manifest_path(merged), manifest_path(out))
    os.replace(merged, out)
    shards.remove()
    return f"{out}: {facts}; how they were made is in {manifest_path(out)}"


def _earlier_batch_size(out: Path) -> int | None:
    """That of a finished or an interrupted set."""
    paths = (path for path in (manifest_path(out), parts_folder(out) / "manifest.json") if path.exists())
    return next((Manifest.load(path).batch_size for path in paths), None)


def _finished(out: Path, manifest: Manifest) -> bool:
    """True if these samples are there. Raises InputError if something else is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = manifest_path(out)
    if not path.exists():
        raise InputError(f"{out} is there already and has no manifest: choose another --out or delete it")
    manifest.check_equal(path, f"{out} holds", "choose another --out or delete them")
    return True


def _sample(
    pipeline: StagePipeline, shards: Shards, labels: list[int], overrides: Mapping[str, Any], known: Tensor | None
) -> None:
    """Compute this process's batches that are missing; the main process then waits for the others."""
    (rank, processes), launcher, manifest = rank_and_world(), os.getppid(), shards.manifest
    is_main_process = rank == 0
    # In this order: once `out` is there, its parts are removed.
    missing = [k for k in range(rank, len(shards), processes) if not shards.path(k).exists()]
    if shards.out.exists() and manifest_path(shards.out).exists():
        missing = []
    images = [i for k in missing for i in shards.images(k)]
    seeds = [manifest.seed + i for i in images]
    with progress_bar(manifest.count, "sample", "image", shards.finished(), hidden=not is_main_process) as bar:
        # Only the very last batch may be smaller, so a stream of the missing ones is cut as they are.
        batches = pipeline.generate(
            *([labels[i] for i in images], seeds, manifest.batch_size),
            known=known,
            on_progress=bar.update if is_main_process else None,
            **overrides,
        )
        for k, batch in zip(missing, batches, strict=True):
            shards.add(k, batch)
            bar.update(max(0, shards.finished() - bar.n))  # what other processes have done

        def all_there() -> bool:
            done = shards.finished()
            bar.update(done - bar.n)
            return done == manifest.count or _finished(shards.out, manifest)

        if is_main_process:
            wait_until(all_there, launcher)


def parts_folder(out: Path) -> Path:
    return Path(f"{out}.parts")


class Shards:
    """The folder `<out>.parts`: a manifest, and a file for each finished batch, so that a killed job resumes.

    Batch k holds the images from k · batch_size on, whoever computes it: on a GPU the last bits of an image may
    depend on the size of its batch, so a resumed job cuts the same batches.

    Raises:
        InputError: the folder holds batches of other samples; the message names what differs.
    """

    def __init__(self, out: Path, manifest: Manifest) -> None:
        self.out, self.folder, self.manifest = out, parts_folder(out), manifest
        self._check()

    def _check(self) -> None:
        path = self.folder / "manifest.json"
        if path.exists():
            where = f"{self.folder} holds unfinished"
            self.manifest.check_equal(path, where, "choose another --out or delete the parts")

    def __len__(self) -> int:
        return -(-self.manifest.count // self.manifest.batch_size)

    def path(self, k: int) -> Path:
        return self.folder / f"batch-{k:06d}.npz"

    def images(self, k: int) -> range:
        """The indices of the images of batch k."""
        start = k * self.manifest.batch_size
        return range(start, min(start + self.manifest.batch_size, self.manifest.count))

    def finished(self) -> int:
        """The number of images in finished batches, of all processes."""
        present = set(os.listdir(self.folder)) if self.folder.exists() else set()
        return sum(len(self.images(k)) for k in range(len(self)) if self.path(k).name in present)

    def add(self, k: int, images: np.ndarray) -> None:
        """Write batch k, uint8 (b, H, W, 3), atomically."""
        # Not earlier than with the first batch, so that settings which the pipeline refuses leave nothing behind.
        if not (self.folder / "manifest.json").exists():
            self.manifest.save(self.folder / "manifest.json")
        write_images(self.path(k), [images], len(images), self.manifest.image_size)

    def batches(self) -> Iterator[np.ndarray]:
        """All batches in order.

        Raises:
            InputError: one is damaged, as after a power cut, or other processes sampled with other settings.
        """
        self._check()
        for k in range(len(self)):
            try:
                yield from ImageArray(self.path(k)).batches(self.manifest.batch_size)
            except InputError:
                raise InputError(f"{self.path(k)} is damaged: delete it and run the same command again") from None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
