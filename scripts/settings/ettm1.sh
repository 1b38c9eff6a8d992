# Window normalisation on ETTm1.
. scripts/settings/etth1_window.sh
model_id=ettm1
data_file=ETT-small/ETTm1.csv
target_training+=(--val_every 120)  # its validation split is four times as large
