# The preset on ETTm1.
. scripts/settings/etth1.sh
model_id=ettm1
data_file=ETT-small/ETTm1.csv
