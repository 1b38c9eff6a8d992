# OpenLTM's multivariate pretraining: one file whose variables belong together. Copy this file and set data_file=.
data_file=dataset.csv
context=3072
patch=96
target=(--d_model 512 --n_heads 8 --d_ff 2048 --e_layers 4)
target_training=(--train_epochs 10 --batch_size 512 --learning_rate 1e-4 --cosine --tmax 10)
testing=(--batch_size 64)
horizons="96 192 336 720"
