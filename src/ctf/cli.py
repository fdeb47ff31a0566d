"""The command `ctf`: one thin function per verb. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Literal

from ctf.command import Verb, dispatch
from ctf.errors import InputError
from ctf.training.config import CoarseTraining, FineTraining, TokenizerTraining, TokenTraining


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


def tokenize(
    out: str,
    images: str = "emoji",
    split: str | None = None,
    image_size: int = 64,
    tokenizer: str = "emoji",
    augmentation: Literal["none", "flip", "ten-crop"] = "flip",
    crop_ranges: tuple[float, ...] = (1.1,),
    batch_size: int = 64,
    shard_size: int = 8192,
    device: str = "cpu",
) -> None:
    """Turn images into a stored token set. An interrupted run continues where it stopped.

    Example:
        ctf tokenize --images emoji --split test --augmentation none --out runs/tokens/test

    Args:
        out: folder of the token set.
        images: "emoji", a folder with a sub-folder per class, Parquet, WebDataset shards or "hf://name".
        split: which part, where the images have several.
        image_size: pixels per side after the centre crop.
        tokenizer: "emoji", a tokenizer file, a run or model folder, or LlamaGen's .pt file.
        augmentation: what is stored of each image; training draws one at random.
        crop_ranges: of ten-crop: the centre crop is this much larger than image_size.
        batch_size: images encoded at a time.
        shard_size: images per file.
        device: where to encode.
    """
    from ctf.device import usable_device
    from ctf.images.image_set import open_images
    from ctf.interop.tokenizers import open_tokenizer
    from ctf.tokens.tokenize import tokenize_images

    where = usable_device(device)
    opened = open_images(images, split, image_size)
    tokens = tokenize_images(
        opened, open_tokenizer(tokenizer), out, augmentation, crop_ranges, split, batch_size, shard_size, where
    )
    print(f"{out}: {len(tokens):,} images × {tokens.num_augmentations} × {tokens.num_tokens} tokens")
    if note := opened.report_skipped():
        print(note)


def cluster(
    out: str,
    codebook: str = "emoji",
    num_clusters: int = 512,
    method: Literal["kmeans", "balanced", "random"] = "kmeans",
    seed: int = 0,
) -> None:
    """Cluster a codebook and write the coarse map.

    Example:
        ctf cluster --codebook emoji --num_clusters 512 --out runs/map.safetensors

    Args:
        out: the coarse map, a safetensors file.
        codebook: a tokenizer ("emoji", a file, a folder, LlamaGen's .pt file), or a matrix in .npy, .pt or
            .safetensors; or an implicit one: lfq:18, bsq:18, fsq:8,8,8,5,5,5.
        num_clusters: M.
        method: k-means; equal cluster sizes; or a random partition, the paper's control.
        seed: of the clustering.
    """
    from ctf.codebook import CoarseMap, cluster_codebook, describe, format_description
    from ctf.interop.tokenizers import open_codebook

    matrix = open_codebook(codebook)
    coarse_map: CoarseMap = cluster_codebook(matrix, num_clusters, method, seed)
    coarse_map.save(out)
    print(format_description(describe(matrix, coarse_map)))
    print(f"{out}: {coarse_map.num_fine:,} tokens in {coarse_map.num_coarse:,} clusters ({method}, seed {seed})")


def train_tokenizer(config: TokenizerTraining) -> None:
    """Train a VQ tokenizer on images.

    Example:
        ctf train tokenizer --split test --loop.steps 10 --loop.batch_size 16 --out runs/tokenizer
            --model.base_channels 32 --model.channel_multipliers '[1,2]' --model.patch_size 4 --model.codebook_size 512
    """
    from ctf.training.runs import train_tokenizer

    _print_figures(train_tokenizer(config))


def train_baseline(config: TokenTraining) -> None:
    """Train a one-stage model over all tokens of the codebook.

    Example:
        ctf train baseline --tokens runs/tokens/test --size nano --out runs/baseline
            --loop.steps 5 --loop.batch_size 16
    """
    from ctf.training.runs import train_baseline

    _print_figures(train_baseline(config))


def train_coarse(config: CoarseTraining) -> None:
    """Train stage 1: cluster labels, one after another.

    Example:
        ctf train coarse --tokens runs/tokens/test --coarse_map runs/map.safetensors --size nano --out runs/coarse
            --loop.steps 5 --loop.batch_size 16
    """
    from ctf.training.runs import train_coarse

    _print_figures(train_coarse(config))


def train_fine(config: FineTraining) -> None:
    """Train stage 2: all exact tokens at once from the cluster labels.

    Example:
        ctf train fine --tokens runs/tokens/test --coarse_map runs/map.safetensors --size nano --out runs/fine
            --loop.steps 5 --loop.batch_size 16
    """
    from ctf.training.runs import train_fine

    _print_figures(train_fine(config))


def sample(
    out: str,
    model: str = "emoji",
    labels: list[int | str] | None = None,
    num: int | None = None,
    seed: int = 0,
    cfg_scale: float = 2.0,
    temperature: float = 1.1,
    top_k: int = 0,
    top_p: float = 1.0,
    fine_temperature: float = 1.1,
    fine_top_k: int = 0,
    fine_top_p: float = 1.0,
    fine_cfg_scale: float = 1.0,
    batch_size: int | Literal["auto"] = 64,
    label_policy: Literal["balanced", "uniform"] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    quantize: Literal["int8"] | None = None,
    compile: bool = False,
    device: str = "cpu",
) -> None:
    """Sample images from a model folder, alone or under torchrun. An interrupted set continues where it stopped.

    Example:
        ctf sample --labels '[3, 7, noto animals]' --seed 0 --out runs/samples

    Args:
        out: a folder for one PNG per image and sheet.png; an .npz with `arr_0` uint8 [n, H, W, 3] and `labels`, as
            evaluators read it; or a .png for the contact sheet alone. The first two come with a manifest.
        model: "emoji", a model folder or a hub id.
        labels: class indices or names; see label_policy without it.
        num: how many images; the labels are repeated or cut to this number. torchrun takes it for an option of its
            own unless it stands behind "--": torchrun --nproc_per_node 8 -m -- ctf.cli sample --num 50000 …
        seed: image i uses seed + i.
        cfg_scale: classifier-free guidance of stage 1 or the baseline; 1 is none.
        temperature: of stage 1 or the baseline; 0 is greedy.
        top_k: of stage 1 or the baseline; 0 keeps all.
        top_p: of stage 1 or the baseline; 1 keeps all.
        fine_temperature: of stage 2.
        fine_top_k: of stage 2.
        fine_top_p: of stage 2.
        fine_cfg_scale: guidance of stage 2.
        batch_size: images at a time; auto takes as many as memory holds.
        label_policy: all classes in turn, equally often (balanced, the default), or drawn at random with the seed.
        dtype: to compute in.
        quantize: int8 weights in both stages, on a CPU.
        compile: on a CPU, half a minute for a compiled step of stage 1, which pays in long runs. A GPU always compiles.
        device: where to sample; under torchrun "cuda" is another GPU for each process.
    """
    from ctf.evaluation.sample_set import sample_to
    from ctf.evaluation.sample_shards import own_device
    from ctf.pipeline import Pipeline

    settings = {
        "cfg_scale": cfg_scale,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "fine_temperature": fine_temperature,
        "fine_top_k": fine_top_k,
        "fine_top_p": fine_top_p,
        "fine_cfg_scale": fine_cfg_scale,
    }
    pipeline = Pipeline.from_pretrained(model, own_device(device), dtype, quantize, compile)
    if line := sample_to(pipeline, out, labels, num, seed, batch_size, settings, label_policy, model):
        print(line)


def evaluate_tokenizer(
    tokenizer: str = "emoji",
    images: str = "emoji",
    splits: list[str] | None = None,
    image_size: int = 64,
    features: str | None = None,
    weights: str | None = None,
) -> None:
    """Measure a tokenizer: PSNR of its reconstructions, usage and perplexity of its codebook.

    Example:
        ctf evaluate tokenizer --tokenizer emoji --images emoji --splits '[test]' --features emoji

    Args:
        tokenizer: "emoji", a tokenizer file, a run or model folder, or LlamaGen's .pt file.
        images: as for `ctf tokenize`.
        splits: one line each; all images at once without it.
        image_size: pixels per side after the centre crop.
        features: add the Fréchet distance between images and reconstructions, as for `ctf evaluate samples`.
        weights: of the features.
    """
    from ctf.evaluation.features import open_features
    from ctf.evaluation.reconstruction import reconstruction_distance
    from ctf.images.image_set import open_images
    from ctf.interop.tokenizers import open_tokenizer
    from ctf.tokenizer.measure import measure_tokenizer

    opened = open_tokenizer(tokenizer)
    extractor = open_features(features, weights) if features else None
    for split in splits or [None]:  # type: ignore[list-item]
        measured = open_images(images, split, image_size)
        distance = reconstruction_distance(opened, measured, extractor) if extractor else {}
        figures = {"images": images, "split": split, **measure_tokenizer(opened, measured), **distance}
        print(json.dumps(figures, ensure_ascii=False))
        if note := measured.report_skipped():
            print(note, file=sys.stderr)


def evaluate_likelihood(tokens: str, model: str = "emoji", device: str = "cpu") -> None:
    """Bits per token of a model on a token set: baseline and coarse-to-fine are comparable.

    Example:
        ctf evaluate likelihood --model emoji --tokens runs/tokens/test

    Args:
        tokens: folder of a token set that the model was not trained on.
        model: "emoji", a model folder or a hub id.
        device: where to compute.
    """
    from ctf.evaluation.likelihood import bits_per_token
    from ctf.pipeline import Pipeline
    from ctf.tokens.token_set import TokenSet

    _print_figures(bits_per_token(Pipeline.from_pretrained(model, device), TokenSet.open(tokens)))


def evaluate_samples(
    samples: str,
    reference: str,
    out: str,
    split: str | None = None,
    features: str = "inception",
    weights: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
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
        features: inception (FID), dinov2, emoji, or a function of yours, file.py:function.
        weights: of the features; by default the published ones, which are downloaded once, or the embedded ones.
        batch_size: images at a time.
        device: where to compute the features.
        cache: folder for features of references; $CTF_CACHE or ~/.cache/ctf without it.
    """
    import shlex

    from ctf.evaluation import protocol
    from ctf.evaluation.features import open_features
    from ctf.evaluation.reference import open_reference
    from ctf.evaluation.sample_set import SampleSet
    from ctf.evaluation.table import write_comparison

    opened = SampleSet.open(samples)
    protocol.check_samples(opened, samples)
    extractor = open_features(features, weights, device)
    compared = open_reference(reference, extractor, split, opened.image_size, batch_size, cache)
    command = shlex.join(sys.argv)
    evaluation = protocol.evaluate_samples(opened, compared, extractor, samples, batch_size, command=command)
    print(write_comparison(out, evaluation), end="")


def reproduce_swap(
    out: str,
    tokenizer: str = "emoji",
    images: str = "emoji",
    split: str | None = "test",
    image_size: int = 64,
    cluster_counts: tuple[int, ...] = (512, 2048),
    seed: int = 0,
) -> None:
    """Fig. 1b: swap tokens within k-means and within random clusters.

    Example:
        ctf reproduce swap --cluster_counts '[512]' --out runs/swap.png

    Args:
        out: the figure, a PNG.
        tokenizer: "emoji", a tokenizer file, a run or model folder, or LlamaGen's .pt file.
        images: as for `ctf tokenize`.
        split: which part of the images.
        image_size: pixels per side after the centre crop.
        cluster_counts: values of M.
        seed: of clusterings and swaps.
    """
    from ctf.experiments.swap import swap_figure
    from ctf.images.image_set import open_images
    from ctf.images.sheet import save_png
    from ctf.interop.tokenizers import open_tokenizer

    opened = open_images(images, split, image_size)
    result = swap_figure(open_tokenizer(tokenizer), opened, cluster_counts, seed=seed)
    save_png(out, result.figure)
    for count, values in result.psnr.items():
        print(f"M = {count}: k-means {values['kmeans']:.2f} dB, random {values['random']:.2f} dB")
    if note := opened.report_skipped():
        print(note, file=sys.stderr)


def bench_sampling(
    sizes: tuple[str, ...] = ("B",),
    methods: tuple[Literal["baseline", "coarse-to-fine"], ...] = ("baseline", "coarse-to-fine"),
    batch_sizes: tuple[int, ...] = (4, 64),
    fine_size: str = "L",
    tokenizer: str = "vq16",
    grid: tuple[int, int] = (16, 16),
    vocabulary: int = 16_384,
    clusters: int = 512,
    cfg_scale: float = 2.0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    quantize: Literal["int8"] | None = None,
    compile: bool = False,
    device: str = "cpu",
    runs: int = 3,
    json: str | None = None,
) -> None:
    """Measure images per second with random weights, part by part, beside the roofline and the paper's Table 2.

    Example:
        ctf bench sampling --sizes '[B, L]' --batch_sizes '[4, 64]' --dtype bfloat16 --json runs/sampling.json

    Args:
        sizes: of stage 1 or the baseline, see `ctf info sizes`.
        methods: which of the two.
        batch_sizes: images at a time.
        fine_size: of stage 2.
        tokenizer: vq16 or vq8 with random weights, or what `ctf tokenize` takes.
        grid: rows and columns of tokens.
        vocabulary: K, tokens of the codebook.
        clusters: M.
        cfg_scale: classifier-free guidance of stage 1 or the baseline; 1 is none.
        dtype: to compute in.
        quantize: int8 weights in both stages, on a CPU.
        compile: as for `ctf sample`; the first call shows what it takes.
        device: where to sample.
        runs: batches that each median is of, after a first one.
        json: a file for all figures.
    """
    from ctf.evaluation.sampling_benchmark import SamplingBenchmark

    benchmark = SamplingBenchmark(
        sizes,
        methods,
        batch_sizes,
        fine_size,
        tokenizer,
        grid,
        vocabulary,
        clusters,
        cfg_scale,
        dtype,
        quantize,
        compile,
        device,
        runs,
        json,
    )
    for line in benchmark.report():
        print(line, flush=True)


def bench_training(
    sizes: tuple[str, ...] = ("B",),
    stages: tuple[Literal["baseline", "coarse", "fine-cluster", "fine-full"], ...] = (
        "baseline",
        "coarse",
        "fine-cluster",
        "fine-full",
    ),
    batch_size: int = 16,
    steps: int = 5,
    grid: tuple[int, int] = (16, 16),
    vocabulary: int = 16_384,
    clusters: int = 512,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    json: str | None = None,
) -> None:
    """Measure tokens per second of training steps on random tokens, and model-FLOPs utilisation.

    Example:
        ctf bench training --sizes '[B]' --stages '[coarse, fine-cluster]' --json runs/training.json

    Args:
        sizes: of each stage, see `ctf info sizes`.
        stages: which models; fine-cluster and fine-full are the supports of stage 2.
        batch_size: images per step.
        steps: that each median is of, after two.
        grid: rows and columns of tokens.
        vocabulary: K, tokens of the codebook.
        clusters: M.
        precision: auto is bfloat16 where the device computes it natively, else float32.
        device: auto, cpu, cuda or mps.
        json: a file for all figures.
    """
    from ctf.evaluation.training_throughput import TrainingBenchmark

    benchmark = TrainingBenchmark(sizes, stages, batch_size, steps, grid, vocabulary, clusters, precision, device, json)
    for line in benchmark.report():
        print(line, flush=True)


def convert_pipeline(
    out: str,
    tokenizer: str,
    classes: str,
    coarse: str | None = None,
    fine: str | None = None,
    coarse_map: str | None = None,
    baseline: str | None = None,
    support: Literal["cluster", "full"] | None = None,
    half: bool = False,
) -> None:
    """Put trained parts together into a model folder.

    Example:
        ctf convert pipeline --tokenizer emoji --classes runs/tokens/test --out runs/model
            --coarse runs/coarse --fine runs/fine --coarse_map runs/map.safetensors

    Args:
        out: model folder.
        tokenizer: "emoji", a tokenizer file, a run or model folder, or LlamaGen's .pt file.
        classes: the token set that the models were trained on: it knows the names of the classes.
        coarse: run folder or file of stage 1.
        fine: run folder or file of stage 2.
        coarse_map: the clusters that both were trained with.
        baseline: run folder or file of a one-stage model, instead of the three.
        support: what the fine model was trained with; read from its run folder without it.
        half: store the Transformers in float16.
    """
    from ctf.artefacts import assemble

    assemble(out, tokenizer, classes, coarse, fine, coarse_map, baseline, support, half)
    print(f"{out}: open it with ctf.Pipeline.from_pretrained({out!r}) or `ctf sample --model {out}`")


def convert_llamagen(
    out: str,
    tokenizer: str,
    gpt: str,
    num_heads: int | None = None,
    grid: tuple[int, int] = (16, 16),
    allow_namespace: bool = False,
) -> None:
    """Turn LlamaGen's tokenizer and class-conditional GPT into a model folder: a baseline pipeline.

    Example:
        ctf convert llamagen --tokenizer vq_ds16_c2i.pt --gpt c2i_B_256.pt --out runs/llamagen-b

    Args:
        out: model folder.
        tokenizer: .pt file, or "owner/name:file" on the Hugging Face Hub.
        gpt: .pt file, or "owner/name:file" on the Hugging Face Hub.
        num_heads: attention heads, where depth and width are none of LlamaGen's sizes.
        grid: rows and columns of tokens: [16, 16] for 256 pixels, [24, 24] for 384.
        allow_namespace: accept an argparse.Namespace beside the weights, as some training checkpoints hold.
    """
    from ctf.artefacts import from_llamagen

    print(json.dumps(from_llamagen(out, tokenizer, gpt, num_heads, grid, allow_namespace), indent=2))


def convert_codes(
    out: str,
    source: str,
    size: int = 256,
    second: str | None = None,
    count: int | None = None,
    codebook_size: int = 16_384,
    num_classes: int = 1000,
) -> None:
    """Read LlamaGen's folders of pre-extracted codes into a token set, without encoding again.

    Example:
        ctf convert codes --source imagenet_code_c2i_flip_ten_crop --second imagenet_code_c2i_flip_ten_crop_105
            --out runs/tokens/imagenet

    Args:
        out: folder of the token set.
        source: folder with imagenet{size}_codes and imagenet{size}_labels.
        size: pixels per side in the names of these folders.
        second: the same images under another crop range.
        count: number of images, where files beyond it are repetitions; all files without it.
        codebook_size: K.
        num_classes: labels are below this.
    """
    from ctf.interop.codes import import_codes

    tokens = import_codes(source, out, size, codebook_size, second=second, count=count, num_classes=num_classes)
    print(f"{out}: {len(tokens):,} images × {tokens.num_augmentations} × {tokens.num_tokens} tokens")


def convert_tokens(
    out: str,
    tokens: str,
    labels: str,
    codebook_size: int,
    grid: tuple[int, int] | None = None,
    codebook: str | None = None,
) -> None:
    """Make a token set of arrays from elsewhere: tokens of any tokenizer, also one that we cannot open.

    Example:
        ctf convert tokens --tokens tokens.npy --labels labels.npy --codebook_size 16384 --out runs/tokens/mine

    Args:
        out: folder of the token set.
        tokens: .npy of integers [n, A, N], A augmentations of n images, or [n, N].
        labels: .npy of integers [n].
        codebook_size: K.
        grid: rows and columns of tokens; a square without it.
        codebook: the codebook of the tokens, as for `ctf cluster`, so that a map of another one is refused.
    """
    from ctf.interop.codes import import_arrays

    stored = import_arrays(out, tokens, labels, codebook_size, grid, codebook)
    print(f"{out}: {len(stored):,} images × {stored.num_augmentations} × {stored.num_tokens} tokens")


def convert_to_codes(out: str, tokens: str, size: int | None = None, second: str | None = None) -> None:
    """Write a token set as LlamaGen's folders of pre-extracted codes.

    Example:
        ctf convert to-codes --tokens runs/tokens/test --out runs/codes

    Args:
        out: folder that gets imagenet{size}_codes and imagenet{size}_labels.
        tokens: folder of the token set.
        size: pixels per side for the names of these folders; what the token set says without it.
        second: folder for the second half of the augmentations, another crop range.
    """
    from ctf.interop.codes import export_codes
    from ctf.tokens.token_set import TokenSet

    export_codes(TokenSet.open(tokens), out, size, second=second)
    print(f"{out} written")


def convert_half(source: str, out: str) -> None:
    """Round a tokenizer's weights to float16, for shipping. Its codebook is then another one.

    Example:
        ctf convert half --source emoji --out runs/half.safetensors

    Args:
        source: "emoji", a tokenizer file, or a run or model folder.
        out: a safetensors file.
    """
    import torch

    from ctf.interop.tokenizers import open_tokenizer

    open_tokenizer(source).save(out, torch.float16)
    print(f"{out} written: tokenize and cluster with it, not with {source}")


def info(path: str) -> None:
    """Describe any artefact: token set, coarse map, tokenizer, model, run or model folder.

    Example:
        ctf info emoji

    Args:
        path: a file or folder; "emoji" is the embedded model, "sizes" the named model sizes.
    """
    from ctf.artefacts import describe

    print(json.dumps(describe(path), indent=2, ensure_ascii=False))


VERBS: dict[str, Verb | dict[str, Verb]] = {
    "demo": demo,
    "tokenize": tokenize,
    "cluster": cluster,
    "train": {
        "tokenizer": train_tokenizer,
        "baseline": train_baseline,
        "coarse": train_coarse,
        "fine": train_fine,
    },
    "sample": sample,
    "evaluate": {"tokenizer": evaluate_tokenizer, "likelihood": evaluate_likelihood, "samples": evaluate_samples},
    "bench": {"sampling": bench_sampling, "training": bench_training},
    "reproduce": {"swap": reproduce_swap},
    "convert": {
        "pipeline": convert_pipeline,
        "llamagen": convert_llamagen,
        "codes": convert_codes,
        "tokens": convert_tokens,
        "to-codes": convert_to_codes,
        "half": convert_half,
    },
    "info": info,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    # Large pages for large tensors: decoding reads all weights at every step, and is 5 % faster for it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    warnings.formatwarning = lambda message, *_: f"ctf: warning: {message}\n"
    try:
        dispatch(VERBS, sys.argv[1:] if arguments is None else arguments)
        return 0
    except InputError as error:
        return _fail(str(error))
    except SystemExit as end:  # --help and --print_config
        return int(end.code or 0)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        print("ctf: stopped", file=sys.stderr)
        return 130


def _print_figures(figures: dict[str, float]) -> None:
    print(json.dumps(figures, indent=2))


def _fail(message: str) -> int:
    print(f"ctf: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
