#!/usr/bin/env bash
# Sets itself up and runs the tests; arguments go to pytest.
. "$(dirname "$0")/environment.sh"
install requirements-dev.txt
exec "$python" -m pytest "$@"
