"""Paths drawn from a target's law, patch by patch: what sampled speculative decoding is held against."""
import torch

from utils.speculative_decoder import patches_in
from utils.target_law import TargetLaw


@torch.inference_mode()
def sample_alone(model, context: torch.Tensor, horizon: int, law: TargetLaw, z: torch.Tensor):
    """Plain ancestral sampling: context [B, L, C] -> S paths a window, and the mean of each step given its past.

    Both are [B, S, H, C].

    z: standard normal [B, S, n, P, C]. A patch is its mean, predicted from the path so far, plus law.spread(z) in the
    unit of the context. The pass over the context is one a window, whatever S is; each later one is over all paths of
    the batch.
    """
    n, samples = patches_in(horizon, model.patch_len), z.shape[1]
    z = z.flatten(0, 1)
    state = model.start(context, room=n)
    prediction = model.extend(state).first(1)
    mean, unit = (part.repeat_interleave(samples, dim=0) for part in (prediction.mean, prediction.unit))
    model.fan_out(state, samples)
    patches, means = [], []
    for step in range(n):
        if step:
            state.append(patches[-1])
            mean = model.extend(state).first(1).mean
        means.append(mean)
        patches.append(mean + law.spread(z[:, step:step + 1], unit))
    return tuple(torch.cat(parts, dim=1).flatten(1, 2)[:, :horizon].unflatten(0, (-1, samples))
                 for parts in (patches, means))
