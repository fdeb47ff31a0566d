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
from ctf.model_folder import Pipeline
from ctf.models import Compute

WAYS = {"float32": Compute("float32"), "bfloat16": Compute("bfloat16"), "int8": Compute("float32", "int8")}


@torch.inference_mode()
def log_probabilities(pipeline: Pipeline, tokens: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Of each stage: log P of everything that each position can be (B, N, V)."""
    return [
        torch.cat([stage.logits(t, y).log_softmax(-1) for t, y in zip(tokens.split(64), labels.split(64), strict=True)])
        for stage in pipeline.packed()
    ]


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
    for way, compute in WAYS.items():
        pipeline.compute_in(compute)
        images = list(pipeline.generate(classes, seed=0))
        first = first or images
        distance = frechet_distance(np.concatenate([extractor(batch).pool for batch in images]), training)
        equal = (np.concatenate(images) == np.concatenate(first)).all((1, 2, 3)).mean()
        samples = [f"{equal:.1%}", f"{distance:.3f}"]
        rows = zip(pipeline.stages, log_probabilities(pipeline, tokens, labels), exact, strict=True)
        for stage, here, there in rows:
            kl = F.kl_div(here.clamp_min(-1e4), there.clamp_min(-1e4), reduction="none", log_target=True).sum(-1)
            same = (here.argmax(-1) == there.argmax(-1)).float().mean()
            cells = [way, stage.name, f"{kl.mean() / np.log(2):.1e}", f"{same:.1%}", *samples]
            print(f"| {' | '.join(cells)} |", flush=True)
            samples = ["", ""]
    print(f"\nDistance of the 786 test images to the training images: {frechet_distance(test, training):.3f}")


if __name__ == "__main__":
    main()
