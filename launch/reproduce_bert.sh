#!/usr/bin/env bash
# Reproduces the paper's table for BERT: ./launch/reproduce_bert.sh paper|small|tiny WORKDIR [DATA] [--config.KEY=VALUE ...]
# Run it again to resume.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" bert "$@"
