# The causal preset on ETTh2, every series for itself.
. scripts/settings/etth1_univariate.sh
model_id=etth2_univariate
data_file=ETT-small/ETTh2.csv
