#!/usr/bin/env bash
# Speed of generation against transformers: ./launch/benchmark_decoding.sh [--pairs=K] [--only=gpt2|bart] [--out=FILE] ...
# Needs the extra `compare`; some 10 minutes of 2 cores, 4 GB of memory.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment compare
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/decoding.py" "$@"
