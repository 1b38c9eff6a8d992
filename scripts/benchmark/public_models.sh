#!/usr/bin/env bash
# Times the forecast of public models (Timer, TimesFM) on this machine: their own way, speculative, and the limit. Random
# weights, forced acceptance. Keep the machine idle.
# FLAGS, all optional (python -m scripts.benchmark.public_models --help explains): --out FILE.csv --models timer,timesfm
# --contexts 672,2880 --horizons 720,1440 --batches 1 --budget_s 15 --quiet
arguments="[FLAGS]"
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.public_models "$@"
