#!/usr/bin/env bash
# Runs every test and fails if fewer than $1 ran: a suite that silently collects nothing must not pass.
set -euo pipefail
cd "$(dirname "$0")/.."
# One thread a process: on two cores, two test processes with two threads each are slower than with one.
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
report=$(mktemp)
trap 'rm -f "$report"' EXIT
.venv/bin/python -m pytest -n 2 --dist loadgroup --junit-xml="$report" --quiet
ran=$(.venv/bin/python - "$report" <<'PYTHON'
import sys
import xml.etree.ElementTree as ElementTree

suites = ElementTree.parse(sys.argv[1]).getroot().iter("testsuite")
print(sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites))
PYTHON
)
echo "$ran tests ran, at least $1 expected"
if [ "$ran" -lt "$1" ]; then
  echo "Too few tests ran: $ran, expected at least $1. Look for skipped or uncollected tests." >&2
  exit 1
fi
