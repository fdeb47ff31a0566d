"""`ctf tokenize`."""

from __future__ import annotations

from typing import Literal


def tokenize(
    out: str,
    images: str = "emoji",
    split: str | None = None,
    image_size: int = 64,
    tokenizer: str = "emoji",
    augmentation: Literal["none", "flip", "ten-shift", "ten-crop"] = "flip",
    crop_ranges: tuple[float, ...] = (1.1,),
    batch_size: int = 64,
    shard_size: int = 8192,
    device: str = "auto",
    allow_namespace: bool = False,
) -> None:
    """Turn images into a stored token set, alone or under torchrun. An interrupted run continues where it stopped.

    Example:
        ctf tokenize --images emoji-subgroups-by-design --split train --out runs/tokens/train

    Args:
        out: folder of the token set.
        images: "emoji" (other labels: "emoji-subgroups", "emoji-subgroups-by-design"), a folder with a sub-folder per
            class or a metadata.csv, Parquet, WebDataset shards, such at a URL ("s3://…", "gs://…", "https://…") or
            "hf://name". Labels of another column than "label": "x.parquet#fine_label".
        split: which part, where the images have several; or held-out, every tenth image of each class, or not-held-out.
        image_size: pixels per side after the centre crop.
        tokenizer: "emoji", "photos", a tokenizer file, a run or model folder, or LlamaGen's file.
        augmentation: what is stored of each image; training draws one at random. Nothing else; the mirror image;
            the image as it is, moved one pixel to each corner, and their mirror images; or four corners, centre and
            their mirror images per crop range.
        crop_ranges: of ten-crop, from 1 to 4: the centre crop is this much larger than image_size. LlamaGen trains
            with 1.1, or 1.1 and 1.05.
        batch_size: images encoded at a time.
        shard_size: images per file, unreadable ones included. Under torchrun each process writes whole files: take
            far more files than processes.
        device: where to encode: auto (a GPU where there is one), cpu, cuda, cuda:1, …
        allow_namespace: accept an argparse.Namespace beside the weights of a .pt file.
    """
    from ctf.device import usable_device
    from ctf.images.image_set import open_images, report_skipped
    from ctf.interop.tokenizers import open_tokenizer
    from ctf.tokens.tokenize import tokenize_images
    from ctf.torchrun import rank_and_world

    rank, world = rank_and_world()
    where = usable_device(device)
    opened = open_images(images, split, image_size)
    encoder = open_tokenizer(tokenizer, allow_namespace)
    made = tokenize_images(
        opened,
        encoder,
        out,
        augmentation,
        crop_ranges,
        split,
        batch_size,
        shard_size,
        where,
        rank=rank,
        world=world,
    )
    if made is not None:
        print(made)
        if note := report_skipped(made.index.skipped, len(opened)):
            print(note)
