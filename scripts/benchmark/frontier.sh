#!/usr/bin/env bash
# What closeness to the target costs: passes and milliseconds of every rule at many settings against the deviation from
# the target alone, for means and for sampled paths; a csv and a picture. Trains the pairs that are missing. Started
# again, it goes on where it stopped. Keep the machine idle: times are measured.
# FLAGS, all optional (python -m scripts.benchmark.frontier --help explains): --out FILE.csv --only pool --horizons 720
arguments="[FLAGS]"
about="Environment: DATASET_ROOT, folder of the data (./dataset); CHECKPOINTS, folder of the models (./checkpoints), which
are in its folder seed_2021; PYTHON, VENV and BASE_PYTHON as for every script."
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.frontier "$@"
