#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Opens an issue with the title and report of scripts/nightly.py, or renews the one that is open.
#
#   scripts/nightly_issue.sh TITLE_FILE REPORT_FILE     needs gh, and GH_TOKEN
#
# An empty title: there is nothing to tell.
set -euo pipefail

TITLE=$(<"$1")
export TITLE
[[ -n $TITLE ]] || exit 0
body=$(mktemp)
trap 'rm -f "$body"' EXIT
head -c 60000 "$2" >"$body" # GitHub takes 65,536 characters

number=$(gh issue list --state open --limit 200 --json number,title \
  --jq 'map(select(.title == env.TITLE))[0].number // empty')
if [[ -n $number ]]; then
  gh issue edit "$number" --body-file "$body"
else
  gh issue create --title "$TITLE" --body-file "$body"
fi
