# The preset with causal normalisation on ETTh2.
. scripts/settings/etth1_causal.sh
model_id=etth2_causal
data_file=ETT-small/ETTh2.csv
