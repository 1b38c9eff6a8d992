#!/usr/bin/env bash
# Pretrains the target of OpenLTM's script of this name on a folder of npy files (UTSD), distils its draft, and compares
# both on the test parts of all files at the longest horizon.
default_settings=utsd
. "$(dirname "$0")/../common.sh"
train_target
distil "$draft_name"
with_draft "$draft_name" --compare --test_pred_len "${horizons##* }"
