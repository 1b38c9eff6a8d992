#!/usr/bin/env bash
# Zero-shot: pretrains target and draft on a pool without some files, then tests both on those files at every horizon.
default_settings=pool_zeroshot
. "$(dirname "$0")/../common.sh"
[ -n "$unseen_files" ] || fail "scripts/settings/$settings.sh sets no unseen_files=: name the files to test on"
train_target
distil "$draft_name"
each $unseen_files -- with_draft "$draft_name" --compare
