# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by bootstrap.sh and tools.sh, which have `die`: the interpreter to make an environment with.

# An interpreter counts only if it runs (a version manager's shim may not), is a version this
# project supports, and can make virtual environments.
usable() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

find_python() {
  local name path
  if [[ -n ${PYTHON:-} ]]; then
    usable "$PYTHON" || die "PYTHON=$PYTHON is no working Python 3.11, 3.12 or 3.13 with venv"
    echo "$PYTHON"
    return
  fi
  for name in python3.12 python3.11 python3.13 python3; do
    while read -r path; do
      if usable "$path"; then
        echo "$path"
        return
      fi
    done < <(type -aP "$name" || true)
  done
  die "no working Python 3.11, 3.12 or 3.13 with the venv module found; name one with PYTHON=..."
}
