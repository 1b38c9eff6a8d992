#!/usr/bin/env bash
# Trains the target, then tests it alone, rolled out over every horizon of the settings.
default_settings=etth1_window
. "$(dirname "$0")/../../common.sh"
train_target
for horizon in $horizons; do test_target --test_pred_len "$horizon"; done
