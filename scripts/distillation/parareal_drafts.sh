#!/usr/bin/env bash
# Distils drafts for parareal and for corrected proposals in several ways, compares them on validation windows, and writes
# docs/results/parareal_drafts.csv and the table made of it. Started again, it goes on where it stopped.
# FLAGS, all optional (python -m scripts.results.parareal_drafts --help explains): --only etth1 --table
arguments="[FLAGS]"
about="Environment: DATASET_ROOT, folder of the data (./dataset); CHECKPOINTS, folder of the models (./checkpoints), which
are in its folder seed_2021; PYTHON, VENV and BASE_PYTHON as for every script."
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.results.parareal_drafts "$@"
