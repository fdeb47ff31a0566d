"""Presets: data, sizes and settings of experiments, and the systems that they compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ctf.bench.gpus import GPUS, UTILISATION
from ctf.errors import InputError
from ctf.evaluation.reference import is_stored
from ctf.experiments.artifacts import Clusters, Data, Tokens, Training
from ctf.experiments.measurements import System, Weights
from ctf.experiments.store import Pace
from ctf.images.image_set import open_images
from ctf.interop.tokenizers import open_tokenizer
from ctf.layout import Layout
from ctf.training.config import (
    BaselineTraining,
    CoarseTraining,
    FineTraining,
    LoopConfig,
    OptimizerConfig,
    StageTraining,
    TokenTraining,
)


@dataclass(frozen=True)
class Preset:
    """Everything that the experiments on one set of images share.

    Attributes:
        data: the images and their tokenizer.
        sizes: named sizes that stand for the paper's B, L and XL.
        training: settings of every training, of `TokenTraining`.
        features, reference, reference_split: of the metrics, as for `ctf evaluate samples`; other images in place of
            emoji or photographs are their own reference.
        num_samples: images of a sample set.
        seeds: of the experiments that are repeated; the others take the first.
        table_sizes: the paper's sizes that Tables 1 and 2 compare; Fig. 3 shows the last one.
        support: of stage 2 in the paper's tables and figures; "full" is the paper's softmax over all tokens.
        passes: over the images, after which weights are kept, as far as a training has so many; without any, after the
            shares of it that the paper's Fig. 2 shows.
        pace: of the machine that plans are for; None is this machine.
    """

    data: Data
    sizes: dict[str, str]
    training: dict[str, Any]
    features: str
    reference: str
    reference_split: str | None
    num_samples: int
    seeds: tuple[int, ...]
    table_sizes: tuple[str, ...] = ("B", "L")
    support: Literal["cluster", "full"] = "cluster"
    passes: tuple[float, ...] = ()
    pace: Pace | None = None

    def changed(
        self,
        images: str | None = None,
        tokenizer: str | None = None,
        reference: str | None = None,
        seeds: tuple[int, ...] | None = None,
        steps: int | None = None,
        num_samples: int | None = None,
    ) -> Preset:
        """With what is not None in place of the preset's own. Raises InputError: no images, or impossible settings."""
        data = replace(self.data, images=images or self.data.images)
        if tokenizer is not None:
            data = replace(data, tokenizer=tokenizer, architecture=None)
        if not data.images:
            raise InputError("this preset's images do not come with ctf: name their folder with --images")
        loop, optimizer = self.training["loop"], self.training["optimizer"]
        if steps is not None:
            loop = replace(loop, steps=steps)
            optimizer = replace(optimizer, warmup_steps=min(optimizer.warmup_steps, steps // 2))
        if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
            raise InputError(f"seeds {list(seeds)}: give one or more different ones")
        if num_samples is not None and num_samples < 2:
            raise InputError(f"num_samples {num_samples}: a distance needs at least 2 images")
        return replace(
            self,
            data=data,
            training=self.training | {"loop": loop, "optimizer": optimizer},
            reference=reference or (data.images if self.reference in ("", self.data.images) else self.reference),
            reference_split=None if reference and is_stored(reference) else self.reference_split,
            seeds=seeds or self.seeds,
            num_samples=num_samples or self.num_samples,
        )

    def measured(self) -> Preset:
        """With the numbers of its images and tokens as they are. Raises InputError: they cannot be opened."""
        data, size = self.data, self.data.image_size
        train, test = (open_images(data.images, split, size) for split in (data.train_split, data.test_split))
        tokenizer = open_tokenizer(data.tokenizer)
        facts: dict[str, Any] = {
            "layout": tokenizer.layout((size, size)),
            "codebook_size": tokenizer.codebook_size,
            "num_classes": len(train.class_names),
            "num_images": len(train),
            "num_held_out": len(test),
        }
        return replace(self, data=replace(data, **facts))


#: Two CPU cores in an evening. The sizes stand for B, L and XL.
EMOJI = Preset(
    data=Data("emoji", "train", "test", 64, "emoji", "flip", None, Layout.square(8), 54, 8_367, 786),
    sizes={"B": "nano", "L": "micro", "XL": "mini"},
    training={
        "dropout": 0.0,
        "optimizer": OptimizerConfig(3e-3, 3e-5, warmup_steps=50),
        "loop": LoopConfig(16, steps=2_000, ema=0.99, log_every=100, evaluate_every=0, checkpoint_every=200),
    },
    features="emoji",
    reference="emoji",
    reference_split="train",
    num_samples=2_048,
    seeds=(0, 1, 2),
)

#: The paper's settings (section 5.1), and its rates of sampling (Table 2).
IMAGENET = Preset(
    data=Data(
        images="imagenet",
        train_split="train",
        test_split="val",
        image_size=256,
        tokenizer="vq_ds16_c2i.pt",
        augmentation="ten-crop",
        architecture="vq16",
        layout=Layout.square(16),
        num_classes=1_000,
        num_images=1_281_167,
        num_held_out=50_000,
    ),
    sizes={"B": "B", "L": "L", "XL": "XL"},
    training={
        "dropout": 0.1,
        "optimizer": OptimizerConfig(),
        "loop": LoopConfig(256, epochs=300),
    },
    features="inception",
    reference="VIRTUAL_imagenet256_labeled.npz",
    reference_split=None,
    num_samples=50_000,
    seeds=(0,),
    table_sizes=("B", "L", "XL"),
    support="full",
    pace=Pace(
        "A100",
        UTILISATION * GPUS["A100"].bfloat16,
        {
            ("B", "baseline"): 13.75,
            ("B", "coarse-to-fine"): 12.83,
            ("L", "baseline"): 7.50,
            ("L", "coarse-to-fine"): 8.71,
            ("XL", "baseline"): 5.32,
            ("XL", "coarse-to-fine"): 6.26,
        },
    ),
)

#: Photographs on two CPU cores: Tiny ImageNet's official folder, which `--images` names, in six passes;
#: `--steps 6250` is two of them. Metrics are those of EfficientNet's features.
TINY_IMAGENET = Preset(
    data=Data("", "train", "val", 64, "photos", "flip", None, Layout.square(16), 200, 100_000, 10_000),
    sizes={"B": "micro", "L": "mini", "XL": "S"},
    training={
        "dropout": 0.0,
        "optimizer": OptimizerConfig(3e-3, 3e-5, warmup_steps=200),
        "loop": LoopConfig(32, epochs=6, ema=0.999, log_every=100, evaluate_every=0, checkpoint_every=200),
    },
    features="efficientnet",
    reference="",
    reference_split="train",
    num_samples=10_000,
    seeds=(0, 1),
    passes=(1 / 2, 1, 2, 4),
)

PRESETS = {"emoji": EMOJI, "imagenet": IMAGENET, "tiny-imagenet": TINY_IMAGENET}

#: Shares of a training after which its weights are kept, for Fig. 2: the paper's 50 to 250 of 300 epochs.
MILESTONES = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6)

#: The paper's sampling: guidance 2.0, all tokens, temperature 1.1 in both stages (section 5.1, Table 3).
CFG, TEMPERATURE = 2.0, 1.1


@dataclass(frozen=True)
class Lab:
    """The systems of one seed.

    Attributes:
        preset: what they are trained on and how.
        seed: of their trainings; clusters have the seed 0.
    """

    preset: Preset
    seed: int

    def clusters(self, num_clusters: int = 512, **settings: Any) -> Clusters:
        return Clusters(self.preset.data, num_clusters, **settings)

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.preset.data, "train")

    @property
    def held_out(self) -> Tokens:
        return Tokens(self.preset.data, "test")

    def milestones(self) -> tuple[int, ...]:
        """Steps after which every training keeps its weights, before its last one."""
        loop, num_images = self.preset.training["loop"], self.preset.data.num_images
        last = loop.total_steps(num_images)
        wanted = [passes * num_images / loop.batch_size for passes in self.preset.passes]
        shares = [share * last for share in MILESTONES]
        steps = (max(1, round(step)) for step in [step for step in wanted if step < last] or shares)
        return tuple(dict.fromkeys(step for step in steps if step < last))

    def train(self, kind_of: type[TokenTraining], size: str, maps: dict[str, Clusters], **settings: Any) -> Training:
        loop = replace(self.preset.training["loop"], seed=self.seed, milestones=self.milestones())
        shared = self.preset.training | {"loop": loop, "out": "", "tokens": "", "size": self.preset.sizes[size]}
        return Training(kind_of(**shared | settings), self.tokens, self.held_out, tuple(maps.items()))

    def baseline(self, size: str = "B", **settings: Any) -> Training:
        return self.train(BaselineTraining, size, {}, **settings)

    def iar(self) -> Training:
        """The baseline with IAR's loss, λ = 1, on balanced clusters."""
        maps = {"coarse_map": self.clusters(method="balanced")}
        return self.train(BaselineTraining, "B", maps, cluster_loss_weight=1.0, coarse_map="map")

    def coarse(self, size: str = "B", clusters: Clusters | None = None, **settings: Any) -> Training:
        return self.train(CoarseTraining, size, {"coarse_map": clusters or self.clusters()}, **settings)

    def fine(self, size: str = "B", clusters: Clusters | None = None, **settings: Any) -> Training:
        return self.train(FineTraining, size, {"coarse_map": clusters or self.clusters()}, **settings)

    def paper_fine(self, size: str = "L", clusters: Clusters | None = None) -> Training:
        """Stage 2 of the paper's tables and figures, with the support that the preset gives it there."""
        return self.fine(size, clusters, support=self.preset.support)

    def middle(self, given: Clusters, predicts: Clusters) -> Training:
        maps = {"given": given, "predicts": predicts}
        return self.train(StageTraining, "B", maps, name="middle", kind="masked")

    def system(self, *stages: Training, **sampling: Any) -> System:
        """Stages that sample at the paper's settings, temperature 1.1 in all of them, with `sampling` instead."""
        settings = {"cfg_scale": CFG, "temperature": TEMPERATURE}
        settings |= {f"{training.task.name}_temperature": TEMPERATURE for training in stages[1:]}
        return System(tuple(Weights(training) for training in stages)).sampling(**settings | sampling)
