#!/usr/bin/env bash
# Measures every data set: trains the models that are missing, compares every method at every horizon, and writes
# docs/results/every_data_set.csv and the tables made of it. Hours on two CPU cores; started again, it goes on where it
# stopped. Keep the machine idle: times are measured.
# FLAGS, all optional (python -m scripts.results.measure --help explains): --only etth1,pool --seeds 1 --table
arguments="[FLAGS]"
about="Environment: DATASET_ROOT, folder of the data (./dataset); CHECKPOINTS, folder of the models (./checkpoints), which
are in its folders seed_2021, seed_2022, ...; PYTHON, VENV and BASE_PYTHON as for every script."
. "$(dirname "$0")/environment.sh"
exec "$python" -m scripts.results.measure "$@"
