#!/usr/bin/env bash
# What upft_mlx does on the machine at hand, as one table: bash perf/on_gpu.sh [--small] [--out TABLE.md]
#
# For a Mac with Apple silicon or an NVIDIA GPU with MLX's CUDA backend: about 10 minutes at most, from a checkout. It
# makes .venv where there is none. --small runs the same in about two minutes on the CPU, to see that it works.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
if [ ! -x $python ]; then
    python3 -m venv .venv
    .venv/bin/pip install -q -e .
fi
exec $python perf/on_gpu.py "$@"
