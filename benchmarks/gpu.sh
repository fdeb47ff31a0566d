#!/bin/bash
# `make gpu` on a bare machine with a GPU, from a checkout; from_source.sh says what the machine needs.
#
#     OUT=/tmp/out WHEELS=.whl benchmarks/gpu.sh              # under ten minutes on an H200; ends with a table
#     OUT=/tmp/out WHEELS=.whl benchmarks/gpu.sh rehearse     # every part at a tiny size, on a CPU
#
# The tests need pytest, pytest-xdist and hypothesis too. Where little may be carried over, leave out docs/ and
# tests/golden/: 38 of 71 MiB are left.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-$PWD/benchmarks/gpu}
source benchmarks/from_source.sh
python3 benchmarks/gpu.py "$@"
