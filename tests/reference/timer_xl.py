"""Timer-XL written down slowly from its formulas: numpy, loops over heads and tokens, float64."""
import numpy as np
from sklearn.preprocessing import StandardScaler  # biased standard deviation, as the model's


def layer_norm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def activate(x, name):
    if name == "relu":
        return np.maximum(x, 0)
    from scipy.special import erf
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def rotate(vector, position):
    """Rotary embedding of one head's vector: pairs of the first half only."""
    out, half = vector.copy(), len(vector) // 2
    for i in range(half // 2):
        angle = position * 10000.0 ** (-2 * i / half)
        a, b = vector[2 * i], vector[2 * i + 1]
        out[2 * i] = a * np.cos(angle) - b * np.sin(angle)
        out[2 * i + 1] = b * np.cos(angle) + a * np.sin(angle)
    return out


def may_see(query, key, last, config):
    """query, key: (variable, time)"""
    (cq, tq), (ck, tk) = query, key
    past = tk <= tq and (config.norm_mode == "window" or tk > tq - config.norm_window)
    if config.covariate:
        return (cq == ck and past) or (cq == last and ck != last)
    return past


def attend(x, w, prefix, config, tokens, stride):
    """tokens: (variable, time) of every row of x."""
    heads, width = config.n_heads, config.d_model // config.n_heads
    q, k, v = (x @ w[f"{prefix}.{name}_projection.weight"].T + w[f"{prefix}.{name}_projection.bias"]
               for name in ("query", "key", "value"))
    bias = w[f"{prefix}.inner_attention.attn_bias.emb.weight"]
    place = [c * stride + t for c, t in tokens]
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            keys = [j for j in range(len(x)) if may_see(tokens[i], tokens[j], tokens[-1][0], config)]
            score = np.array([(rotate(q[i, part], place[i]) @ rotate(k[j, part], place[j])
                               + bias[int(tokens[i][0] == tokens[j][0]), h]) / np.sqrt(width) for j in keys])
            weight = np.exp(score - score.max())
            out[i, part] = (weight / weight.sum()) @ v[keys, part]
    return out @ w[f"{prefix}.out_projection.weight"].T + w[f"{prefix}.out_projection.bias"]


def window_stats(part):
    """Mean and stdev [C] of a window [L, C]."""
    return StandardScaler(with_std=False).fit(part).mean_, np.sqrt(part.var(axis=0) + 1e-5)


def token_inputs(config, x):
    """Inputs [T][C] of the embedding and (mean, stdev) [C] that go with every patch."""
    P, (L, C) = config.input_token_len, x.shape
    T = L // P
    if not config.use_norm:
        stats = [(np.zeros(C), np.ones(C))] * T
    elif config.norm_mode == "causal":
        stats = [window_stats(x[max(0, t + 1 - config.norm_window) * P:(t + 1) * P]) for t in range(T)]
    else:
        stats = [window_stats(x)] * T
    inputs = []
    for t, (mean, stdev) in enumerate(stats):
        patch = ((x[t * P:(t + 1) * P] - mean) / stdev).T  # [C, P]
        if config.use_norm and config.norm_mode == "causal":
            before, spread = stats[max(0, t - 1)]
            moved = np.clip((before - mean) / stdev, -5, 5), np.log(spread / stdev)
            patch = np.concatenate([patch, np.stack(moved, axis=1)], axis=1)
        inputs.append(patch)
    return inputs, stats


def reference_forward(model, x, heads=("head",), stride=None):
    """One series x [L, C] -> a list of [T, J * P, C], one for each head: what each patch says of the next J.

    stride: N of the rotary position c*N + t, where it is not the number of patches.
    """
    config, w = model.config, {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}
    inputs, stats = token_inputs(config, x)
    T, C = len(inputs), x.shape[1]
    if stride is None:
        stride = config.norm_window if config.norm_mode == "causal" else T
    tokens = [(c, t) for c in range(C) for t in range(T)]
    x_ = np.stack([inputs[t][c] for c, t in tokens]) @ w["embedding.weight"].T + w["embedding.bias"]
    for i in range(config.e_layers):
        p = f"blocks.attn_layers.{i}"
        x_ = layer_norm(x_ + attend(x_, w, f"{p}.attention", config, tokens, stride), w[f"{p}.norm1.weight"],
                        w[f"{p}.norm1.bias"])
        hidden = activate(x_ @ w[f"{p}.conv1.weight"][..., 0].T + w[f"{p}.conv1.bias"], config.activation)
        x_ = layer_norm(x_ + hidden @ w[f"{p}.conv2.weight"][..., 0].T + w[f"{p}.conv2.bias"],
                        w[f"{p}.norm2.weight"], w[f"{p}.norm2.bias"])
    x_ = layer_norm(x_, w["blocks.norm.weight"], w["blocks.norm.bias"])
    results = []
    for head in heads:
        out = (x_ @ w[f"{head}.weight"].T + w[f"{head}.bias"]).reshape(C, T, -1).transpose(1, 2, 0)  # [T, J * P, C]
        for t, (mean, stdev) in enumerate(stats):
            out[t] = np.clip(out[t], -10, 10) + 2 * np.log(stdev) if "logvar" in head else out[t] * stdev + mean
        results.append(out)
    return results
