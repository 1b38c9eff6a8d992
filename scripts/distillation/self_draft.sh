#!/usr/bin/env bash
# Trains longer heads for the target of the settings etth1, compares them as its draft with the distilled one, on validation
# windows, and writes docs/results/self_draft.csv and the table made of it. Started again, it goes on where it stopped.
# FLAGS, all optional (python -m scripts.results.self_draft --help explains): --times --table
arguments="[FLAGS]"
about="Environment: DATASET_ROOT, folder of the data (./dataset); CHECKPOINTS, folder of the models (./checkpoints), which
are in its folder seed_2021; PYTHON, VENV and BASE_PYTHON as for every script."
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.results.self_draft "$@"
