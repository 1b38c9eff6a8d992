#!/usr/bin/env bash
# Sweeps decoding parameters over the pair that quickstart.sh trains with the same SETTINGS: one csv, one row per cell.
# FLAGS, all optional (python -m scripts.sweeps.param_sweep --help explains): --grid published --sigma 0.25,0.5
# --bias 1,2 --k 1,3,all --tol 0.1,0.3 --rule simplified,tolerance --emit mean,sample --windows 512 --horizon 336
# --out FILE.csv --target FILE --draft FILE --workers N --ray_address A. Without --horizon it is 336, or the last one of
# settings that lack it.
arguments="[SETTINGS] [FLAGS]"
. "$(dirname "$0")/../common.sh"
exec "$python" -m scripts.sweeps.param_sweep --target "$target_checkpoint" --draft "$(draft_checkpoint "$draft_name")" \
  --out "test_results/sweep_$settings.csv" --root_path "$data_root" --data_path "${files[@]}" \
  --horizon "$published_horizon" --seq_len "$context" --input_token_len "$patch" \
  ${dataset_class:+--data "$dataset_class"} ${extra[@]+"${extra[@]}"}
