#!/usr/bin/env bash
# Rebuild the bundled model "emoji" from the bundled images: about four hours on two CPU cores.
# Figures: benchmarks/tokenizer.md and benchmarks/emoji_model.md.
set -euo pipefail
cd "$(dirname "$0")/.."
assets=src/ctf/assets/emoji
ctf train tokenizer --config configs/emoji-tokenizer.yaml
ctf convert half --source runs/emoji-tokenizer --out $assets/tokenizer.safetensors
ctf evaluate tokenizer --splits '[test,train]'
ctf tokenize --images emoji-subgroups-by-design --split train --augmentation ten-shift --out runs/emoji-tokens/train
ctf tokenize --images emoji-subgroups-by-design --split test --augmentation none --out runs/emoji-tokens/test
ctf cluster --out runs/emoji-map.safetensors
ctf train coarse --config configs/emoji-coarse.yaml
ctf train fine --config configs/emoji-fine.yaml
ctf assemble --tokenizer emoji --stages '[runs/emoji-coarse, runs/emoji-fine]' --tokens runs/emoji-tokens/train --half \
  --out runs/emoji-model
cp runs/emoji-model/* $assets
ctf evaluate likelihood --tokens runs/emoji-tokens/test
python - <<'PYTHON'
from ctf.model_card import About
from ctf.model_folder import complete_card

metrics = {"bits_per_token": 8.663, "distance_in_emoji_features": 3.22}  # benchmarks/emoji_model.md
data = (
    "emoji-subgroups-by-design, train: 7,922 images of 483 classes, 10 stored views of each; images may resemble them, see "
    "ATTRIBUTION.md for their licences"
)
complete_card("src/ctf/assets/emoji", About(data, "apache-2.0", metrics))
PYTHON
