"""Sample sets: images on disk with a manifest, written by any number of processes, read as a stream."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ctf.errors import InputError
from ctf.evaluation.image_folder import SHEET_IMAGES, ImageFolder, sheet, write_folder
from ctf.evaluation.manifest import Manifest, manifest_path
from ctf.evaluation.npz_stream import ImageArray, write_images
from ctf.evaluation.sample_labels import LabelPolicy, choose_labels
from ctf.evaluation.sample_shards import Processes, Shards
from ctf.images.sheet import save_png
from ctf.pipeline import Pipeline
from ctf.progress import progress_bar

POLL_SECONDS = 0.2


def sample_to(
    pipeline: Pipeline,
    out: str | Path,
    labels: Sequence[int | str] | None,
    num: int | None,
    seed: int,
    batch_size: int | Literal["auto"],
    settings: dict[str, Any],
    label_policy: LabelPolicy | None = None,
    model: str = "",
) -> str | None:
    """Sample and write; image i has the seed `seed + i`. Under torchrun the processes share the batches.

    Finished batches are kept in `<out>.parts` until all are there: the same call continues after an interruption
    and gives the same bytes, with any number of processes of as many threads. A finished set is left as it is.

    Args:
        pipeline: the model, on this process's device.
        out: an .npz (`arr_0` uint8 [n, H, W, 3] and `labels` int64 [n]) with `x.manifest.json` beside it; a folder
            (a PNG per image, `samples.json`, `sheet.png`, `manifest.json`); or a .png, the contact sheet of the
            first 64 images, which is no sample set.
        labels: indices or names, repeated as often as needed.
        num: number of images; as many as labels or classes when None.
        seed: of the first image.
        batch_size: images at a time; "auto": as many as memory holds, or as an interrupted set has.
        settings: keyword arguments of `Pipeline.generate_tokens`.
        label_policy: where no labels are given, see `choose_labels`.
        model: where the pipeline came from, for the manifest.

    Returns:
        One line that says what was written; None in every process but the first.

    Raises:
        InputError: nothing to sample, what the pipeline refuses, or other samples under this name.
    """
    out, here = Path(out), Processes.here()
    given = [pipeline.label_index(label) for label in labels] if labels else None
    policy, chosen = choose_labels(len(pipeline.class_names), label_policy, given, num, seed)
    if batch_size == "auto":
        batch_size = _fitting_batch(pipeline, out, len(chosen), settings, here)
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    if out.suffix == ".png":
        return _contact_sheet(pipeline, out, chosen[:SHEET_IMAGES], seed, batch_size, settings) if here.leads else None

    manifest = Manifest.of(pipeline, chosen, policy, given, seed, batch_size, settings, model, here.count)
    facts = f"{manifest.count:,} images of {manifest.image_size[0]} × {manifest.image_size[1]} pixels"
    finished = _finished(out, manifest)
    if not finished:
        _sample(pipeline, Shards(out, manifest), out, chosen, here)
    if not here.leads:
        return None
    shards = Shards(out, manifest)
    if finished:
        shards.remove()  # what a kill at the very end may have left
        return f"{out}: {facts}, sampled before with the same settings and left as they are"
    merged = shards.folder / f"merged{out.suffix}"
    if out.suffix == ".npz":
        write_images(merged, shards.batches(), manifest.count, manifest.image_size, np.array(chosen, np.int64))
    else:
        write_folder(merged, shards.batches(), chosen, pipeline.class_names, seed)
    manifest.save(manifest_path(merged))
    if out.suffix == ".npz":  # before the images, because what bears the name `out` is finished
        os.replace(manifest_path(merged), manifest_path(out))
    os.replace(merged, out)
    shards.remove()
    return f"{out}: {facts}; how they were made is in {manifest_path(out)}"


def _fitting_batch(pipeline: Pipeline, out: Path, count: int, settings: dict[str, Any], here: Processes) -> int:
    """The batch size of what is there already, else the largest that fits in memory."""
    if here.count > 1:
        raise InputError("batch_size auto is for one process, since all must cut the same batches: give a number")
    for path in (manifest_path(out), manifest_path(Shards.folder_of(out))):
        if path.exists():
            return Manifest.load(path).batch_size
    return min(pipeline.largest_batch(settings.get("cfg_scale", 2.0)), count)


def _finished(out: Path, manifest: Manifest) -> bool:
    """Whether these samples are there. Raises InputError if something else is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = manifest_path(out)
    if not path.exists():
        raise InputError(f"{out} is there already and has no manifest: choose another --out or delete it")
    if differences := manifest.differences(Manifest.load(path)):
        raise InputError(
            f"{out} holds samples with other settings: {'; '.join(differences)}. Choose another --out or delete them"
        )
    return True


