#!/usr/bin/env bash
# The stochastic draft alone, without a target.
default_settings=etth1_window
. "$(dirname "$0")/../../common.sh"
for horizon in $horizons; do test_draft "$draft_name" --test_pred_len "$horizon"; done
