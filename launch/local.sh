#!/usr/bin/env bash
# N processes on this machine as N hosts: ./launch/local.sh N COMMAND [ARGUMENT ...]; more: --help
set -euo pipefail
# By its path: it needs the standard library alone, and nothing has to be installed.
exec "${PYTHON:-python3}" -I "$(dirname "${BASH_SOURCE[0]}")/../lightpaff_jax/local.py" "$@"
