"""A data set whose answers are the target's own forecasts, for on-policy distillation."""
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.losses import dropout_rate
from utils.speculative_decoder import decode_alone

AT_ONCE = 256  # windows: always the same parts in the same order, so that a resumed run learns from the same bits
MOST_KEPT = 2**31  # bytes


class TargetForecasts(Dataset):
    """Items (x [context, C], y [horizon, C]): windows of `dataset`, y what the target forecasts after x, standardised.

    A target's forecast of a window stays the same: all are made once, and `kept`. With a dropout rate in the target, or
    where they take more memory than MOST_KEPT, they are made at every visit (kept is None).
    """

    def __init__(self, dataset, target, horizon: int, device: torch.device, dropout: float = 0.0, quiet: bool = False):
        self.dataset, self.target, self.horizon = dataset, target, horizon
        self.device, self.dropout, self.kept = device, dropout, None
        variables = dataset[0][0].shape[1]
        if dropout == 0 and 4 * len(dataset) * horizon * variables <= MOST_KEPT:
            self.kept = torch.empty(len(dataset), horizon, variables)
            windows = torch.arange(len(dataset)).split(AT_ONCE)
            for part in tqdm(windows, desc="target's forecasts", unit="batch", disable=quiet):
                self.kept[part[0]:part[-1] + 1] = self._forecast(dataset.__getitems__(part.tolist())[0])

    def _forecast(self, x: torch.Tensor) -> torch.Tensor:
        with dropout_rate(self.target, self.dropout):
            return decode_alone(self.target, x.to(self.device), self.horizon).float().cpu().clone()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]):
        x, _ = self.dataset.__getitems__(indices)
        return x, self._forecast(x) if self.kept is None else self.kept[indices]
