# Window normalisation on ETTh2.
. scripts/settings/etth1_window.sh
model_id=etth2
data_file=ETT-small/ETTh2.csv
