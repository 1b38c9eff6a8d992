# The preset with causal normalisation: a key-value cache is exact. The draft is on-policy: it learns the target's forecasts.
. scripts/settings/etth1.sh
model_id=etth1_causal
target+=(--norm_mode causal)
draft_training=(--dropout 0.0 --train_epochs 12 --batch_size 64 --learning_rate 2e-3 --cosine --tmax 12
                --draft_rollout 8 --draft_teacher_noise 0.05 --draft_nll_var_reg 0.01)
