#!/usr/bin/env bash
# Target alone, draft alone and both together at H = 336 (or at the last horizon of settings without it), with the
# published settings (simplified, sigma 0.25, bias 1, K 3, sampled and mean) and with tolerance: one table, then each
# speculative run with its full report.
default_settings=etth1_window
. "$(dirname "$0")/../../common.sh"
at=(--test_pred_len "$published_horizon")
with_draft "$draft_name" --compare "${at[@]}"
published=(--use_speculative --spec_accept_rule simplified --spec_sigma 0.25 --spec_accept_bias 1.0 --spec_k 3)
with_draft "$draft_name" "${at[@]}" "${published[@]}" --spec_emit sample --trace_inference_breakdown
with_draft "$draft_name" "${at[@]}" "${published[@]}" --spec_emit mean
with_draft "$draft_name" "${at[@]}" --use_speculative --spec_accept_rule tolerance
