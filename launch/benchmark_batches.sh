#!/usr/bin/env bash
# Measures batches on the host, in tokens/s, waiting time and memory: ./launch/benchmark_batches.sh [--pairs=N] [--epochs=N] [--out=FILE]
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/batches.py" "$@"
