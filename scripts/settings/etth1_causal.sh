# Causal normalisation: a key-value cache is exact. A serial draft, on-policy: it learns the target's forecasts.
. scripts/settings/etth1_window.sh
target+=(--norm_mode causal)
draft_training=(--dropout 0.0 --train_epochs 12 --batch_size 64 --learning_rate 2e-3 --cosine --tmax 12
                --draft_rollout 8 --draft_teacher_noise 0.05 --draft_nll_var_reg 0.01)
