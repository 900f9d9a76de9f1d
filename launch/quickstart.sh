#!/usr/bin/env bash
# Trains a teacher, a student and its baselines on this machine: ./launch/quickstart.sh [PRESET] [--config.KEY=VALUE ...]
# Run it again to resume. Paths are relative to the repository.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
cd "$REPOSITORY"

config=configs/quickstart.py
if [[ $# -gt 0 && $1 != -* ]]; then
  config+=":${1#:}"
  shift
fi
exec "$VENV/bin/python" -m lightpaff_jax.recipe --config="$config" "$@"
