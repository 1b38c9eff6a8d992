#!/usr/bin/env bash
# Times decoding over a grid of sizes: see `--help`. Random weights, set acceptance. Leave the machine alone meanwhile.
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.decode_speed "$@"
