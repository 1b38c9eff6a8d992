# The causal preset, every series for itself: a target's law is then judged series by series (96 elements, not 672).
. scripts/settings/etth1_causal.sh
model_id=etth1_univariate
dataset_class=UnivariateDatasetBenchmark
