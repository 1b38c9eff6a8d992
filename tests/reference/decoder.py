"""The speculative loop, slow and obviously right: one window, lists, a full forward pass for every prediction."""
import math

import torch
from torch.distributions import Normal

from utils.counter_random import redraws, seeds_of

LOSSLESS = ("exact", "coupling")
KEPT = 0.999  # c of the rule `exact`


def predict(model, history, context_len):
    """[(mean, sigma or None), ...] of the patches after history [T, C]: one, or as many as the heads speak of.

    A model that rolls by windows sees the last context_len steps, one that keeps a cache all of history.
    """
    P = model.patch_len
    with torch.no_grad():
        out = model((history[-context_len:] if model.rolling == "window" else history)[None])
    parts = out if isinstance(out, tuple) else (out,)
    # [L, C], or [T, J, P, C] from heads that speak of J patches
    last = [part[0, -1] if part.dim() == 5 else part[0, -P:][None] for part in parts]
    sigmas = torch.exp(0.5 * last[1]) if len(last) > 1 else [None] * len(last[0])
    return list(zip(last[0], sigmas))


def said_ahead(target, history, context_len):
    """What the longer heads of a target say after history [T, C]: means [P, C] of the patches after the next one."""
    seen = history[-context_len:] if target.rolling == "window" else history
    with torch.no_grad():
        hidden, stats, _ = target.encode(target.to_patches(seen[None]), 1)
        return list(stats.denormalise(target.head_patches(target.longer(hidden)))[0, 0])


def reference_speculation(target, draft, context, horizon, settings, max_proposals, noise=None, repropose="draft"):
    """One window [L, C]. settings: {"rule": "tolerance", "tol"} or {"rule": another, "emit", "sigma", ...}.

    noise: (proposal [n, P, C], target [n, P, C], uniform [n]). draft None: the target's longer heads propose.
    """
    P, L = target.patch_len, len(context)
    n = math.ceil(horizon / P)
    K = n - 1 if max_proposals is None else max_proposals
    history, forecast, origin = context, [], []
    counts = {"accepted": 0, "judged": 0, "proposed": 0, "target_passes": 0}
    ahead, left_over = [], []
    gaps = {}  # position -> what the target said there last time minus what the draft did
    while len(forecast) < n:
        k = min(K, n - len(forecast) - 1)
        if draft is None:
            proposals = [propose(mean, None, settings, noise, len(forecast) + j) for j, mean in enumerate(ahead[:k])]
        elif repropose == "target" and left_over:
            proposals = [{"patch": mean, "mean": mean} for mean in left_over[:k]]
        else:
            each = 1 if repropose == "corrected" else k
            proposals = ask_draft(draft, history, L, k, settings, noise, len(forecast), gaps, each)
        counts["proposed"] += len(proposals)
        counts["target_passes"] += 1
        seen = [predict(target, torch.cat([history] + [p["patch"] for p in proposals[:j]]), L)[0][0]
                for j in range(len(proposals) + 1)]
        if repropose == "corrected":
            start = len(forecast)
            gaps = {start + j: mean - proposal["said"] for j, (mean, proposal) in enumerate(zip(seen, proposals))}
        rejected = False
        for j, proposal in enumerate(proposals):
            position = len(forecast)
            mean, _ = predict(target, history, L)[0]
            counts["judged"] += 1
            if not accept(proposal, mean, unit_after(target, history, L), settings, noise, position):
                rejected = True
                left_over = seen[j + 1:]
                break
            counts["accepted"] += 1
            means = settings["rule"] == "tolerance" or settings["rule"] in LOSSLESS and settings["emit"] == "mean"
            forecast.append(mean if means else proposal["patch"])
            origin.append("accepted")
            history = torch.cat([history, proposal["patch"]])
        if not rejected:
            left_over = []
        if draft is None:
            ahead = said_ahead(target, history, L)
        own, _ = predict(target, history, L)[0]
        own = own_patch(own, settings, noise, len(forecast), proposals[j] if rejected else None)
        forecast.append(own)
        origin.append("rejected" if rejected else "bonus")
        history = torch.cat([history, own])
    return torch.cat(forecast)[:horizon], origin, counts


