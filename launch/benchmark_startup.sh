#!/usr/bin/env bash
# Measures the seconds from a command to its first update: ./launch/benchmark_startup.sh [--config=FILE[:PRESET]] [--pairs=K] [--out=FILE]
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
exec "$VENV/bin/python" "$REPOSITORY/benchmarks/startup.py" "$@"
