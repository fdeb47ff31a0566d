#!/usr/bin/env bash
# Measure the bundled tokenizer, model and features: tokenizer.md, emoji_model.md, emoji_features.md, and in sampling.md
# what bfloat16 and int8 change. Token sets, samples and pictures go to runs/bundled.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/bundled images=emoji-subgroups-by-design

ctf evaluate tokenizer --splits '[test,train]'
ctf evaluate swap --num_clusters '[512,128]' --out $out/swap.png
ctf evaluate swap --model emoji --num_clusters '[512,128]' --out $out/swap-generated.png

ctf tokenize --images $images --split test --augmentation none --out $out/tokens/test
ctf evaluate likelihood --tokens $out/tokens/test
python scripts/measure_emoji_model.py --settings '{}' '{"cfg_scale": 1, "top_p": 1, "fine_temperature": 1}' \
  '{"cfg_scale": 2, "fine_temperature": 0.7}' '{"fine_temperature": 0.2}' '{"fine_temperature": 0.5}' \
  '{"fine_temperature": 0.7, "fine_cfg_scale": 1.5}' '{"top_p": 0.9, "fine_temperature": 0.7}' \
  '{"temperature": 1.1, "top_p": 1, "fine_temperature": 0.7}' '{"cfg_scale": 3, "fine_temperature": 0.7}' \
  '{"cfg_scale": 3, "fine_temperature": 0.85}' '{"cfg_scale": 3, "temperature": 0.95, "fine_temperature": 0.5}'
python scripts/measure_emoji_model.py --seed 1000
ctf sample --num 864 --label_policy balanced --out $out/samples
ctf evaluate neighbours --samples $out/samples --reference $images --split train \
  --held_out $images --held_out_split test --features emoji --out $out/neighbours
python benchmarks/quantization.py
python benchmarks/quantization.py --seed 1000
python benchmarks/emoji_features.py
