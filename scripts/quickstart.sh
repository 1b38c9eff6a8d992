#!/usr/bin/env bash
# From nothing to the table: environment, data, target, draft, comparison at the last horizon of the settings (720).
. "$(dirname "$0")/common.sh"
horizon=${horizons##* }
echo "== 1/3 training the target"
train_target
echo "== 2/3 distilling the draft"
distil "$draft_name"
echo "== 3/3 comparing at horizon $horizon"
with_draft "$draft_name" --compare ${comparing[@]+"${comparing[@]}"} --test_pred_len "$horizon" --visualize
