"""What `ctf fit` is asked for, free of heavy imports so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

#: A tokenizer to train, and random weights to start from.
NEW, NOTHING = "new", "none"


@dataclass(frozen=True)
class FitConfig:
    """What None leaves open is decided by `choose`.

    Attributes:
        images: a folder with a sub-folder per class, or a flat one, which is one class; "emoji", Parquet, WebDataset
            shards or "hf://name".
        out: folder of the run. An interrupted command goes on where it stopped and gives the same model.
        time: how long all of it may take, such as 90s, 30m or 2h. A little of the work is timed first, and as many
            steps are planned as fit. An interrupted run keeps its plan.
        split: which part to train on, where the images have several.
        held_out_split: which part to evaluate on, for the report's figures. Where neither is named, every tenth image
            of each class is held out. A random part is measured where all would take more than a twentieth of the time.
        image_size: pixels per side: 64 on a CPU and 256 on a GPU without it. Bundled tokenizers serve where they make
            at most 256 tokens of an image.
        tokenizer: use this one, as for `ctf tokenize`; "new" trains one. Without it the bundled one is taken that keeps
            a hundred of the images best; a new one only where none keeps 20 dB and there is time for 1,500 steps.
        family: of the tokenizer: "vq", or "multi-scale", whose stages predict scale after scale.
        start_from: a model folder or Hub id whose stages training starts from, and whose tokenizer is taken; or a
            stage, a run or LlamaGen's file, as for `ctf train`; "none" starts from random weights. Without it, and
            without a baseline, it is the bundled model of the tokenizer.
        lpips: choose among bundled tokenizers by LPIPS, with the weights in this folder, file or Hub id, instead of by
            PSNR.
        num_clusters: that of the weights to start from, or one for every 32 codewords, 8 with several scales.
        size: of both stages, see `ctf info sizes`; without it that of the weights to start from; else B on a GPU, nano
            or from half an hour on micro on a CPU.
        flip: train the stages on mirror images and shifts too; false for letters, digits and what else has a left and
            a right.
        batch_size: of the stages: 32 on a CPU and 256 on a GPU without it.
        baseline: train a one-stage model too, of the same size and for as many steps, and compare the two.
        seed: of everything; 0 without it.
        dry_run: print the plan and end.
        device: where to train; auto is a GPU where there is one.
    """

    images: str
    out: str
    time: str = "30m"
    split: str | None = None
    held_out_split: str | None = None
    image_size: int | None = None
    tokenizer: str | None = None
    family: str | None = None
    start_from: str | None = None
    lpips: str | None = None
    num_clusters: int | None = None
    size: str | None = None
    batch_size: int | None = None
    flip: bool = True
    baseline: bool = False
    seed: int | None = None
    dry_run: bool = False
    device: str = "auto"
