#!/usr/bin/env bash
# Runs ruff and mypy in the pinned versions, or only the one that is named.
arguments="[ruff|mypy]"
. "$(dirname "$0")/environment.sh"
install requirements-dev.txt
case ${1:-both} in
  ruff) "$python" -m ruff check . ;;
  mypy) "$python" -m mypy ;;
  both) "$python" -m ruff check . && "$python" -m mypy ;;
  *) fail "expected ruff, mypy or no argument, not '$1'" ;;
esac
