#!/usr/bin/env bash
# What upft_mlx does on the machine at hand, as one table: bash perf/on_gpu.sh [--small] [--out TABLE.md]
#
# For a Mac with Apple silicon or an NVIDIA GPU with MLX's CUDA backend: about 10 minutes at most, from a checkout. It
# makes .venv where there is none, on an NVIDIA machine with MLX's CUDA backend (a driver for CUDA 13). --small runs the
# same in about two minutes on the CPU, to see that it works.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
if [ ! -x $python ]; then
    python3 -m venv .venv
    .venv/bin/pip install -q -e .
    if command -v nvidia-smi >/dev/null; then
        .venv/bin/pip uninstall -q -y mlx-cpu # its library has the same path
        .venv/bin/pip install -q 'mlx[cuda13]'
    fi
fi
exec $python perf/on_gpu.py "$@"
