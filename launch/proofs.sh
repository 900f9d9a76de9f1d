#!/usr/bin/env bash
# The tests marked slow: ./launch/proofs.sh [PYTEST ARGUMENT ...]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/test.sh" -m slow "$@"
