#!/usr/bin/env bash
# Runs all tests on the oldest supported versions (requirements-oldest.txt), in a separate environment, .venv-oldest;
# arguments go to pytest.
arguments="[PYTEST ARGUMENTS]"
unset PYTHON  # has other versions
VENV=$(cd "$(dirname "$0")/.." && pwd)/.venv-oldest
requirements=requirements-oldest.txt
# not all of these versions have wheels for newer Pythons
for BASE_PYTHON in ${BASE_PYTHON:-python3.10 python3.11 python3}; do
  "$BASE_PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null && break
  BASE_PYTHON=
done
case " $* " in *" -h "*|*" --help "*) BASE_PYTHON=python3 ;; esac  # environment.sh shows the usage
[ -n "$BASE_PYTHON" ] || { echo "error: Python 3.10 or 3.11 is needed" >&2; exit 2; }
. "$(dirname "$0")/environment.sh"
exec "$python" -m pytest -m "slow or not slow" -n auto "$@"
