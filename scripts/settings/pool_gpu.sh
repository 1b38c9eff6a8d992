# The pool with a larger target and a longer training, for a GPU; not measured yet.
. scripts/settings/pool.sh
target=(--d_model 512 --n_heads 8 --d_ff 2048 --e_layers 8 --norm_mode causal)
target_training+=(--train_epochs 10 --tmax 10 --batch_size 2048 --subset_rand_ratio 0.5 --val_every 100 --amp)
draft_training+=(--train_epochs 20 --tmax 20 --batch_size 2048 --subset_rand_ratio 0.5 --amp)
