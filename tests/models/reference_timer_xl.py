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


def may_see(query, key, patches, variables, covariate):
    (cq, tq), (ck, tk) = divmod(query, patches), divmod(key, patches)
    if covariate:
        return (cq == ck and tk <= tq) or (cq == variables - 1 and ck != variables - 1)
    return tk <= tq


def attend(x, w, prefix, config, patches, variables):
    heads, width = config.n_heads, config.d_model // config.n_heads
    q, k, v = (x @ w[f"{prefix}.{name}_projection.weight"].T + w[f"{prefix}.{name}_projection.bias"]
               for name in ("query", "key", "value"))
    bias = w[f"{prefix}.inner_attention.attn_bias.emb.weight"]
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            keys = [j for j in range(len(x)) if may_see(i, j, patches, variables, config.covariate)]
            score = np.array([(rotate(q[i, part], i) @ rotate(k[j, part], j)
                               + bias[int(i // patches == j // patches), h]) / np.sqrt(width) for j in keys])
            weight = np.exp(score - score.max())
            out[i, part] = (weight / weight.sum()) @ v[keys, part]
    return out @ w[f"{prefix}.out_projection.weight"].T + w[f"{prefix}.out_projection.bias"]


def reference_forward(model, x, heads=("head",)):
    """One window x [L, C] -> a list of [L, C], one for each head, before what is special to a log-variance."""
    config, w = model.config, {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}
    L, C = x.shape
    patches = L // config.input_token_len
    scaler = StandardScaler(with_mean=config.use_norm, with_std=False).fit(x)
    stdev = np.sqrt(x.var(axis=0) + 1e-5) if config.use_norm else np.ones(C)
    z = scaler.transform(x) / stdev
    tokens = np.stack([z[t * config.input_token_len:(t + 1) * config.input_token_len, c]
                       for c in range(C) for t in range(patches)])
    x_ = tokens @ w["embedding.weight"].T + w["embedding.bias"]
    for i in range(config.e_layers):
        p = f"blocks.attn_layers.{i}"
        x_ = layer_norm(x_ + attend(x_, w, f"{p}.attention", config, patches, C), w[f"{p}.norm1.weight"],
                        w[f"{p}.norm1.bias"])
        hidden = activate(x_ @ w[f"{p}.conv1.weight"][..., 0].T + w[f"{p}.conv1.bias"], config.activation)
        x_ = layer_norm(x_ + hidden @ w[f"{p}.conv2.weight"][..., 0].T + w[f"{p}.conv2.bias"],
                        w[f"{p}.norm2.weight"], w[f"{p}.norm2.bias"])
    x_ = layer_norm(x_, w["blocks.norm.weight"], w["blocks.norm.bias"])
    mean = scaler.mean_ if config.use_norm else np.zeros(C)
    results = []
    for head in heads:
        out = (x_ @ w[f"{head}.weight"].T + w[f"{head}.bias"]).reshape(C, L).T
        results.append(np.clip(out, -10, 10) + 2 * np.log(stdev) if "logvar" in head else out * stdev + mean)
    return results
