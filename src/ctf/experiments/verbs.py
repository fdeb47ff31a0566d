"""The verbs of experiments."""

from __future__ import annotations


def demo(out: str = "runs/demo", quick: bool = False, seed: int = 0) -> None:
    """Do the whole job on the embedded emoji: tokenize, cluster, train, sample, report.

    Example:
        ctf demo --quick --out runs/quick

    Args:
        out: folder for samples.png, swap.png, curves.png, metrics.json, report.md and model/.
        quick: about a minute, at a size that only proves the path.
        seed: of clustering, training and sampling.
    """
    from ctf.experiments.demo import run_demo

    run_demo(out, quick, seed)


def swap(
    out: str,
    model: str | None = None,
    num: int = 108,
    tokenizer: str = "emoji",
    images: str = "emoji",
    split: str | None = "test",
    image_size: int = 64,
    cluster_counts: tuple[int, ...] = (512, 2048),
    seed: int = 0,
    allow_namespace: bool = False,
) -> None:
    """Fig. 1b: swap tokens within k-means and within random clusters.

    Example:
        ctf reproduce swap --model emoji --cluster_counts '[512]' --out runs/swap.png

    Args:
        out: the figure, a PNG.
        model: swap tokens that this model generates, as the paper does: "emoji", a model folder or a Hub id. Without
            it those of `images`.
        num: how many images to generate, with `model`.
        tokenizer: of the images: "emoji", a tokenizer file, a run or model folder, or LlamaGen's .pt file.
        images: as for `ctf tokenize`.
        split: which part of the images.
        image_size: pixels per side after the centre crop.
        cluster_counts: values of M.
        seed: of clusterings, swaps and generated images.
        allow_namespace: accept an argparse.Namespace beside the weights of the tokenizer's .pt file.
    """
    import sys

    from ctf.errors import InputError
    from ctf.experiments.swap import swap_generated, swap_images
    from ctf.files import check_writable
    from ctf.images.image_set import open_images
    from ctf.images.sheet import save_png
    from ctf.interop.tokenizers import open_tokenizer
    from ctf.model_folder import Pipeline

    if num < 1:
        raise InputError(f"num {num}: at least one image must be asked for")
    check_writable(out)
    note = ""
    if model is not None:
        result = swap_generated(Pipeline.from_pretrained(model), num, cluster_counts, seed=seed)
    else:
        opened = open_images(images, split, image_size)
        result = swap_images(open_tokenizer(tokenizer, allow_namespace), opened, cluster_counts, seed=seed)
        note = opened.report_skipped()
    save_png(out, result.figure)
    for count, values in result.psnr.items():
        print(f"M = {count}: k-means {values['kmeans']:.2f} dB, random {values['random']:.2f} dB")
    if note:
        print(note, file=sys.stderr)
