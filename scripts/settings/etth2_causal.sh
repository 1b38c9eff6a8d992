# The preset with causal normalisation on ETTh2; the weight decay was chosen on the validation split.
. scripts/settings/etth1_causal.sh
data_file=ETT-small/ETTh2.csv
target_training+=(--weight_decay 3e-3)
