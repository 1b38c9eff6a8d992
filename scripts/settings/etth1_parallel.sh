# Another draft for the target of etth1_causal, which proposes 7 patches per pass.
. scripts/settings/etth1_causal.sh
model_id=etth1_causal  # whose target it shares
draft+=(--draft_patches 7)
draft_name=parallel
