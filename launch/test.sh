#!/usr/bin/env bash
# Runs the tests, without those marked slow or e2e, in two processes: ./launch/test.sh [PYTEST ARGUMENT ...]
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment test
cd "$REPOSITORY"
exec "$VENV/bin/python" -m pytest --numprocesses=2 --dist=worksteal "$@"
