#!/usr/bin/env bash
# Reproduces the paper's table for a family: ./launch/reproduce.sh bert|gpt2|mass paper|small|tiny WORKDIR [DATA] [--config.KEY=VALUE ...]
# DATA is a folder with the layout of docs/reproduce.md. The scales tiny and ci (tiny, shortened) need none.
# Run it again to resume.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [[ ! ${1:-} =~ ^(bert|gpt2|mass)$ ]]; then
  echo "usage: reproduce.sh bert|gpt2|mass paper|small|tiny WORKDIR [DATA] [--config.KEY=VALUE ...]" >&2
  exit 2
fi
usage="usage: reproduce_$1.sh paper|small|tiny WORKDIR [DATA] [--config.KEY=VALUE ...]"
if [[ $# -lt 3 || ! $2 =~ ^(paper|small|tiny|ci)$ || $3 == -* ]]; then
  echo "$usage" >&2
  exit 2
fi
family=$1 scale=$2 workdir=$3
shift 3
data=()
if [[ $# -gt 0 && $1 != -* ]]; then
  data=(--config.recipe.data="${1%/}")
  shift
elif [[ $scale != tiny && $scale != ci ]]; then
  echo "error: DATA: must be a folder with the datasets of $family, laid out as in docs/reproduce.md; $usage" >&2
  exit 2
fi
environment
config=$REPOSITORY/configs/$family.py
export PYTHONPATH=$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}
if [[ $scale != paper ]]; then
  config+=":$scale"
fi
exec "$VENV/bin/python" -m lightpaff_jax.recipe --config="$config" --config.workdir="$workdir" ${data[@]+"${data[@]}"} "$@"
