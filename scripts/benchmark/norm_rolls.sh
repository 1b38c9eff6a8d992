#!/usr/bin/env bash
# Rolls a Timer in the three ways of --norm_roll and draws how they differ: csv and picture. Without --test_dir a small
# Timer is trained on ETTh1 first, where it is missing (a minute).
# FLAGS, all optional (python -m scripts.benchmark.norm_rolls --help explains): --out FILE.png, and those of run.py
arguments="[FLAGS]"
. "$(dirname "$0")/../environment.sh"
exec "$python" -m scripts.benchmark.norm_rolls "$@"
