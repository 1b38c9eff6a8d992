# The pool with a larger target (25 M parameters) and a longer training, for a GPU: docs/STOCHASTIC_DRAFT_SUCCESS.md has
# what it gave in ten minutes of one H200.
. scripts/settings/pool.sh
target=(--d_model 512 --n_heads 8 --d_ff 2048 --e_layers 8 --norm_mode causal)
target_training+=(--train_epochs 4 --tmax 4 --batch_size 2048 --subset_rand_ratio 0.5 --val_every 100 --amp)
draft_training+=(--train_epochs 16 --tmax 16 --patience 16)
