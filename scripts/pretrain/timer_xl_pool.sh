#!/usr/bin/env bash
# Pretrains a target on the files of a pool, distils its draft, and tests both: on the whole pool, then file by file at
# every horizon of the settings.
default_settings=pool
. "$(dirname "$0")/../common.sh"
train_target
distil "$draft_name"
with_draft "$draft_name" --compare --test_pred_len "${horizons##* }"
each "${files[@]}" -- test_target
