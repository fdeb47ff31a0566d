#!/bin/bash
# Coarse-to-fine beside a baseline on photographs, from stored tokens alone, for whoever has a GPU for ten minutes.
#
#     ctf tokenize --tokenizer photos --images tiny-imagenet-200 --split train --augmentation none --out tokens/train
#     ctf tokenize --tokenizer photos --images tiny-imagenet-200 --split val --augmentation none --out tokens/val
#     OUT=/tmp/out WHEELS=.whl benchmarks/photographs_gpu.sh tokens/train tokens/val 540             # seconds in all
#     OUT=/tmp/out WHEELS=.whl benchmarks/photographs_gpu.sh tokens/train tokens/val 240 rehearse    # on a CPU
#
# Measured first: the time of a training step of each size. The largest size with which all three stages see the images
# at least $PASSES times is trained, all three for the same number of steps. $OUT, an empty folder, gets README.md, which
# says what is in it; no file is larger than 16 MB. Where a part fails or is out of time the script ends with an error,
# and what came before it is in $OUT. Nothing is resumed.
#
# The tokens of 100,000 images take 51 MB. Where little may be carried over, leave out docs/, tests/,
# src/ctf/assets/emoji*, and the stages in src/ctf/assets/photos/: 10 MB are left.
set -euo pipefail
train=$(realpath "$1") held_out=$(realpath "$2") total=$3 mode=${4:-}
cd "$(dirname "$0")/.."
export OUT=${OUT:-$PWD/benchmarks/photographs_gpu}
if [ "$mode" = rehearse ]; then
  device=cpu sizes=nano batch=4 passes=1 samples=4 measured=16
else # weights of coarse-to-fine in float16: B 370 MB, S 101 MB, mini 43 MB
  device=cuda sizes=${SIZES:-B S mini} batch=256 passes=${PASSES:-3} samples=512 measured=2000
fi
mkdir -p "$OUT"
if [ -n "$(ls -A "$OUT")" ]; then
  echo "$OUT is not empty: choose another OUT" >&2
  exit 2
fi
source benchmarks/from_source.sh

# part NAME SECONDS MODULE ARGUMENTS…: run a part, but not beyond the end of the time.
part() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  limit=$((limit < total - start ? limit : total - start))
  echo "$name: at most $limit s" | tee -a "$OUT/log.txt" >&2
  timeout --kill-after 5 "$((limit > 0 ? limit : 1))" python3 "$@" >>"$OUT/log.txt" 2>&1 || status=$?
  echo "{\"seconds\": $((SECONDS - start)), \"limit\": $limit, \"status\": $status}" | record "$name"
  if [ $status != 0 ]; then # 124 is out of time
    tail -n 5 "$OUT/log.txt" >&2
    echo "$name failed with status $status after $((SECONDS - start)) s: see $OUT/log.txt" >&2
    exit 1
  fi
}
# record NAME: add the objects of standard input, one a line, to the metrics.
record() { sed "s/^{/{\"part\": \"$1\", /" >>"$OUT/metrics.jsonl"; }
flat() { tr -d '\n' <"$1" && echo; }

cat >"$OUT/README.md" <<'MARKDOWN'
# Coarse-to-fine and a baseline on photographs

- `metrics.jsonl`: objects with a `part`: seconds of each part; `rate`, steps of each size; `size`, what was chosen; `coarse`, `fine` and `baseline`,
  their logs with bits per token on held-out tokens after each quarter; `likelihood`, exact bits per token of both systems at the end, in float32.
- `samples.npz`: `ctf` and `baseline`, tokens uint16 (n, 256) of both systems, and `labels`; image i has the seed i.
- `ctf.tar.*` and `baseline.tar.*`: model folders with weights in float16, in pieces. `cat ctf.tar.* | tar x` joins them;
  `ctf sample --model ctf --out samples` samples.
- `log.txt`: what all parts printed.
MARKDOWN
ctf="-m ctf.cli" helper=benchmarks/photographs_gpu.py maps=$work/map.safetensors
part tokens 60 $helper held_out "$held_out" "$work/held-out" $measured
part clusters 60 $ctf cluster --codebook photos --out "$maps"
part rate $((total / 4)) $ctf bench training --device $device --sizes $sizes --stages baseline coarse fine-cluster \
  --batch_size $batch --steps 3 --out "$work/rate.json"
flat "$work/rate.json" | record rate
# Two fifths of what is left are for the steps; the rest for beginnings, evaluations, and compiling what samples.
part size 60 $helper choose "$work/rate.json" "$train" $(((total - SECONDS) * 2 / 5)) $passes "$work/size.json"
flat "$work/size.json" | record size
read -r size steps baseline coarse fine < <(python3 -c "import json; print(*json.load(open('$work/size.json')).values())")

# stage NAME SECONDS ARGUMENTS…
stage() {
  local name=$1 limit=$2
  shift 2
  part "train $name" "$limit" $ctf train "$name" --tokens "$train" --held_out "$work/held-out" --out "$work/$name" \
    --size "$size" --dropout 0 --sampling.temperature 1 --optimizer.learning_rate 1e-3 \
    --optimizer.warmup_steps $((steps / 20)) --loop.device $device --loop.batch_size $batch --loop.steps "$steps" \
    --loop.ema 0.999 --loop.log_every $((steps / 40 + 1)) --loop.evaluate_every $((steps / 4 + 1)) \
    --loop.checkpoint_every 0 "$@"
  record "$name" <"$work/$name/log.jsonl"
}
# model NAME STAGES…
model() {
  local name=$1
  shift
  part "assemble $name" 60 $ctf assemble --tokenizer photos --tokens "$train" --half --out "$work/$name" --stages "$@"
  tar -C "$work" -c "$name" | split -b 16MB -d - "$OUT/$name.tar."
}
stage coarse "$coarse" --coarse_map "$maps"
stage fine "$fine" --coarse_map "$maps"
model ctf "$work/coarse" "$work/fine"
stage baseline "$baseline"
mv "$work/baseline" "$work/baseline-run"
model baseline "$work/baseline-run"
part likelihood $((total / 4)) $ctf evaluate likelihood --device $device --model "$work/ctf" --against "$work/baseline" \
  --tokens "$work/held-out" --out "$work/likelihood"
flat "$work/likelihood/result.json" | record likelihood
part samples $((total / 4)) $helper samples "$OUT/samples.npz" $samples $device "$work/ctf" "$work/baseline"
echo "$OUT: done in $SECONDS s"
