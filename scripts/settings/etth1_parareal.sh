# A draft for parareal and for corrected proposals, of the target of the settings `etth1`: one patch a pass, and its answer
# changes with the context as the target's does.
. scripts/settings/etth1_causal.sh
model_id=etth1
draft_name=parareal
draft_training+=(--draft_answer 10)
