#!/usr/bin/env bash
# The stochastic draft by itself, without a target.
. "$(dirname "$0")/../../common.sh"
for horizon in $horizons; do test_draft "$draft_name" --test_pred_len "$horizon"; done
