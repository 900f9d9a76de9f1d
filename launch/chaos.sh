#!/usr/bin/env bash
# Tries to break runs, piece by piece: ./launch/chaos.sh PIECE [--folder=DIR] [--seed=N] [--count=N]; more: --help
# Run it again to resume. Paths are relative to the working folder.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment test
export PYTHONPATH=$REPOSITORY:$REPOSITORY/tests${PYTHONPATH:+:$PYTHONPATH}
export JAX_PLATFORMS=cpu
unset XLA_FLAGS
exec "$VENV/bin/python" -m chaos "$@"
