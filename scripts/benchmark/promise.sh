#!/usr/bin/env bash
# How often a promise of --spec_rms is broken, and what it costs: every setting is measured once on windows of the test
# part, then audited 1000 times, with another draw of windows each time; a csv, and the table of the guide. Trains the
# pairs that are missing. Started again, it goes on where it stopped. No times are measured.
# FLAGS, all optional (python -m scripts.benchmark.promise --help explains): --out FILE.csv --only pool
arguments="[FLAGS]"
about="Environment: DATASET_ROOT, folder of the data (./dataset); CHECKPOINTS, folder of the models (./checkpoints), which
are in its folder seed_2021; PYTHON, VENV and BASE_PYTHON as for every script."
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.promise "$@"
