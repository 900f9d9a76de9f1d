#!/usr/bin/env bash
# Preparing a text file against `datasets`, end to end: ./launch/benchmark_prepare.sh --text=FILE --tokenizer=PATH [--workers=K] ...
# It needs the package `datasets`: "$VENV/bin/pip" install datasets
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/prepare.py" "$@"
