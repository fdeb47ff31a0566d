"""Train the classifier whose features measure emoji models, src/ctf/assets/emoji_features.safetensors.

    OMP_NUM_THREADS=1 python scripts/train_emoji_features.py --out src/ctf/assets/emoji_features.safetensors \
        --log benchmarks/logs/emoji-features.jsonl

54 classes (design and category) of the bundled emoji's training split. The weights of the last epoch are written, in
float16; the test split is measured after every epoch but decides nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.evaluation.features.emoji import KIND, EmojiNet, EmojiNetConfig
from ctf.files import save_module, write_text
from ctf.images import open_images, to_tensor

BATCH = 32
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 2e-3, 0.05, 200  # WARMUP in steps
LABEL_SMOOTHING = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the safetensors file to write")
    parser.add_argument("--log", help="a JSON line per epoch goes here")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = read("train")
    network = EmojiNet(EmojiNetConfig()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = args.epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    lines = []
    for epoch in range(1, args.epochs + 1):
        network.train()
        losses = []
        for batch in torch.randperm(len(images), generator=generator).split(BATCH)[: len(images) // BATCH]:
            inputs = augment(images[batch], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(inputs)[1]
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        line = {"epoch": epoch, "loss": round(float(np.mean(losses)), 4), **accuracies(network, "test")}
        lines.append(line | {"cpu_seconds": round(time.process_time())})
        print(json.dumps(lines[-1]), flush=True)
        if args.log:
            write_text(args.log, "".join(json.dumps(line) + "\n" for line in lines))
    save_module(args.out, network, KIND, network.config, dtype=torch.float16)
    print(f"{args.out}: {sum(p.numel() for p in network.parameters()):,} parameters")


def read(split: str) -> tuple[Tensor, Tensor]:
    """All images of a split in [-1, 1], float32 (n, 3, 64, 64), and their labels, int64 (n,)."""
    source = open_images("emoji", split, 64)
    return to_tensor(np.stack([source.read(i) for i in range(len(source))])), torch.from_numpy(source.labels)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, shift all by up to 4 pixels, scale half by up to 10 %, vary their colours a little."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(images), *shape, generator=generator) * 2 - 1

    # Whole pixels and only half of them scaled, so that the network keeps seeing images that were never resampled.
    scale = 1 + 0.1 * uniform() * (uniform() > 0)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = scale * uniform().sign()
    theta[:, 1, 1] = scale
    theta[:, :, 2] = (4 * uniform(2)).round() / 32
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return (moved * (1 + 0.04 * uniform(3, 1, 1)) + 0.04 * uniform(3, 1, 1)).clamp(-1, 1)


@torch.inference_mode()
def accuracies(network: EmojiNet, split: str) -> dict[str, float]:
    """Accuracy of the class, of the design (label // 9) and of the category (label % 9)."""
    images, labels = read(split)
    network.eval()
    found = torch.cat([network(batch)[1].argmax(dim=1) for batch in images.split(256)])
    hits = {"class": found == labels, "design": found // 9 == labels // 9, "category": found % 9 == labels % 9}
    return {f"{split}_{name}_accuracy": round(hit.float().mean().item(), 4) for name, hit in hits.items()}


if __name__ == "__main__":
    main()