def reference_parareal(target, draft, context, horizon, passes, noise=None):
    """One window [L, C], by the formulas as they stand: every pass over every patch, nothing kept but F - G.

    noise [n, P, C]: data units. Returns p_j, and the last q and p of each patch but the last.
    """
    P, L = target.patch_len, len(context)
    n = math.ceil(horizon / P)
    e = [0.0] * n if noise is None else list(noise)
    error = [0.0] * n
    for number in range(passes):
        q = []
        while len(q) < n - 1:
            means = [mean for mean, _ in predict(draft, torch.cat([context, *q]), L)]
            for mean in means[:1 if number else n - 1 - len(q)]:
                q.append(mean + error[len(q)] + e[len(q)])
        said = [predict(draft, torch.cat([context, *q[:i]]), L)[0][0] for i in range(n - 1)]
        fine = [predict(target, torch.cat([context, *q[:i]]), L)[0][0] for i in range(n)]
        error = [fine[i] - said[i] for i in range(n - 1)]
    p = [fine[i] + e[i] for i in range(n)]
    return torch.cat(p)[:horizon], q, p[:-1]


def ask_draft(draft, history, context_len, k, settings, noise, position, gaps, each):
    """k proposals; each: how many of one pass are used."""
    proposals = []
    while len(proposals) < k:
        for said, sigma in predict(draft, history, context_len)[:min(each, k - len(proposals))]:
            now = position + len(proposals)
            mean = said + gaps[min(now, max(gaps))] if gaps else said
            proposals.append(propose(mean, sigma, settings, noise, now) | {"said": said})
            history = torch.cat([history, proposals[-1]["patch"]])
    return proposals


def unit_after(model, history, context_len):
    """The model's unit [C] after history: its own, or the standard deviation of the steps that normalise."""
    if hasattr(model, "unit_after"):
        return model.unit_after(history)
    window = model.config.norm_window * model.patch_len if model.config.causal else context_len
    return torch.sqrt(history[-window:].var(dim=0, unbiased=False) + 1e-5)


def propose(mean, sigma, settings, noise, position):
    if settings["rule"] == "tolerance":
        return {"patch": mean, "mean": mean}
    if sigma is None or settings["rule"] == "coupling":
        sigma = torch.full_like(mean, settings["sigma"])
    sigma = sigma * settings.get("temp", 1.0)
    x = mean + sigma * noise[0][position]
    return {"patch": x if settings["emit"] == "sample" else mean, "x": x, "mean": mean, "sigma": sigma}


def accept(proposal, mu_p, stdev, settings, noise, position):
    if settings["rule"] == "tolerance":
        return math.sqrt((((proposal["mean"] - mu_p) / stdev) ** 2).mean()) <= settings["tol"]
    if settings.get("mse_tol", -1) > 0 and ((proposal["patch"] - mu_p) ** 2).mean() <= settings["mse_tol"]:
        return True
    x, temp = proposal["x"], settings.get("temp", 1.0)
    if settings["rule"] in LOSSLESS:
        ratio = KEPT if settings["rule"] == "exact" else 1.0
        log_ratio = log_density(x, mu_p, settings["sigma"] * temp) - log_density(x, proposal["mean"], proposal["sigma"])
        return float(noise[2][position]) < min(1.0, ratio * math.exp(min(log_ratio, 50.0)))
    variance_p = (settings["sigma"] * temp) ** 2
    if settings.get("sigma_mode") == "adaptive":
        variance_p = settings["adapt_c"] * float(((proposal["mean"] - mu_p) ** 2).mean()) * temp**2
    log_ratio = (-float(((x - mu_p) ** 2).sum()) / (2 * variance_p)
                 + float(((x - proposal["mean"]) ** 2).sum()) / (2 * float((proposal["sigma"] ** 2).mean())))
    return float(noise[2][position]) < min(1.0, settings.get("bias", 1.0) * math.exp(min(log_ratio, 50.0)))


def log_density(x, mean, sigma):
    return float(Normal(mean.double(), torch.as_tensor(sigma).double()).log_prob(x.double()).sum())


def own_patch(mean, settings, noise, position, rejected):
    """The target's own patch; rejected: the proposal in whose place it stands, or None."""
    if settings["rule"] == "tolerance" or settings["emit"] == "mean":
        return mean
    sigma = settings["sigma"] * settings.get("temp", 1.0)
    if rejected is None or settings["rule"] == "simplified":
        return mean + sigma * noise[1][position]
    if settings["rule"] == "coupling":  # the proposal's distance from its mean, mirrored along the line of the means
        away = rejected["x"] - rejected["mean"]
        line = (rejected["mean"] - mean) / (rejected["mean"] - mean).norm()
        return mean + away - 2 * (away * line).sum() * line
    seed = seeds_of(noise[1][position])[None]
    for draw in range(10**6):
        z, uniform = redraws(seed, draw, 1, mean.shape)
        y = mean + sigma * z[0, 0].float()
        q_over_p = log_density(y, rejected["mean"], rejected["sigma"]) - log_density(y, mean, sigma)
        if float(uniform) > min(math.exp(min(q_over_p, 50.0)), KEPT):
            return y
