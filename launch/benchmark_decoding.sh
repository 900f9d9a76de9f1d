#!/usr/bin/env bash
# Compares the speed of generation with transformers: ./launch/benchmark_decoding.sh [--pairs=K] [--only=gpt2|bart] [--out=FILE] ...
# Needs the extra `compare`; about 10 minutes on 2 cores, 4 GB of memory.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment compare
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/decoding.py" "$@"
