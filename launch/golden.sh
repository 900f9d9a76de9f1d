#!/usr/bin/env bash
# Prints digests of the parameters and losses of the tiny recipes: ./launch/golden.sh [FOLDER] > golden.txt
# Two commits that print the same lines, on one machine, compute the same bits. Takes minutes on 2 cores.
# The runs stay in FOLDER; by default they are removed.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
folder=${1:-}
if [[ -z $folder ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"
cd "$folder"
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
export JAX_PLATFORMS=cpu
unset XLA_FLAGS
for config in gpt2_stage1.py:tiny bert_stage1.py:tiny mass_stage1.py:tiny; do
  "$VENV/bin/python" -m lightpaff_jax.main --config="$REPOSITORY/configs/$config" >&2
done
"$VENV/bin/python" -m lightpaff_jax.recipe --config="$REPOSITORY/configs/quickstart.py:ci" >&2
"$VENV/bin/python" "$REPOSITORY/benchmarks/golden.py" runs
