# A draft for parareal and for corrected proposals, of the pool's target: as etth1_parareal.sh.
. scripts/settings/pool.sh
model_id=pool
draft_name=parareal
draft+=(--draft_patches 1)
draft_training+=(--draft_answer 10)
