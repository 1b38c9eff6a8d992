# The preset on ETTh2.
. scripts/settings/etth1.sh
model_id=etth2
data_file=ETT-small/ETTh2.csv
