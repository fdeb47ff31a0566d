"""What `ctf fit` trains over each family of tokenizers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ctf.tokenizer.config import TOKENIZER_PRESETS, TokenizerConfig

#: Codewords for so many vectors of the training images.
VECTORS_PER_CODEWORD = 16


@dataclass(frozen=True)
class Recipe:
    """What is trained over a family of tokenizers.

    Attributes:
        kinds: type of each stage.
        sampling: settings of all stages but those that are given labels, beside guidance.
        architecture: settings of a tokenizer to train that differ from those of the family vq.
        patch_size: of that tokenizer, for images of at most 64 pixels.
        codewords_per_position: of it at most, for each position of its finest grid.
        tokens_per_cluster: on average.
    """

    kinds: dict[str, str]
    sampling: dict[str, Any]
    architecture: dict[str, Any]
    patch_size: int
    codewords_per_position: int
    tokens_per_cluster: int


#: By family; of others the tokenizer is given, and their stages are those of vq.
RECIPES = {
    "vq": Recipe(
        kinds={"coarse": "autoregressive", "fine": "masked", "baseline": "autoregressive"},
        sampling={},
        architecture={},
        patch_size=2,  # 16 × 16 tokens of 64 pixels; 8 × 8 turn photographs to fog
        codewords_per_position=256,
        tokens_per_cluster=32,  # the paper: 16,384 in 512
    ),
    "multi-scale": Recipe(
        kinds=dict.fromkeys(("coarse", "fine", "baseline"), "next_scale"),
        sampling={"cfg_schedule": "steps"},
        architecture={"codebook_dim": 32, "z_channels": 32, "l2_normalize": False},
        patch_size=4,  # up to 8 × 8 of 64 pixels: 155 tokens an image, where up to 16 × 16 are 680
        codewords_per_position=16,  # VAR: 4,096 for 16 × 16; 1,024 for 8 × 8 were used to 88 % (benchmarks/var.md)
        tokens_per_cluster=8,  # as in benchmarks/var.md
    ),
}


def tokenizer_to_train(recipe: Recipe, image_size: int, count: int, on_gpu: bool) -> TokenizerConfig:
    """A tokenizer that the device can train, with as many codewords as the images can fill."""
    if image_size <= 64:
        chosen = TokenizerConfig(64, (1, 2), 1, 2, z_channels=64, patch_size=recipe.patch_size)
    elif on_gpu:
        chosen = TOKENIZER_PRESETS["vq16"]
    else:
        chosen = TokenizerConfig(64, (1, 2, 2), 1, 2, z_channels=64, patch_size=4)
    chosen = replace(chosen, **recipe.architecture)
    positions = max(1, image_size // chosen.downsampling) ** 2
    filled = 2 ** math.floor(math.log2(max(64, count * positions / VECTORS_PER_CODEWORD)))
    return replace(chosen, codebook_size=min(16_384, recipe.codewords_per_position * positions, filled))
