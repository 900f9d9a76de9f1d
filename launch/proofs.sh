#!/usr/bin/env bash
# Runs the tests marked slow: ./launch/proofs.sh [PYTEST ARGUMENT ...]
# On x86-64 Linux some of them use the TPU compiler.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ $(uname -sm) == 'Linux x86_64' ]]; then
  environment test tpu
fi
exec "$(dirname "${BASH_SOURCE[0]}")/test.sh" -m slow "$@"
