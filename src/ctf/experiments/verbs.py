"""The verbs of experiments."""

from __future__ import annotations

from typing import Literal


def demo(out: str = "runs/demo", quick: bool = False, seed: int = 0) -> None:
    """Do the whole job on the embedded emoji: tokenize, cluster, train, sample, report.

    Example:
        ctf demo --quick --out runs/quick

    Args:
        out: folder for embedded.png, samples.png, swap.png, curves.png, metrics.json, report.md and fit/, where
            the model is. An interrupted command goes on where it stopped.
        quick: about a minute, at a size that only proves the path.
        seed: of clustering, training and sampling.
    """
    from ctf.experiments.demo import run_demo

    run_demo(out, quick, seed)


def plan(
    path: str,
    gpu: str = "H100",
    gpus: int = 8,
    stages: list[Literal["baseline", "coarse", "fine"]] | None = None,
    num_clusters: int = 512,
    mfu: float | None = None,
    price: float | None = None,
    shard: bool | None = None,
    recompute: bool | None = None,
) -> None:
    """Parameters, operations, memory, time and cost of trainings, before anyone pays for them.

    Example:
        ctf plan configs/imagenet-256-XL.yaml --gpu H100 --gpus 8 --price 2.5

    Args:
        path: settings as `ctf train` takes them with --config. Images and tokens are counted in its token set; until
            that is there, ImageNet's at 256 pixels are taken.
        gpu: A100-40GB, A100, H100, H200, B200, L40S or RTX-4090, with the figures of their datasheets.
        gpus: how many, over all machines.
        stages: which of the paper's to plan; all three without it. The paper's fine stage has size L.
        num_clusters: until the coarse map is there.
        mfu: share of the datasheet's rate that the model's operations make up; 0.4 without it. `ctf bench training`
            measures yours.
        price: of a GPU and hour.
        shard, recompute: in place of the settings' `loop.shard` and `loop.recompute`.
    """
    from ctf.bench.gpus import UTILISATION, find_gpu
    from ctf.experiments.plan import SETTINGS_OF, Cluster, plan_page

    cluster = Cluster(find_gpu(gpu), gpus, UTILISATION if mfu is None else mfu, price)
    every = list(SETTINGS_OF) if stages is None else stages
    print(plan_page(path, every, num_clusters, cluster, shard=shard, recompute=recompute))


def reproduce(
    name: str,
    preset: Literal["emoji", "imagenet"] = "emoji",
    out: str = "runs/reproduce",
    dry_run: bool = False,
    look: bool = False,
    seeds: tuple[int, ...] | None = None,
    steps: int | None = None,
    num_samples: int | None = None,
    images: str | None = None,
    tokenizer: str | None = None,
    reference: str | None = None,
    device: str = "auto",
) -> None:
    """A table or figure of the paper, or a comparison beyond it: train, sample, measure, and write a page.

    Example:
        ctf reproduce table1 --preset imagenet --dry-run

    Args:
        name: of the paper: table1, table2, table3a, table3b, table3c, table3d, table3e, table3f, fig1b, fig2, fig3,
            accuracy. Beyond it: kinds, orders, rounds, clusterings, support, guidance, levels.
        preset: emoji, the embedded images, with small models for two CPU cores; or imagenet, the paper's settings.
        out: trained stages, sample sets and metrics, each made once and shared by all experiments; and a folder with
            report.md for each experiment. An interrupted command goes on where it stopped.
        dry_run: print what would be made, with operations and time.
        look: make nothing, and write the page of what is there already.
        seeds: of trainings, where they are repeated; else the first.
        steps: of every training, in place of the preset's.
        num_samples: images of a sample set, in place of the preset's.
        images: in place of the preset's, as for `ctf tokenize`.
        tokenizer: in place of the preset's, as for `ctf tokenize`.
        reference: in place of the preset's, as for `ctf evaluate samples`.
        device: where to train and sample; auto is a GPU where there is one.
    """
    import shlex
    import sys

    from ctf.experiments.presets import PRESETS
    from ctf.experiments.reproduce import plan, reproduce

    chosen = PRESETS[preset].changed(images, tokenizer, reference, seeds, steps, num_samples)
    if dry_run:
        print(plan(name, chosen, out))
    else:
        page = reproduce(name, chosen, out, device, shlex.join(["ctf", *sys.argv[1:]]), not look)
        print(f"{page}: {name}, with its pictures beside it")
