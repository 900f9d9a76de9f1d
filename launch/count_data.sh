#!/usr/bin/env bash
# Compares the counts of the datasets in a folder with known ones: ./launch/count_data.sh DATA
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/data_counts.py" "$@"
