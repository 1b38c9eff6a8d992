"""Timer written down slowly from its formulas: numpy, loops over heads, tokens and patches, float64."""
import numpy as np
import torch
from reference.timer_xl import layer_norm


def rotate(vector, position):
    """Rotary embedding of one head's vector: dimension i with dimension i + half."""
    half = len(vector) // 2
    out = vector.copy()
    for i in range(half):
        angle = position * 10000.0 ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * np.cos(angle) - b * np.sin(angle)
        out[i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def attend(x, w, prefix, heads):
    q, k, v = (x @ w[f"{prefix}.{name}_proj.weight"].T + w[f"{prefix}.{name}_proj.bias"] for name in "qkv")
    width = x.shape[1] // heads
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            score = np.array([rotate(q[i, part], i) @ rotate(k[j, part], j) / np.sqrt(width) for j in range(i + 1)])
            weight = np.exp(score - score.max())
            out[i, part] = (weight / weight.sum()) @ v[:i + 1, part]
    return out @ w[f"{prefix}.o_proj.weight"].T


def reference_next(model, patches):
    """Normalised patches [T, P] of one variable -> the prediction after each of them [T, P], normalised."""
    config, w = model.config, {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}
    x = patches @ w["model.embed_layer.emb.weight"].T
    for i in range(config.e_layers):
        p = f"model.layers.{i}"
        norms = [(w[f"{p}.norm{n}.weight"], w[f"{p}.norm{n}.bias"]) for n in (1, 2)]
        x = layer_norm(x + attend(x, w, f"{p}.self_attn", config.n_heads), *norms[0])
        gate, up = (x @ w[f"{p}.ffn_layer.{name}_proj.weight"].T for name in ("gate", "up"))
        x = layer_norm(x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{p}.ffn_layer.down_proj.weight"].T, *norms[1])
    return layer_norm(x, w["model.norm.weight"], w["model.norm.bias"]) @ w["lm_heads.0.weight"].T


def moments(values):
    """Mean and unbiased deviation; of constant values a deviation that is nearly none."""
    return values.mean(), max(values.std(ddof=1), 1e-12)


def reference_roll(model, series, context_patches, norm_roll):
    """The prediction after a series [T * P] of one variable that began with a context of so many patches: [P]."""
    P = model.patch_len
    context, patches = series[:context_patches * P], series.reshape(-1, P)
    if norm_roll == "none":
        stats = [(0.0, 1.0)] * len(patches)
    elif norm_roll == "patch":
        stats = [moments(context if t < context_patches else patch) for t, patch in enumerate(patches)]
    else:
        stats = [moments(series if norm_roll == "window" else context)] * len(patches)
    tokens = np.stack([(patch - mean) / stdev for patch, (mean, stdev) in zip(patches, stats)])
    mean, stdev = stats[-1]
    return reference_next(model, tokens)[-1] * stdev + mean


def reference_forecast(model, context, count, norm_roll):
    """`count` patches after context [L, C], patch by patch, each variable by itself: [count * P, C]."""
    columns = []
    for column in np.asarray(context, dtype=np.float64).T:
        series, patches = column, len(column) // model.patch_len
        for _ in range(count):
            series = np.concatenate([series, reference_roll(model, series, patches, norm_roll)])
        columns.append(series[len(column):])
    return np.stack(columns, axis=1)


class SlowTimer:
    """A Timer for `reference.decoder`: predicts by `reference_roll`, and remembers what it was asked."""

    rolling = "cache"

    def __init__(self, model, context_patches, norm_roll):
        self.model, self.patch_len = model, model.patch_len
        self.context_patches, self.norm_roll, self.known = context_patches, norm_roll, {}

    def __call__(self, history):
        """[1, L, C] -> the next patch [1, P, C]"""
        key = history.numpy().tobytes()
        if key not in self.known:
            self.known[key] = np.stack([reference_roll(self.model, column, self.context_patches, self.norm_roll)
                                        for column in history[0].double().numpy().T], axis=1)
        return torch.from_numpy(self.known[key]).float()[None]

    def unit_after(self, history):
        """The deviation [C] that the next prediction is scaled by."""
        context, patches = self.context_patches * self.patch_len, len(history) // self.patch_len
        part = {"window": history, "frozen": history[:context],
                "patch": history[-self.patch_len:] if patches > self.context_patches else history}[self.norm_roll]
        return part.std(dim=0, unbiased=True)
