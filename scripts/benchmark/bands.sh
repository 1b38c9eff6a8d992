#!/usr/bin/env bash
# How the bands of sampled paths hold at every lead: coverage by patch on validation windows and on test windows, and the
# CRPS, for paths that are all equally wide or not, as sampled and widened with the lead. Trains the targets that are
# missing. Started again, it goes on where it stopped.
# FLAGS, all optional (python -m scripts.benchmark.bands --help explains): --out FILE.csv --only pool --horizon 720
arguments="[FLAGS]"
about="Environment: DATASET_ROOT, folder of the data (./dataset); CHECKPOINTS, folder of the models (./checkpoints), which
are in its folder seed_2021; PYTHON, VENV and BASE_PYTHON as for every script."
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.bands "$@"
