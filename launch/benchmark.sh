#!/usr/bin/env bash
# Compares the speed of the training step with PyTorch and the device's limit: ./launch/benchmark.sh [--pairs=K] [--only=ours,...] [--out=FILE] ...
# Needs the extra `compare`, and a C++ compiler for torch.compile.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment compare
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch shares the GPU
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/step.py" "$@"
