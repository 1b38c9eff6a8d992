"""Point metrics over all windows, summed batch by batch; and what speculation cost."""
import torch

from utils.speculative_decoder import Decoded


class PointMetrics:
    """MSE, MAE, RMSE, MAPE, MSPE, SMAPE of forecasts in standardised units, every element of every window once.

    MAPE and MSPE are fractions of the truth and leave out elements where it is exactly zero; SMAPE is
    mean(2 |f - y| / (|f| + |y|)), between 0 and 2.
    """

    def __init__(self):
        self.sums = torch.zeros(5, dtype=torch.float64)
        self.elements = self.nonzero = 0

    def update(self, forecast: torch.Tensor, truth: torch.Tensor) -> None:
        """forecast, truth [B, H, C]"""
        if forecast.shape != truth.shape:
            raise ValueError(f"forecast {list(forecast.shape)} and truth {list(truth.shape)} differ in shape")
        f, y = forecast.double(), truth.double()
        error = (f - y).abs()
        relative = torch.where(y != 0, error / y.abs(), torch.zeros_like(error))
        spread = f.abs() + y.abs()
        symmetric = torch.where(spread > 0, 2 * error / spread, torch.zeros_like(error))
        self.sums += torch.stack([error.square().sum(), error.sum(), relative.sum(), relative.square().sum(),
                                  symmetric.sum()]).cpu()
        self.elements += y.numel()
        self.nonzero += int((y != 0).sum())

    def result(self) -> dict[str, float]:
        if not self.elements:
            raise ValueError("no window was measured")
        squared, absolute, relative, relative_squared, symmetric = self.sums.tolist()
        mse, nonzero = squared / self.elements, max(1, self.nonzero)
        return {"mse": mse, "mae": absolute / self.elements, "rmse": mse**0.5, "mape": relative / nonzero,
                "mspe": relative_squared / nonzero, "smape": symmetric / self.elements}


class SpeculationMetrics:
    """Acceptance and passes over all windows.

    acceptance_pct: accepted of the proposals that were judged (a round is judged up to its first rejection);
    used_pct: accepted of all proposals within the horizon, thrown-away ones included;
    most_pct: the most that a rule which keeps the target's law can accept of those judged, on average (where known).
    """

    COUNTS = ("accepted", "judged", "proposed", "target_passes", "draft_passes")

    def __init__(self):
        self.totals = dict.fromkeys(self.COUNTS, 0)
        self.windows = 0
        self.lengths: list[int] = []
        self.most = None

    def update(self, decoded: Decoded) -> None:
        for name in self.COUNTS:
            self.totals[name] += int(getattr(decoded, name).sum())
        self.windows += len(decoded.accepted)
        if decoded.most is not None:
            self.most = (self.most or 0.0) + float(decoded.most.sum())
        lengths = decoded.lengths.tolist()
        size = max(len(lengths), len(self.lengths))
        padded = [values + [0] * (size - len(values)) for values in (self.lengths, lengths)]
        self.lengths = [a + b for a, b in zip(*padded)]

    def result(self) -> dict:
        totals, rounds = self.totals, max(1, sum(self.lengths))
        return {
            "acceptance_pct": 100 * totals["accepted"] / max(1, totals["judged"]),
            "used_pct": 100 * totals["accepted"] / max(1, totals["proposed"]),
            "accepted": totals["accepted"], "attempted": totals["judged"], "proposed": totals["proposed"],
            "mean_accepted_length": totals["accepted"] / rounds,
            "accepted_length_histogram": self.lengths,
            "target_passes": totals["target_passes"] / max(1, self.windows),
            "draft_passes": totals["draft_passes"] / max(1, self.windows),
        } | ({} if self.most is None else {"most_pct": 100 * self.most / max(1, totals["judged"])})
