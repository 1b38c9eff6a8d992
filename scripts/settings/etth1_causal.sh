# The preset with causal normalisation: a key-value cache is exact, and one pass of an on-policy draft proposes 7 patches.
. scripts/settings/etth1.sh
model_id=etth1_causal
target+=(--norm_mode causal)
draft+=(--draft_patches 7)
draft_training=(--dropout 0.0 --train_epochs 3 --batch_size 64 --learning_rate 2e-3 --cosine --tmax 3
                --draft_rollout 8 --draft_teacher_noise 0.05 --draft_nll_var_reg 0.01)
