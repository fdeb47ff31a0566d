#!/bin/bash
# `make gpu` on a bare machine with a GPU, from a checkout: nothing is installed into its Python, no network is needed.
#
#     OUT=/tmp/out WHEELS=.whl benchmarks/gpu.sh              # under ten minutes on an H200; ends with a table
#     OUT=/tmp/out WHEELS=.whl benchmarks/gpu.sh rehearse     # every part at a tiny size, on a CPU
#
# It needs Python 3.10 or newer with PyTorch, and beside what most such machines have (numpy, safetensors, accelerate,
# scikit-learn, pillow, pytest, pytest-xdist, hypothesis, …) jsonargparse. $WHEELS is a folder of wheels of what is
# missing, fetched elsewhere:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#       jsonargparse==4.53.0 docstring_parser==0.18.0 typeshed_client==2.14.0
#
# Where little may be carried over, leave out docs/ and tests/golden/: 38 of 71 MiB are left.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-$PWD/benchmarks/gpu} PYTHONUNBUFFERED=1
site=$(mktemp -d)
trap 'rm -r "$site"' EXIT
if [ -n "${WHEELS:-}" ]; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
# What an installation would say of itself: reports name the version.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
mkdir "$site/ctf-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: ctf\nVersion: %s\n' "$version" >"$site/ctf-$version.dist-info/METADATA"
export PYTHONPATH=$site:$PWD/src${PYTHONPATH:+:$PYTHONPATH}
python3 benchmarks/gpu.py "$@"
