# Sourced by the scripts of an experiment, whose arguments it reads: [SETTINGS] [FLAGS...]. SETTINGS names a file in
# scripts/settings (default: $default_settings, else etth1), which fixes data, sizes and training; FLAGS go to every
# run.py call (--resume to the trainings only).
# All paths are built here, so that each script finds what the one before it wrote.
default_settings=${default_settings:-etth1}
arguments=${arguments:-[SETTINGS] [FLAGS for every run.py call]}
about="SETTINGS: the name of a file in scripts/settings, without .sh (default: $default_settings).
Environment: DATASET_ROOT, folder of the data (./dataset); CHECKPOINTS, folder of the models (./checkpoints); PYTHON, an
interpreter that has the packages, or VENV and BASE_PYTHON, the environment to install them in and the Python for it;
PROCESSES, how many train together (1), each with a batch of the settings' size."
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

settings=$default_settings
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then settings=$1; shift; fi
case $settings in
  scripts/settings/*|*/scripts/settings/*) settings=${settings##*/} ;;
  */*) fail "settings are read from scripts/settings: copy $settings there, and give its name" ;;
esac
settings=${settings%.sh}
extra=() resume=()
for flag in "$@"; do
  case $flag in
    --des|--model_id|--checkpoints|--model|--is_training|--task_name|\
    --des=*|--model_id=*|--checkpoints=*|--model=*|--is_training=*|--task_name=*)
      fail "${flag%%=*} sets the paths that the stages share: leave it out (CHECKPOINTS=FOLDER sets the folder)" ;;
    --resume) resume=(--resume) ;;  # for trainings only: a test has nothing to resume
    *) extra+=("$flag") ;;
  esac
done
model_id= data_file= data_files= unseen_files= draft_name= dataset_class= context= patch= horizons= sampled_windows=  # not those of the shell
[ -f "scripts/settings/$settings.sh" ] || fail "no settings '$settings': there are $(cd scripts/settings && echo *.sh)"
# of --self_draft, unless the settings say otherwise
heads_training=(--train_epochs 12 --batch_size 64 --learning_rate 2e-3 --cosine --tmax 12 --patience 12)
. "scripts/settings/$settings.sh"
for name in context patch horizons; do
  [ -n "${!name}" ] || fail "scripts/settings/$settings.sh sets no $name=: add it (scripts/settings/tiny.sh shows how)"
done
model_id=${model_id:-$settings}  # a copy of a settings file trains models of its own

checkpoints=${CHECKPOINTS:-./checkpoints}
draft_name=${draft_name:-stochastic}
dataset_root=${DATASET_ROOT:-./dataset}
if [ -n "$data_files" ]; then
  data_root=$dataset_root
  read -rd '' -a files <<< "$data_files" || true
  echo "data: ${files[*]} in $data_root, models: $checkpoints" >&2
else
  case $data_file in
    '') data_file=$("$python" -m data_provider.download) ;;  # prints the path of ETTh1, or of its synthetic stand-in
    /*) ;;
    *) data_file=$dataset_root/$data_file ;;
  esac
  data_root=$(dirname "$data_file")
  files=("$(basename "$data_file")")
  echo "data: $data_file, models: $checkpoints" >&2
fi
# the horizon of the published comparison, for settings that have it
case " $horizons " in
  *" 336 "*) published_horizon=336 ;;
  *) published_horizon=${horizons##* } ;;
esac
# of a file that the settings do not train on: UTSD's split is that of its own files
case $dataset_class in
  Utsd*) file_class=UnivariateDatasetBenchmark ;;
  *) file_class=${dataset_class:-MultivariateDatasetBenchmark} ;;
esac
data=(--root_path "$data_root" --data_path "${files[@]}" --data "${dataset_class:-MultivariateDatasetBenchmark}"
      --seq_len "$context" --input_token_len "$patch" --checkpoints "$checkpoints" --model_id "$model_id")

target_name=forecast_${model_id}_timer_xl_target_0
target_checkpoint=$checkpoints/$target_name/checkpoint.pth
draft_checkpoint() { echo "$checkpoints/forecast_${model_id}_timer_xl_draft_$1_0/checkpoint.pth"; }

program=("$python" run.py)
run() { "${program[@]}" "${data[@]}" "$@" ${extra[@]+"${extra[@]}"}; }
run_test() { run --is_training 0 "${testing[@]}" "$@"; }
# a test at the first horizon follows each training
run_training() {
  local program=("${program[@]}") together=()
  if [ "${PROCESSES:-1}" != 1 ]; then
    program=("$python" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" run.py)
    together=(--ddp)
  fi
  run --is_training 1 --test_pred_len "${horizons%% *}" ${together[@]+"${together[@]}"} ${resume[@]+"${resume[@]}"} "$@"
}

# each FILES -- COMMAND [FLAGS]: the command for each file below the data's root, at every horizon
each() {
  local chosen=() file horizon
  while [ "$1" != -- ]; do chosen+=("$1"); shift; done
  for file in "${chosen[@]}"; do
    for horizon in $horizons; do
      "${@:2}" --root_path "$dataset_root" --data_path "$file" --data "$file_class" --test_pred_len "$horizon"
    done
  done
}

need() { [ -f "$1" ] || fail "$1 is missing: run $2 $settings first"; }

train_target() { run_training --des target --use_norm "${target[@]}" "${target_training[@]}" "$@"; }

# distil DES [FLAGS]: trains a draft named DES, with the target's sizes times the scales of the settings unless FLAGS
# say otherwise
distil() {
  need "$target_checkpoint" scripts/supervised/rolling_forecast/timer_xl_etth1.sh
  run_training --model timer_xl_draft --des "$1" --use_norm "${target[@]}" "${draft[@]}" "${draft_training[@]}" \
    --distill --distill_target_ckpt "$target_checkpoint" "${@:2}"
}

# train_heads [FLAGS]: longer heads of the target, kept beside it
train_heads() {
  need "$target_checkpoint" scripts/supervised/rolling_forecast/timer_xl_etth1.sh
  run_training --des heads --self_draft 8 "${heads_training[@]}" --distill_target_ckpt "$target_checkpoint" "$@"
}

test_target() {
  need "$target_checkpoint" scripts/supervised/rolling_forecast/timer_xl_etth1.sh
  run_test --test_dir "$target_name" "$@"
}

# test_draft DES [FLAGS]: the draft alone
test_draft() {
  need "$(draft_checkpoint "$1")" scripts/distillation/timer_xl_draft_from_target_etth1_stochastic.sh
  run_test --model timer_xl_draft --test_dir "forecast_${model_id}_timer_xl_draft_$1_0" "${@:2}"
}

# adapt DES FILE [FLAGS]: fine-tunes the target, or the weights in $PRETRAINED, on a file or a folder of them
adapt() {
  local weights=${PRETRAINED:-$target_checkpoint}
  need "$weights" "a script in scripts/pretrain"
  run_training --des "$1" --root_path "$dataset_root" --data_path "$2" --data "$file_class" --use_norm "${target[@]}" \
    "${adapting[@]}" --adaptation --pretrain_model_path "$weights" "${@:3}"
}

# with_draft DES FLAGS: target and draft together; FLAGS start with --use_speculative or --compare
with_draft() {
  need "$(draft_checkpoint "$1")" scripts/distillation/timer_xl_draft_from_target_etth1_stochastic.sh
  test_target --des "by_$1" --spec_draft_ckpt "$(draft_checkpoint "$1")" "${@:2}"
}
