#!/usr/bin/env bash
# Sets itself up and runs all tests, the slow ones too; arguments go to pytest (a -m among them wins).
. "$(dirname "$0")/environment.sh"
install requirements-dev.txt
exec "$python" -m pytest -m "slow or not slow" "$@"
