"""`ctf fit`."""

from __future__ import annotations


def fit(
    images: str,
    out: str,
    time: str = "30m",
    split: str | None = None,
    held_out: str | None = None,
    image_size: int | None = None,
    tokenizer: str | None = None,
    num_clusters: int | None = None,
    size: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    dry_run: bool = False,
    device: str = "auto",
) -> None:
    """From a folder of images to a model: tokenizer, clusters, both stages, samples and a report.

    Example:
        ctf fit --images pictures --time 20s --out runs/mine

    Args:
        images: a folder with a sub-folder per class, or a flat one, which is one class; "emoji", Parquet, WebDataset
            shards or "hf://name".
        out: folder of the run. An interrupted command goes on where it stopped and gives the same model.
        time: about how long it may take, such as 90s, 30m or 2h. Steps are timed first, and as many are planned. An
            interrupted run keeps its plan.
        split: which part to train on, where the images have several.
        held_out: the split to keep for the report's figures. Where neither is named, every tenth image of each class
            is kept.
        image_size: pixels per side: 64 on a CPU and 256 on a GPU without it.
        tokenizer: use this one, as for `ctf tokenize`, instead of training one.
        num_clusters: one for every 32 codewords without it.
        size: of both stages, see `ctf info sizes`; without it B on a GPU, nano or from half an hour on micro on a CPU.
        batch_size: of the stages: 32 on a CPU and 256 on a GPU without it.
        seed: of everything; 0 without it.
        dry_run: print the plan and end.
        device: where to train; auto is a GPU where there is one.
    """
    from pathlib import Path

    from ctf.device import usable_device
    from ctf.fit import carry_out
    from ctf.fit.plan import PLAN, Plan, choose, parse_time

    seconds, where, path = parse_time(time), usable_device(device), Path(out) / PLAN
    asked = {"images": images, "split": split, "held_out": held_out, "image_size": image_size, "tokenizer": tokenizer}
    asked |= {"num_clusters": num_clusters, "size": size, "batch_size": batch_size, "seed": seed}
    if path.exists():
        plan = Plan.load(path)
        plan.check_asked(path, **asked)
        print(f"Going on with the plan in {path}.")
    else:
        plan = choose(**asked | {"seed": seed or 0}, time=seconds, device=where)  # type: ignore[arg-type]
    print(plan.table())
    if not dry_run:
        carry_out.run_fit(plan, out, device, lambda line: print(f"\n{line}", flush=True))
        page, model = (Path(out) / name for name in (carry_out.PAGE, carry_out.MODEL))
        print(f"Done: open {page}; sample more with `ctf sample --model {model} --out samples`")
