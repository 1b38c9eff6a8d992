#!/usr/bin/env bash
# Times decoding over a grid of sizes. Random weights, imposed acceptance. Keep the machine idle.
# FLAGS, all optional (python -m scripts.benchmark.decode_speed --help explains): --cells deep:672:720:1,...
# --out FILE.csv --acceptance 0.97 --budget_s 20 --quiet
arguments="[FLAGS]"
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.decode_speed "$@"
