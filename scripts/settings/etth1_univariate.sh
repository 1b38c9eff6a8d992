# The causal preset, each series separately: proposals are then judged series by series (96 elements, not 672). The
# draft learns along paths sampled from the calibrated target, as it will see them under the law-preserving rules.
. scripts/settings/etth1_causal.sh
dataset_class=UnivariateDatasetBenchmark
target_training+=(--batch_size 448)
draft_training+=(--batch_size 448 --draft_teacher_noise calibrated --train_epochs 40 --tmax 40)
