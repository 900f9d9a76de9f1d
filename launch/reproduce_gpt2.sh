#!/usr/bin/env bash
# Reproduces the paper's table for GPT-2: ./launch/reproduce_gpt2.sh paper|small|tiny WORKDIR [DATA] [--config.KEY=VALUE ...]
# Run it again to resume.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" gpt2 "$@"
