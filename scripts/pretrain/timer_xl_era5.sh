#!/usr/bin/env bash
# Pretrains the target of OpenLTM's script of this name on one npy file of many stations, each a series by itself, and
# tests it at every horizon.
default_settings=era5
. "$(dirname "$0")/../common.sh"
train_target
for horizon in $horizons; do test_target --test_pred_len "$horizon"; done
