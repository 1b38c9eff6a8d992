#!/usr/bin/env bash
# Times every way to decode on this device, in float32 and with bf16 weights, with and without CUDA graphs; one csv. About
# three minutes on a GPU. Keep the machine idle.
# FLAGS, all optional (python -m scripts.benchmark.gpu_grid --help explains): --out FILE.csv
# --pair TARGET,DRAFT --data FILE.csv --cells preset:672:720:1,... --budget_s 2
arguments="[FLAGS]"
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.gpu_grid "$@"
