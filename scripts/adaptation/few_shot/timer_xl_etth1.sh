#!/usr/bin/env bash
# Few-shot adaptation: fine-tunes the pretrained target on 5 % of the training windows of ETTh1 (evenly spread), and tests
# it at every horizon. adapted_file=PATH: another file or folder below DATASET_ROOT; PRETRAINED=FILE: other weights.
default_settings=pool
. "$(dirname "$0")/../../common.sh"
adapted=${adapted_file:-ETT-small/ETTh1.csv}
adapt few_shot "$adapted" --subset_rand_ratio 0.05
each "$adapted" -- run_test --test_dir "forecast_${model_id}_timer_xl_few_shot_0"
