#!/usr/bin/env bash
# Sets up the environment and runs all tests, slow ones included, in a process per core; arguments go to pytest (a -m or
# -n among them wins).
arguments="[PYTEST ARGUMENTS]"
. "$(dirname "$0")/environment.sh"
install requirements-dev.txt
exec "$python" -m pytest -m "slow or not slow" -n auto "$@"
