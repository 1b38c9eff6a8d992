#!/usr/bin/env bash
# Full-shot adaptation: fine-tunes the pretrained target on all training windows of ETTh1, and tests it at every horizon.
# adapted_file=PATH: another file or folder below DATASET_ROOT; PRETRAINED=FILE: other weights.
default_settings=pool
. "$(dirname "$0")/../../common.sh"
adapted=${adapted_file:-ETT-small/ETTh1.csv}
adapt full_shot "$adapted"
each "$adapted" -- run_test --test_dir "forecast_${model_id}_timer_xl_full_shot_0"
