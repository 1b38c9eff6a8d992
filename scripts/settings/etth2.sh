# Window normalisation on ETTh2.
. scripts/settings/etth1_window.sh
data_file=ETT-small/ETTh2.csv
