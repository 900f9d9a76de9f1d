#!/usr/bin/env bash
# Fetches pre-trained teachers into teachers/: ./launch/teachers.sh [NAME | HUB_ID ...] [--out=DIR]; more: --help
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
cd "$REPOSITORY"
exec "$VENV/bin/python" -m lightpaff_jax.fetch "$@"
