#!/usr/bin/env bash
# Runs N processes on this machine as N hosts: ./launch/local.sh N COMMAND [ARGUMENT ...]; more: --help
set -euo pipefail
# Run by its path, because it needs only the standard library and no installed package.
exec "${PYTHON:-python3}" -I "$(dirname "${BASH_SOURCE[0]}")/../lightpaff_jax/local.py" "$@"
