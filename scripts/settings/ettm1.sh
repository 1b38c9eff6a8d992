# Window normalisation on ETTm1.
. scripts/settings/etth1_window.sh
data_file=ETT-small/ETTm1.csv
target_training+=(--val_every 120)  # its validation split is four times as large
