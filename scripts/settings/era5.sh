# OpenLTM's pretraining on ERA5: one npy file [time, stations], each station a series by itself; PROCESSES=8 share its
# batch of 40960. Theirs keeps the last fifth of the stations out of the training: leave them out of the file.
. scripts/settings/multivariate.sh
data_file=era5_pretrain/pretrain.npy
dataset_class=UnivariateDatasetBenchmark
target_training+=(--batch_size 5120 --val_windows 20 --test_windows 20)
testing+=(--test_windows 20)
