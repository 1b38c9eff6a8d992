"""Windows -> their mean forecasts and the quantiles of sampled paths, a batch at a time."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm

from exp.evaluate.methods import Method, PararealMethod, SampledMethod
from utils.errors import NotFinite
from utils.scores import PararealMetrics, SpeculationMetrics, quantile

# context [B, L, C] and horizon -> sampled paths [B, S, H, C], both standardised
Sampler = Callable[[torch.Tensor, int], torch.Tensor]
Cost = PararealMetrics | SpeculationMetrics


def quantiles_of(paths: torch.Tensor, levels: tuple[float, ...]) -> torch.Tensor:
    """Pointwise quantiles: sampled paths [B, S, H, C] -> [Q, B, H, C]."""
    ordered = paths.sort(dim=1).values
    return torch.stack([quantile(ordered, level) for level in levels])


def sampled_by(method: SampledMethod) -> Sampler:
    """Paths of the target alone."""
    def sample(context: torch.Tensor, _: int) -> torch.Tensor:
        paths = method.decode(context).paths
        assert paths is not None
        return paths
    return sample


def cost_of(method: Method) -> Cost:
    return PararealMetrics() if isinstance(method, PararealMethod) else SpeculationMetrics()


def costs_of(cost: Cost | None) -> dict[str, int]:
    """Sums over windows, which can be added up."""
    if cost is None:
        return {}
    if isinstance(cost, SpeculationMetrics):
        return {"windows": cost.windows, **cost.totals}
    passes = sum(number * windows for number, windows in enumerate(cost.passes, 1))
    return {"windows": cost.windows, "target_passes": passes, "draft_passes": cost.draft_passes}


def mean_cost(counts: Mapping[str, int]) -> dict[str, float] | None:
    """Passes per series, and proposals, from sums; None without a draft."""
    if not counts.get("windows"):
        return None
    windows = counts["windows"]
    found: dict[str, float] = {name: counts[name] / windows for name in ("target_passes", "draft_passes")}
    return found | {name: counts[name] for name in ("accepted", "judged", "proposed") if name in counts}


def decode_windows(windows: torch.Tensor, horizon: int, batch_size: int, method: Method, cost: Cost | None,
                   sampler: Sampler | None, levels: tuple[float, ...],
                   quiet: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """windows [B, L, C] -> mean and quantiles [1 + Q, B, H, C], all standardised, and origin [B, n].

    cost: what to add the cost of speculation to; None without a draft. Raises NotFinite, with the number of the window.
    """
    values, origins = [], []
    parts = windows.split(batch_size)
    bar = tqdm(parts, desc="forecast", unit="batch", disable=quiet or len(parts) == 1)
    for number, part in enumerate(bar):
        try:
            decoded = method.decode(part)
            paths = sampler(part, horizon) if sampler else None
        except NotFinite as error:
            error.window += number * batch_size
            raise
        if cost is not None:
            cost.update(decoded)
        if decoded.origin is not None:
            origins.append(decoded.origin.cpu())
        quantiles = [] if paths is None else [quantiles_of(paths, levels)]
        values.append(torch.cat([decoded.forecast[None], *quantiles]))
    return torch.cat(values, dim=1), torch.cat(origins) if origins else None
