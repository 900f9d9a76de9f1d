#!/usr/bin/env bash
# Compiles training steps for TPU slices, without a TPU: ./launch/preflight_all.sh ci|all FOLDER [--quick]
# Writes a JSON file per step into FOLDER. `ci` compiles one small step per family; `all` takes half an
# hour on 2 cores. If a step does not fit, the others still run, and the exit code is 1.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ $# -lt 2 || ! $1 =~ ^(ci|all)$ || $2 == -* ]]; then
  echo 'usage: preflight_all.sh ci|all FOLDER [--quick]' >&2
  exit 2
fi
which=$1 folder=$2
shift 2
environment tpu
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$folder"

# compile_step NAME CHIP:SHAPE CONFIG [--config.KEY=VALUE ...]
compile_step() {
  local name=$1 topology=$2 config=$3
  shift 3
  printf '\n=== %s: %s %s %s\n' "$name" "$topology" "$config" "$*"
  local arguments=() quick=() argument
  # The command accepts a switch only once.
  for argument in "$@"; do
    if [[ $argument == --quick ]]; then quick=(--quick); else arguments+=("$argument"); fi
  done
  "$VENV/bin/python" -m lightpaff_jax.preflight --topology="$topology" \
    --config="$REPOSITORY/configs/$config" --out="$folder/$name.json" ${quick[@]+"${quick[@]}"} ${arguments[@]+"${arguments[@]}"} ||
    failed=$?
}
failed=0

if [[ $which == ci ]]; then
  for family in gpt2 bert mass; do
    deep=()
    [[ $family != mass ]] || deep=(--config.teacher.decoder_layers=2)
    compile_step "$family" v5e:2x2 "${family}_stage1.py:tiny" --quick --config.data.length=128 --config.teacher.path= \
      --config.teacher.layers=2 --config.teacher.heads=2 --config.teacher.ffn=512 ${deep[@]+"${deep[@]}"} \
      --config.student.width=64 --config.student.heads=1 "$@"
  done
  exit "$failed"
fi

big=(--config.teacher.path= --config.teacher.layers=32 --config.teacher.width=4096 --config.teacher.heads=32 --config.teacher.ffn=16384)
for family in gpt2 bert mass; do
  compile_step "$family-v5e-2x2" v5e:2x2 "${family}_stage1.py" --config.data.batch_size=1024 "$@"
  for topology in v4:2x2x1 v5p:2x2x1 v6e:2x2; do
    compile_step "$family-${topology/:/-}" "$topology" "${family}_stage1.py" --config.data.batch_size=256 --quick "$@"
  done
done
compile_step gpt2-v5e-2x2-none v5e:2x2 gpt2_stage1.py --config.train.remat=none --config.data.batch_size=192 "$@"
compile_step gpt2-v5e-2x2-dots v5e:2x2 gpt2_stage1.py --config.train.remat=dots --config.data.batch_size=192 "$@"
compile_step gpt2-v5e-16x16-data v5e:16x16 gpt2_stage1.py --config.data.batch_size=4096 --config.eval.batch_size=256 --quick "$@"
compile_step gpt2-v5e-16x16-fsdp v5e:16x16 gpt2_stage1.py --config.data.batch_size=4096 --config.eval.batch_size=256 --config.mesh.fsdp=16 --quick "$@"
compile_step gpt2-v5e-4x4-6.7b v5e:4x4 gpt2_stage1.py "${big[@]}" --config.data.batch_size=128 --config.mesh.fsdp=16 --quick "$@"
exit "$failed"
