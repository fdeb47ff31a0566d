# Sourced by gpu.sh and photographs_gpu.sh in the root of a checkout: the machine's own Python runs its source. Nothing
# is installed there, and no network is needed.
#
# It needs Python 3.10 or newer with PyTorch, and beside what most machines with a GPU have (numpy, safetensors,
# accelerate, lazy-loader, scikit-learn, pillow, matplotlib, …) jsonargparse. $WHEELS is a folder of wheels of what is
# missing, fetched elsewhere:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#       jsonargparse==4.53.0 docstring_parser==0.18.0 typeshed_client==2.14.0
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH=$work/site:$PWD/src${PYTHONPATH:+:$PYTHONPATH}
if [ -n "${WHEELS:-}" ]; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl
fi
