#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Creates the virtual environment of a checkout. Safe to run again: when nothing that matters has
# changed it returns at once. What needs the model of the tests fetches it.
#
#   VENV=.venv        where the environment goes
#   PYTHON=python3.12 which interpreter to build it with (default: the best one found)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=${VENV:-.venv}
CONSTRAINTS=requirements/constraints.txt
PIP_PIN=26.3
NEED_GB=12
# One clock for `make demo`, this script and what they call: seconds of /proc/uptime.
now() { cut -d. -f1 /proc/uptime; }
export LONGFLOW_CLOCK=${LONGFLOW_CLOCK:-$(now)}
SIGN_OF_LIFE_S=10

say() { printf '[%4ds] %s\n' "$(($(now) - ${LONGFLOW_CLOCK%%.*}))" "$*"; }
die() {
  printf 'bootstrap: %s\n' "$*" >&2
  exit 1
}

source scripts/find_python.sh

# "3.12.1 /usr": the same for an interpreter and for the environments made with it.
base_of() {
  "$1" -c 'import platform, sys; print(platform.python_version(), sys.base_prefix)'
}

PIP_LOG=$(mktemp)
trap 'rm -f "$PIP_LOG"' EXIT

# What `alive installing` adds: ": Downloading torch-2.14.1-... (532.0 MB)". pip unpacks without a word.
installing_now() {
  local last
  last=$(grep -E '^ *(Collecting|Downloading|Using cached|Installing) ' "$PIP_LOG" | tail -n 1) || return 0
  read -r last <<<"$last"
  case $last in
    Installing*) echo ": unpacking, $(du -sh "$VENV" 2>/dev/null | cut -f1) on disk" ;;
    *) echo ": ${last:0:80}" ;;
  esac
}

# What `alive compiling` adds. SGLang 0.5.23 and what it imports leave 7,849 files.
compiling_now() {
  printf ': %d of about 7,800 files' "$(find "$VENV/lib" -name '*.pyc' | wc -l)"
}

# alive WHAT COMMAND...: runs the command and says from time to time that WHAT goes on.
alive() {
  local what=$1 heartbeat status=0
  shift
  (
    while sleep "$SIGN_OF_LIFE_S" >/dev/null && kill -0 "$$"; do
      say "  ... still $what$("${what}_now")"
    done
  ) 2>/dev/null &
  heartbeat=$!
  "$@" || status=$?
  kill "$heartbeat" 2>/dev/null || true
  wait "$heartbeat" 2>/dev/null || true
  : >"$PIP_LOG"
  return "$status"
}

pip_install() {
  PYTHONWARNINGS=ignore "$VENV/bin/python" -m pip install "$@" \
    2> >(grep --line-buffered -vE 'Location .* is ignored' >&2)
}

pip_into_log() {
  pip_install --progress-bar off "$@" >"$PIP_LOG"
}

# pip with its noise about unused index folders removed from stderr. stdout is left alone (a
# terminal keeps its progress bars) and the exit status is pip's.
pip_run() {
  if [[ -t 1 ]]; then
    pip_install --no-compile "$@"
  else
    alive installing pip_into_log --no-compile "$@"
  fi
}

# Every start of a server imports SGLang in three processes: 16 s with bytecode, 44 s without.
compile_imports() {
  env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -W ignore -c '
import sglang.srt.entrypoints.http_server
import sglang.srt.managers.detokenizer_manager
import sglang.srt.managers.scheduler
import sglang.srt.models.registry
' >/dev/null 2>&1
}

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
STAMP=$VENV/.longflow-stamp
KEY=$({
  printf '%s\n' "$ROOT" "${PYTHON:-}" "$PIP_PIN"
  cat "$CONSTRAINTS" pyproject.toml
} | sha256sum | cut -d' ' -f1)

if [[ -f $STAMP && $(<"$STAMP") == "$KEY" && -x $VENV/bin/python && -x $VENV/bin/longflow ]]; then
  exit 0
fi

[[ $(uname -sm) == "Linux x86_64" ]] || die "SGLang's wheels are for Linux x86_64, this is $(uname -sm)"

# An interrupted installation is continued; an environment of another Python is made anew.
python=''
if ! { [[ -x $VENV/bin/python ]] && usable "$VENV/bin/python"; }; then
  python=$(find_python)
elif [[ -n ${PYTHON:-} ]]; then
  python=$(find_python)
  if [[ $(base_of "$python") == "$(base_of "$VENV/bin/python")" ]]; then python=''; fi
fi
if [[ -n $python ]]; then
  if [[ -e $VENV && ! -f $VENV/pyvenv.cfg && -n $(ls -A "$VENV") ]]; then
    die "$VENV exists and is no virtual environment; remove it or choose another VENV"
  fi
  mkdir -p "$VENV"
  free_gb=$(($(df -Pk "$VENV" | awk 'NR == 2 { print $4 }') / 1048576))
  ((free_gb >= NEED_GB)) || die "$NEED_GB GB of free disk needed for $VENV, only $free_gb GB left"
  say "creating $VENV with Python $(base_of "$python" | cut -d' ' -f1) ($python)"
  "$python" -m venv --clear "$VENV"
fi
rm -f "$STAMP"

say "installing SGLang, PyTorch and the tools: about 5 minutes and 9 GB the first time"
pip_run -c "$CONSTRAINTS" "pip==$PIP_PIN" setuptools || die "pip could not be set up, see above"
# SGLang 0.5.23 pins outlines_core 0.1.26, which has no wheel for Python 3.13: pip builds it.
if "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))'; then
  command -v cargo >/dev/null ||
    die "SGLang 0.5.23 on Python 3.13 needs Rust (cargo), for outlines_core; or set PYTHON=python3.12"
  pip_run -c "$CONSTRAINTS" outlines_core || die "outlines_core could not be built, see above"
fi
# No build isolation: the pinned setuptools builds the project, nothing else is fetched.
pip_run --no-build-isolation -c "$CONSTRAINTS" -e '.[dev,demo,eval]' ||
  die "installing the packages failed, see above; run the same command again to go on"
say "packages installed; compiling what a server imports to bytecode: about a minute"
alive compiling compile_imports ||
  die "SGLang was installed but does not import; see: $VENV/bin/longflow doctor"

echo "$KEY" >"$STAMP"
say "environment ready in $VENV"
