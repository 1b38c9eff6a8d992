# Another draft for the target of etth1_causal: one pass of it proposes 7 patches.
. scripts/settings/etth1_causal.sh
draft+=(--draft_patches 7)
draft_name=parallel
