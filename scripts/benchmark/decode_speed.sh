#!/usr/bin/env bash
# Times decoding over a grid of sizes, see `--help`. Random weights, imposed acceptance. Keep the machine idle.
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.decode_speed "$@"
