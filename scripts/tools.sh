#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tools of the deployment tests: validators, Prometheus, a browser, the router. None of them is
# needed to run the product. Safe to run again: returns at once when nothing changed.
#
#   TOOLS=.tools               where they go
#   PYTHON=python3.12          the interpreter of their environment (default: the best one found)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
TOOLS=${TOOLS:-.tools}
PYTHON_REQUIREMENTS=requirements/tools.txt
NODE_REQUIREMENTS=requirements/tools-npm.txt
# Commands, and the Debian packages that have them.
declare -A DEBIAN=([promtool]=prometheus [chromium]=chromium [tini]=tini [mmdebstrap]=mmdebstrap)

say() { printf 'tools: %s\n' "$*"; }
die() {
  printf 'tools: %s\n' "$*" >&2
  exit 1
}

packages=()
for command in "${!DEBIAN[@]}"; do
  command -v "$command" >/dev/null || packages+=("${DEBIAN[$command]}")
done
if ((${#packages[@]})); then
  ((EUID == 0)) || die "missing: ${packages[*]}; install them (apt-get install ${packages[*]})"
  say "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update >/dev/null
  apt-get -qq install -y --no-install-recommends "${packages[@]}" >/dev/null
fi
for command in node npm kubectl; do
  command -v "$command" >/dev/null || die "$command is not on PATH"
done

KEY=$(cat "$PYTHON_REQUIREMENTS" "$NODE_REQUIREMENTS" | sha256sum | cut -d' ' -f1)
if [[ -f $TOOLS/stamp && $(<"$TOOLS/stamp") == "$KEY" ]]; then exit 0; fi

source scripts/find_python.sh
PYTHON=$(find_python)
say "creating $TOOLS with $PYTHON"
mkdir -p "$TOOLS"
rm -f "$TOOLS/stamp"
"$PYTHON" -m venv --clear "$TOOLS/venv"
"$TOOLS/venv/bin/python" -m pip install -q --disable-pip-version-check -r "$PYTHON_REQUIREMENTS"
mapfile -t modules < <(grep -vE '^(#|$)' "$NODE_REQUIREMENTS")
npm install --silent --no-audit --no-fund --no-save --prefix "$TOOLS/node" "${modules[@]}"
echo "$KEY" >"$TOOLS/stamp"
say "ready in $TOOLS"
