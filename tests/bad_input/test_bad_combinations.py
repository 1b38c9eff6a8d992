"""Flags without what they need, without effect, or against each other."""
import pytest
from bad_input.cases import DRAFT, PREDICT, SPECULATIVE, TEST, Case, just_target, name_of, pair

CASES = [
    Case("training to predict", f"{PREDICT} --is_training 1", ["--do_predict", "--is_training 1"]),
    Case("a comparison of a prediction", f"{PREDICT} --compare", ["--compare", "--do_predict"]),
    Case("pictures of test windows of a prediction", f"{PREDICT} --visualize", ["--visualize", "--do_predict"]),
    Case("a prediction planned on validation windows", f"{PREDICT} --spec_draft_ckpt {DRAFT} --spec_k auto",
         ["--spec_k auto", "--do_predict", "a number"]),
    Case("one drawn path as a prediction", f"{PREDICT} --spec_draft_ckpt {DRAFT} --spec_emit sample",
         ["--spec_emit sample", "mean"]),
    Case("a prediction by a draft that is not there", f"{PREDICT} --spec_draft_ckpt {DRAFT}",
         [DRAFT, "does not exist"], just_target),
    Case("K of a prediction without a draft", f"{PREDICT} --spec_k 2", ["--spec_k", "--spec_draft_ckpt"]),
    # flags without what they need, or without effect
    Case("spec_k without speculation", f"{TEST} --spec_k 2", ["--spec_k", "no effect", "--use_speculative"],
         just_target),
    Case("distill_target_d_model without distill", "--distill_target_d_model 16", ["--distill_target_d_model",
                                                                                  "no effect", "--distill"]),
    Case("draft_teacher_noise without distill", "--draft_teacher_noise 0.1", ["--draft_teacher_noise", "--distill"]),
    Case("season of a prediction", f"{PREDICT} --season 12", ["--season", "--do_predict"]),
    Case("pretrain_model_path without adaptation", "--pretrain_model_path x.pth", ["--pretrain_model_path",
                                                                                   "--adaptation"]),
    Case("draft_stochastic for a target", "--draft_stochastic", ["--draft_stochastic", "timer_xl_draft"]),
    Case("adaptation without weights", "--adaptation", ["--adaptation", "--pretrain_model_path"]),
    Case("distill without a target", "--model timer_xl_draft --distill", ["--distill", "--distill_target_ckpt"]),
    Case("use_speculative without a draft", f"{TEST} --use_speculative", ["--use_speculative", "--spec_draft_ckpt"]),
    Case("compare without a draft", f"{TEST} --compare", ["--compare", "--spec_draft_ckpt"]),
    Case("compare together with use_speculative", f"{SPECULATIVE} --compare", ["--compare", "--use_speculative"]),
    Case("compare of a draft", f"{TEST} --compare --spec_draft_ckpt {DRAFT} --model timer_xl_draft",
         ["--compare", "timer_xl_draft"], pair()),
    Case("spec_sigma together with tolerance", f"{SPECULATIVE} --spec_accept_rule tolerance --spec_sigma 0.2",
         ["--spec_sigma", "tolerance", "simplified"]),
    Case("spec_temp together with tolerance", f"{SPECULATIVE} --spec_accept_rule tolerance --spec_temp 2",
         ["--spec_temp", "tolerance"]),
    Case("spec_tol together with simplified", f"{SPECULATIVE} --spec_accept_rule simplified --spec_tol 0.2",
         ["--spec_tol", "simplified"]),
    Case("bias together with exact", f"{SPECULATIVE} --spec_accept_rule exact --spec_accept_bias 2",
         ["--spec_accept_bias", "exact", "use simplified"]),
    Case("a threshold together with coupling", f"{SPECULATIVE} --spec_accept_rule coupling --spec_accept_mse_tol 0.1",
         ["--spec_accept_mse_tol", "coupling", "use simplified"]),
    Case("spec_tol together with coupling", f"{SPECULATIVE} --spec_accept_rule coupling --spec_tol 0.2",
         ["--spec_tol", "coupling", "use tolerance"]),
    Case("a law that follows the proposal", f"{SPECULATIVE} --spec_accept_rule exact --spec_sigma_mode adaptive",
         ["--spec_sigma_mode adaptive", "exact", "fixed"]),
    Case("reproposing for a rule that keeps the law",
         f"{SPECULATIVE} --spec_accept_rule coupling --spec_repropose target", ["--spec_repropose target", "coupling"]),
    Case("causal statistics without normalisation", "--norm_mode causal", ["--norm_mode causal", "--use_norm"]),
    Case("a trailing window without causal statistics", "--use_norm --norm_window 3", ["--norm_window", "causal"]),
    Case("heads for several patches without forecasts to learn them from",
         "--model timer_xl_draft --distill --distill_target_ckpt given/target/checkpoint.pth --draft_patches 3",
         ["--draft_patches 3", "--draft_rollout"]),
    Case("forecasts of a teacher with dropout, made by workers",
         "--model timer_xl_draft --distill --distill_target_ckpt given/target/checkpoint.pth --draft_rollout 2 "
         "--draft_teacher_dropout 0.1 --num_workers 1", ["--num_workers 1", "dropout", "use 0"], just_target),
    Case("a choice of tokens for forecasts to learn from", "--model timer_xl_draft --distill --draft_rollout 2 "
         "--distill_target_ckpt given/target/checkpoint.pth --last_token", ["--last_token", "--draft_rollout"]),
    Case("a unit of calibrated noise", "--model timer_xl_draft --distill --distill_target_ckpt given/target/"
         "checkpoint.pth --draft_teacher_noise calibrated --draft_noise_unit window",
         ["--draft_noise_unit", "--draft_teacher_noise calibrated"]),
    Case("real windows beside forecasts, without forecasts", "--model timer_xl_draft --distill --distill_target_ckpt "
         "given/target/checkpoint.pth --draft_rollout_context 1", ["--draft_rollout_context", "--draft_rollout"]),
    Case("forecasts to learn from, without a target", "--draft_rollout 3", ["--draft_rollout", "--distill"]),
    Case("K neither a number nor auto", f"{SPECULATIVE} --spec_k many", ["--spec_k", "many"]),
    Case("K both planned and adapted", f"{SPECULATIVE} --spec_k auto --spec_adaptive", ["auto", "--spec_adaptive"]),
    Case("reproposing for a rule that samples", f"{SPECULATIVE} --spec_accept_rule simplified --spec_repropose target",
         ["--spec_repropose target", "tolerance"]),
    Case("sampled emission together with tolerance", f"{SPECULATIVE} --spec_emit sample", ["--spec_emit", "tolerance"]),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_combinations_are_refused(refused, case):
    refused(case)
