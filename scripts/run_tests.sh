#!/usr/bin/env bash
# Sets up the environment and runs all tests, slow ones included; arguments go to pytest (a -m among them wins).
arguments="[PYTEST ARGUMENTS]"
. "$(dirname "$0")/environment.sh"
install requirements-dev.txt
exec "$python" -m pytest -m "slow or not slow" "$@"
