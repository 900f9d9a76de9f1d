#!/usr/bin/env bash
# Compares memory and speed of the loss with dense autodiff: ./launch/benchmark_loss.sh [--tokens=N] [--out=FILE] ...
# The default, 8192 tokens, needs about 16 GB of memory; --pairs=0 only reads the planned memory.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
extras=()
[[ "$*" != *--topology* ]] || extras=(tpu)
environment ${extras[@]+"${extras[@]}"}
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/loss.py" "$@"
