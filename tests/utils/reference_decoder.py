"""The speculative loop, slow and obviously right: one window, lists, a full forward pass for every prediction."""
import math

import torch


def predict(model, history, context_len):
    """(mean, sigma or None) of the patch after history [T, C], from its last context_len steps."""
    P = model.patch_len
    with torch.no_grad():
        out = model(history[-context_len:][None])
    if isinstance(out, tuple):
        return out[0][0, -P:], torch.exp(0.5 * out[1][0, -P:])
    return out[0, -P:], None


def reference_speculation(target, draft, context, horizon, settings, max_proposals, noise=None):
    """One window [L, C]. settings: {"rule": "tolerance", "tol"} or {"rule": "simplified", "emit", "sigma", ...}.

    noise: (proposal [n, P, C], target [n, P, C], uniform [n]).
    """
    P, L = target.patch_len, len(context)
    n = math.ceil(horizon / P)
    K = n - 1 if max_proposals is None else max_proposals
    history, forecast, origin = context, [], []
    counts = {"accepted": 0, "judged": 0, "proposed": 0, "target_passes": 0}
    while len(forecast) < n:
        k = min(K, n - len(forecast) - 1)
        proposals, ahead = [], history
        for j in range(k):
            mean, sigma = predict(draft, ahead, L)
            proposals.append(propose(mean, sigma, settings, noise, len(forecast) + j))
            ahead = torch.cat([ahead, proposals[-1]["patch"]])
        counts["proposed"] += k
        counts["target_passes"] += 1
        rejected = False
        for proposal in proposals:
            position = len(forecast)
            mean, _ = predict(target, history, L)
            counts["judged"] += 1
            if not accept(proposal, mean, history[-L:], settings, noise, position):
                rejected = True
                break
            counts["accepted"] += 1
            forecast.append(mean if settings["rule"] == "tolerance" else proposal["patch"])
            origin.append("accepted")
            history = torch.cat([history, proposal["patch"]])
        own, _ = predict(target, history, L)
        if settings["rule"] == "simplified" and settings["emit"] == "sample":
            own = own + settings["sigma"] * settings.get("temp", 1.0) * noise[1][len(forecast)]
        forecast.append(own)
        origin.append("rejected" if rejected else "bonus")
        history = torch.cat([history, own])
    return torch.cat(forecast)[:horizon], origin, counts


def propose(mean, sigma, settings, noise, position):
    if settings["rule"] == "tolerance":
        return {"patch": mean, "mean": mean}
    sigma = torch.full_like(mean, settings["sigma"]) if sigma is None else sigma
    sigma = sigma * settings.get("temp", 1.0)
    x = mean + sigma * noise[0][position]
    return {"patch": x if settings["emit"] == "sample" else mean, "x": x, "mean": mean, "sigma": sigma}


def accept(proposal, mu_p, window, settings, noise, position):
    if settings["rule"] == "tolerance":
        stdev = torch.sqrt(window.var(dim=0, unbiased=False) + 1e-5)
        return math.sqrt((((proposal["mean"] - mu_p) / stdev) ** 2).mean()) <= settings["tol"]
    if settings.get("mse_tol", -1) > 0 and ((proposal["patch"] - mu_p) ** 2).mean() <= settings["mse_tol"]:
        return True
    x, temp = proposal["x"], settings.get("temp", 1.0)
    variance_p = (settings["sigma"] * temp) ** 2
    if settings.get("sigma_mode") == "adaptive":
        variance_p = settings["adapt_c"] * float(((proposal["mean"] - mu_p) ** 2).mean()) * temp**2
    log_ratio = (-float(((x - mu_p) ** 2).sum()) / (2 * variance_p)
                 + float(((x - proposal["mean"]) ** 2).sum()) / (2 * float((proposal["sigma"] ** 2).mean())))
    return float(noise[2][position]) < min(1.0, settings.get("bias", 1.0) * math.exp(min(log_ratio, 50.0)))
