# The causal preset on ETTh2, each series separately. By the validation loss, 24 epochs are enough for the draft.
. scripts/settings/etth1_univariate.sh
data_file=ETT-small/ETTh2.csv
draft_training+=(--train_epochs 24 --tmax 24)
