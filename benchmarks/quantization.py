"""What bfloat16 and int8 weights change: logits, and samples by the emoji metric.

    python benchmarks/quantization.py [--seed 0]

The bundled model. Logits: both stages on the tokens of the 725 test images of its classes, against float32. Samples:
one with the label of each test image and equal seeds, by the Fréchet distance in emoji features to the training images.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.evaluation.extraction import extract
from ctf.evaluation.features import open_features
from ctf.evaluation.metrics import frechet_distance
from ctf.evaluation.reference import open_reference
from ctf.images import open_images
from ctf.images.pixels import to_tensor
from ctf.model_folder import Pipeline
from ctf.models import Compute
from ctf.reporting.tables import table_head, table_row
from ctf.stages import Stage

WAYS = {"float32": Compute("float32"), "bfloat16": Compute("bfloat16"), "int8": Compute("float32", "int8")}


@torch.inference_mode()
def compare(stage: Stage, exact: Stage, tokens: Tensor, labels: Tensor) -> tuple[float, float]:
    """KL divergence to `exact` in bits, and share of equal most probable labels: means over positions."""
    kl, same = [], []
    for t, y in zip(tokens.split(64), labels.split(64), strict=True):
        here, there = (each.logits(t, y).log_softmax(-1).clamp_min(-1e4) for each in (stage, exact))  # no inf - inf
        kl.append(F.kl_div(here, there, reduction="none", log_target=True).sum(-1))
        same.append(here.argmax(-1) == there.argmax(-1))
    return float(torch.cat(kl).mean() / np.log(2)), float(torch.cat(same).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    seed = parser.parse_args().seed
    pipeline, exact = Pipeline.from_pretrained("emoji", "cpu"), Pipeline.from_pretrained("emoji", "cpu")
    extractor, test = open_features("emoji"), open_images("emoji-subgroups-by-design", "test", 64)
    class_of = [pipeline.label_index(name) for name in test.class_names]  # refuses a class that the model does not have
    batches = [(images, labels) for _, images, labels in test.batches(64)]
    labels = torch.tensor([class_of[label] for _, y in batches for label in y])
    tokens = torch.cat([pipeline.tokenizer.encode(to_tensor(images)) for images, _ in batches])
    reference = open_reference("emoji", extractor, "train").extracted.statistics

    columns = [f"{stage.name}: {what}" for stage in pipeline.stages for what in ("KL, bits", "same most probable")]
    print(*table_head(["weights", *columns, "equal samples", "distance"]), sep="\n")
    first: list[np.ndarray] = []
    for way, compute in WAYS.items():
        pipeline.compute_in(compute)
        cells = [way]
        for stages in zip(pipeline.packed(), exact.packed(), strict=True):
            kl, same = compare(*stages, tokens, labels)
            cells += [f"{kl:.1e}", f"{same:.1%}"]
        samples = list(pipeline.generate(labels.tolist(), seed=seed))
        first = first or samples
        found = extract(extractor, samples, len(labels), progress=False).statistics
        equal = (np.concatenate(samples) == np.concatenate(first)).all((1, 2, 3)).mean()
        cells += [f"{equal:.1%}", f"{frechet_distance(reference, found):.3f}"]
        print(table_row(cells), flush=True)
    real = extract(extractor, (images for images, _ in batches), len(labels), progress=False).statistics
    print(f"\nThe {len(labels)} test images: {frechet_distance(reference, real):.3f}")


if __name__ == "__main__":
    main()
