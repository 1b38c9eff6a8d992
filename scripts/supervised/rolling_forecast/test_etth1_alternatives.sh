#!/usr/bin/env bash
# The alternatives of the published comparison, measured at H = 336 (or at the last horizon of settings without it): a
# deterministic draft with fixed sigma, the same with a deterministic threshold on the squared gap, and a 0.5x stochastic
# draft. Distils the two drafts first.
default_settings=etth1_window
. "$(dirname "$0")/../../common.sh"
half=(--draft_scale_d_model 0.5 --draft_scale_n_heads 0.5 --draft_scale_d_ff 0.5 --draft_scale_e_layers 0.5)
distil half "${half[@]}"
# a deterministic draft has no log-variance head: neither noise nor variance regularisation
draft=("${draft[@]/--draft_stochastic/}")
draft=(${draft[@]})
distil deterministic --draft_teacher_noise 0 --draft_nll_var_reg 0

published=(--use_speculative --test_pred_len "$published_horizon" --spec_accept_rule simplified --spec_sigma 0.25
           --spec_accept_bias 1.0 --spec_k 3)
for name in deterministic half; do
  test_draft "$name" --test_pred_len "$published_horizon"
  for emit in sample mean; do with_draft "$name" "${published[@]}" --spec_emit "$emit"; done
done
with_draft deterministic "${published[@]}" --spec_emit mean --spec_accept_mse_tol 0.0625
with_draft half --use_speculative --test_pred_len "$published_horizon" --spec_accept_rule tolerance
