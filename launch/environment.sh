#!/usr/bin/env bash
# Creates or updates the Python environment: ./launch/environment.sh [EXTRA ...]
#
#   PYTHON  interpreter; default: the first usable one of python3, python3.13, python3.12, python3.11
#   VENV    folder of the environment; default: .venv in the repository
#
# The other scripts source this file and call `environment`.
set -euo pipefail

unset CDPATH  # with CDPATH `cd` may change to another folder and print it
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$REPOSITORY/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV

# Succeeds if $1 runs, is Python 3.11 to 3.13 and has venv (a pyenv shim may not run).
python_fits() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1 </dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if python_fits "$candidate"; then
      echo "$candidate"
      return
    fi
    # Do not replace the user's choice.
    if [[ $candidate == "${PYTHON:-}" ]]; then
      echo "error: PYTHON=$PYTHON: must be a working Python 3.11, 3.12 or 3.13 with venv" >&2
      exit 2
    fi
  done
  echo 'error: no Python 3.11, 3.12 or 3.13 with venv on PATH: install one, or set PYTHON=/path/to/python' >&2
  exit 2
}

# environment [EXTRA ...]: installs the package, these extras and their dependencies into $VENV.
environment() {
  local python stamp extra missing=() start=$SECONDS
  if ! "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
    python=$(find_python) || exit
    echo "creating $VENV with $("$python" --version)" >&2
    "$python" -m venv "$VENV"
  elif ! python_fits "$VENV/bin/python"; then
    echo "error: VENV=$VENV: must be Python 3.11, 3.12 or 3.13; remove it or set VENV to another folder" >&2
    exit 2
  fi

  # A stamp for the package and for each extra records the repository and the setup.py it was installed for.
  stamp="$REPOSITORY $(cksum <"$REPOSITORY/setup.py")"
  for extra in package "$@"; do
    if [[ $(cat "$VENV/.lightpaff_jax-$extra" 2>/dev/null) != "$stamp" ]]; then
      missing+=("$extra")
    fi
  done
  if ((${#missing[@]} == 0)); then
    return
  fi

  local extras
  extras=$(IFS=, && echo "$*")
  echo "installing lightpaff_jax${extras:+[$extras]} into $VENV (minutes the first time)" >&2
  "$VENV/bin/python" -m pip install -qq --disable-pip-version-check \
    --editable "$REPOSITORY${extras:+[$extras]}" >&2
  for extra in "${missing[@]}"; do
    echo "$stamp" >"$VENV/.lightpaff_jax-$extra"
  done
  echo "installed in $((SECONDS - start)) s" >&2
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  environment "$@"
fi
