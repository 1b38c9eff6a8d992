#!/usr/bin/env bash
# Sampled paths and their scores: the target alone with four laws at every horizon, then the law-preserving rules at
# H = 336 (or at the last horizon of settings without it). `bands`: widths and growth as the validation part chooses.
# Faster: --test_windows 50.
. "$(dirname "$0")/../../common.sh"
paths=(--num_samples 40 --test_windows "${sampled_windows:-100}")
declare -A laws=([fixed]="--spec_sigma 0.25" [diag]="--spec_sigma_mode calibrated --spec_width one --spec_growth none"
                 [full]="--spec_sigma_mode calibrated --spec_covariance full --spec_width one --spec_growth none"
                 [bands]="--spec_sigma_mode calibrated")
for horizon in $horizons; do
  for law in fixed diag full bands; do
    test_target --test_pred_len "$horizon" --des "$law" "${paths[@]}" ${laws[$law]}
  done
done
for rule in coupling exact; do
  for law in fixed diag full bands; do
    with_draft "$draft_name" --test_pred_len "$published_horizon" --use_speculative --spec_accept_rule $rule \
      --des "by_${draft_name}_$law" "${paths[@]}" ${laws[$law]}
  done
done