def _sample(pipeline: Pipeline, shards: Shards, out: Path, labels: list[int], here: Processes) -> None:
    """Compute this process's batches that are not there; the leading process then waits for the others."""
    manifest = shards.manifest
    # In this order: once `out` is there, its parts are removed.
    missing = [k for k in range(here.rank, len(shards), here.count) if not shards.path(k).exists()]
    if out.exists() and manifest_path(out).exists():
        missing = []
    images = [i for k in missing for i in shards.images(k)]
    batches = pipeline.generate(
        [labels[i] for i in images], [manifest.seed + i for i in images], manifest.batch_size, **manifest.settings
    )
    with progress_bar(manifest.count, "sample", "image", shards.finished(), hidden=not here.leads) as bar:
        # Only the very last batch may be smaller, so a stream of the missing ones is cut as they are.
        for k, batch in zip(missing, batches, strict=True):
            shards.add(k, batch)
            bar.update(shards.finished() - bar.n)
        while here.leads and (done := shards.finished()) < manifest.count:
            bar.update(done - bar.n)
            here.check_launcher()
            time.sleep(POLL_SECONDS)


def _contact_sheet(
    pipeline: Pipeline, out: Path, labels: list[int], seed: int, batch_size: int, settings: dict[str, Any]
) -> str:
    images = np.concatenate(list(pipeline.generate(labels, seed, batch_size, progress=True, **settings)))
    save_png(out, sheet(list(images)))
    return f"{out}: contact sheet of {len(images)} images"


class SampleSet:
    """Samples of ours or of anyone: an .npz with `arr_0`, or a folder of PNGs.

    Attributes:
        count: number of images.
        image_size: (height, width).
        manifest: how they were made, or None if nothing says so.
        labels: int64 (count,), or None if not known.
    """

    def __init__(self, images: ImageArray | ImageFolder, manifest: Manifest | None) -> None:
        self._images, self.manifest = images, manifest
        self.count, self.image_size = images.shape[0], images.shape[1:3]
        self.labels = images.labels

    @classmethod
    def open(cls, path: str | Path) -> SampleSet:
        """Look at the samples at `path` without reading their pixels.

        Raises:
            InputError: see `ImageArray` and `ImageFolder`; or another number or size of images than the manifest says.
        """
        images = ImageArray(path) if Path(path).suffix == ".npz" else ImageFolder(path)
        manifest = Manifest.load(manifest_path(path)) if manifest_path(path).exists() else None
        if manifest is not None and (manifest.count, *manifest.image_size) != images.shape[:3]:
            (n, h, w), (height, width) = images.shape[:3], manifest.image_size
            raise InputError(
                f"{path} holds {n:,} images of {h} × {w}, {manifest_path(path)} says {manifest.count:,} of "
                f"{height} × {width}: they do not belong together, sample again"
            )
        return cls(images, manifest)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Stream uint8 (b, H, W, 3), in order; b is `batch_size`, less in the last.

        Raises:
            InputError: damaged images.
        """
        return self._images.batches(batch_size)
