"""TimesFM 2.5 written down slowly from its formulas: numpy, one series, loops over heads and tokens, float64, no cache.

Weights are a dict by the names of the public checkpoint.
"""
import numpy as np

CHANNELS, MEDIAN = 10, 5


def public_weights(seed, *, token_len, patch_len, head_len, d_model, n_heads, d_ff, e_layers):
    """Random weights by name, float64."""
    generator, head_dim = np.random.default_rng(seed), d_model // n_heads
    shapes = {}
    for block, inputs, outputs in (("tokenizer", 2 * token_len, d_model),
                                   ("output_projection_point", d_model, patch_len * CHANNELS),
                                   ("output_projection_quantiles", d_model, head_len * CHANNELS)):
        for layer, shape in (("hidden", (d_model, inputs)), ("output", (outputs, d_model)),
                             ("residual", (outputs, inputs))):
            shapes[f"{block}.{layer}_layer.weight"] = shape
            if block == "tokenizer":
                shapes[f"{block}.{layer}_layer.bias"] = shape[:1]
    for i in range(e_layers):
        own = {"attn.qkv_proj.weight": (3 * d_model, d_model), "attn.out.weight": (d_model, d_model),
               "attn.query_ln.scale": (head_dim,), "attn.key_ln.scale": (head_dim,),
               "attn.per_dim_scale.per_dim_scale": (head_dim,), "ff0.weight": (d_ff, d_model),
               "ff1.weight": (d_model, d_ff)}
        own |= {f"{place}_{part}_ln.scale": (d_model,) for place in ("pre", "post") for part in ("attn", "ff")}
        shapes |= {f"stacked_xf.{i}.{name}": shape for name, shape in own.items()}
    weights = {}
    for name, shape in shapes.items():
        noise = generator.normal(size=shape)
        weights[name] = 0.6 * noise / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3 * noise + name.endswith(".scale")
    return weights


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(x, scale):
    return x / np.sqrt((x ** 2).mean() + 1e-6) * scale


def residual_block(x, w, name):
    def layer(part, x):
        return w[f"{name}.{part}_layer.weight"] @ x + w.get(f"{name}.{part}_layer.bias", 0)
    return layer("output", silu(layer("hidden", x))) + layer("residual", x)


def rotate(vector, position):
    out, half = vector.copy(), len(vector) // 2
    for i in range(half):
        angle = position / 10000 ** (2 * i / len(vector))
        out[i] = vector[i] * np.cos(angle) - vector[half + i] * np.sin(angle)
        out[half + i] = vector[half + i] * np.cos(angle) + vector[i] * np.sin(angle)
    return out


def attend(tokens, w, prefix, n_heads):
    width = len(tokens[0]) // n_heads
    query, key, value = np.split(np.array(tokens) @ w[f"{prefix}.qkv_proj.weight"].T, 3, axis=1)
    factor = np.log1p(np.exp(w[f"{prefix}.per_dim_scale.per_dim_scale"])) / np.log(2) / np.sqrt(width)
    out = np.zeros_like(query)
    for head in range(n_heads):
        part = slice(head * width, (head + 1) * width)
        keys = [rms_norm(rotate(k, t), w[f"{prefix}.key_ln.scale"]) for t, k in enumerate(key[:, part])]
        for t, q in enumerate(query[:, part]):
            q = rms_norm(rotate(q, t), w[f"{prefix}.query_ln.scale"]) * factor
            score = np.array([q @ k for k in keys[:t + 1]])
            weight = np.exp(score - score.max())
            out[t, part] = (weight / weight.sum()) @ value[:t + 1, part]
    return list(out @ w[f"{prefix}.out.weight"].T)


def answers(series, w, token_len, n_heads, e_layers):
    """After all of a series [L]: (patch [P, 10], long patch [S, 10], mean, standard deviation); data units."""
    missing = -len(series) % token_len
    tokens, mean, spread = [], 0.0, 1.0
    for end in range(token_len - missing, len(series) + 1, token_len):
        mean, spread = series[:end].mean(), series[:end].std()
        steps = series[max(0, end - token_len):end]
        normal = (steps - mean) / (spread if spread >= 1e-6 else 1)
        absent = token_len - len(steps)
        inputs = np.concatenate([np.zeros(absent), normal, np.ones(absent), np.zeros(len(steps))])
        tokens.append(residual_block(inputs, w, "tokenizer"))
    for i in range(e_layers):
        name = f"stacked_xf.{i}"
        mixed = attend([rms_norm(x, w[f"{name}.pre_attn_ln.scale"]) for x in tokens], w, f"{name}.attn", n_heads)
        tokens = [x + rms_norm(y, w[f"{name}.post_attn_ln.scale"]) for x, y in zip(tokens, mixed)]
        hidden = [silu(w[f"{name}.ff0.weight"] @ rms_norm(x, w[f"{name}.pre_ff_ln.scale"])) for x in tokens]
        tokens = [x + rms_norm(w[f"{name}.ff1.weight"] @ y, w[f"{name}.post_ff_ln.scale"])
                  for x, y in zip(tokens, hidden)]
    made = [residual_block(tokens[-1], w, f"output_projection_{head}").reshape(-1, CHANNELS) * spread + mean
            for head in ("point", "quantiles")]
    return *made, mean, spread


def forecast(series, horizon, w, **sizes):
    """The medians of `horizon` steps after a series [L]: everything is encoded anew for every patch."""
    length = len(series)
    while len(series) < length + horizon:
        series = np.concatenate([series, answers(series, w, **sizes)[0][:, MEDIAN]])
    return series[length:length + horizon]
