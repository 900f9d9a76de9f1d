#!/usr/bin/env bash
# Compares preparing a text file with the package `datasets`, end to end: ./launch/benchmark_prepare.sh --text=FILE --tokenizer=PATH [--workers=K] ...
# Needs the package `datasets`: "$VENV/bin/pip" install datasets
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/prepare.py" "$@"
