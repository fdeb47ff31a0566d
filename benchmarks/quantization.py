"""What bfloat16 and int8 weights change: logits, likelihood, and samples by the emoji metric.

    python benchmarks/quantization.py

The embedded model. Logits: both stages on the 786 test images' tokens, against float32. Samples: `--num` images of
balanced classes with equal seeds, by the Fréchet distance in emoji features to the training images.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from ctf.evaluation.features import open_features
from ctf.evaluation.metrics import frechet_distance
from ctf.images import open_images
from ctf.images.pixels import to_tensor
from ctf.models import ClusterMembers, member_logits
from ctf.pipeline import Pipeline
from ctf.sampling import PackedTransformer

WAYS = {"float32": ("float32", None), "bfloat16": ("bfloat16", None), "int8": ("float32", "int8")}


@torch.inference_mode()
def log_probabilities(pipeline: Pipeline, fine: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """log P of every next coarse label (B, N, M), and of every member of each position's cluster (B, N, S)."""
    coarse = pipeline.coarse_map.to_coarse(fine)
    how = (getattr(torch, pipeline.dtype), pipeline.quantize)
    stage1, stage2 = (PackedTransformer(model, 64 * 64, *how) for model in (pipeline.coarse, pipeline.fine))
    members = ClusterMembers.of(pipeline.coarse_map)
    parts: list[list[torch.Tensor]] = [[], []]
    for c, y in zip(coarse.split(64), labels.split(64), strict=True):
        parts[0].append(stage1.logits(stage1.hidden(c, y)).log_softmax(-1))
        parts[1].append(member_logits(stage2.hidden(c, y), stage2.head_weight, c, members).log_softmax(-1))
    return [torch.cat(part) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1728)
    num = parser.parse_args().num
    pipeline, extractor = Pipeline.from_pretrained("emoji"), open_features("emoji")
    batches = [(images, labels) for _, images, labels in open_images("emoji", "test", 64).batches(64)]
    labels = torch.cat([torch.as_tensor(y) for _, y in batches])
    tokens = torch.cat([pipeline.tokenizer.encode(to_tensor(images)) for images, _ in batches])
    training = np.concatenate([extractor(x).pool for _, x, _ in open_images("emoji", "train", 64).batches(64)])
    test = np.concatenate([extractor(x).pool for x, _ in batches])

    exact = log_probabilities(pipeline, tokens, labels)
    classes = [i % len(pipeline.class_names) for i in range(num)]
    print("| weights | stage | KL to float32, bits | same most probable | images equal | distance |")
    print("|---|---|---|---|---|---|")
    first: list[np.ndarray] = []
    for way, how in WAYS.items():
        pipeline.compute_in(*how)
        images = list(pipeline.generate(classes, seed=0))
        first = first or images
        distance = frechet_distance(np.concatenate([extractor(batch).pool for batch in images]), training)
        equal = (np.concatenate(images) == np.concatenate(first)).all((1, 2, 3)).mean()
        for stage, here, there in zip(("1", "2"), log_probabilities(pipeline, tokens, labels), exact, strict=True):
            kl = F.kl_div(here.clamp_min(-1e4), there.clamp_min(-1e4), reduction="none", log_target=True).sum(-1)
            same = (here.argmax(-1) == there.argmax(-1)).float().mean()
            samples = [f"{equal:.1%}", f"{distance:.3f}"] if stage == "1" else ["", ""]
            cells = [way, stage, f"{kl.mean() / np.log(2):.1e}", f"{same:.1%}", *samples]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nDistance of the 786 test images to the training images: {frechet_distance(test, training):.3f}")


if __name__ == "__main__":
    main()
