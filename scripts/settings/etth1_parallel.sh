# Another draft for the target of etth1_causal: one pass of it proposes 7 patches.
. scripts/settings/etth1_causal.sh
model_id=etth1_causal  # whose target it shares
draft+=(--draft_patches 7)
draft_name=parallel
