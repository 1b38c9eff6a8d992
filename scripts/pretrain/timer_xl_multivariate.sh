#!/usr/bin/env bash
# Pretrains the target of OpenLTM's script of this name on one file, all of whose variables are forecast together, and
# tests it at every horizon.
default_settings=multivariate
. "$(dirname "$0")/../common.sh"
train_target
for horizon in $horizons; do test_target --test_pred_len "$horizon"; done
