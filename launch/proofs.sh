#!/usr/bin/env bash
# The tests marked slow: ./launch/proofs.sh [PYTEST ARGUMENT ...]
# On Linux with the compiler for TPUs, which some of them ask.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ $(uname -sm) == 'Linux x86_64' ]]; then
  environment test tpu
fi
exec "$(dirname "${BASH_SOURCE[0]}")/test.sh" -m slow "$@"
