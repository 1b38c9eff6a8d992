"""A data set whose labels are the target's own forecasts, for on-policy distillation."""
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from exp.train.losses import dropout_rate
from utils.speculative_decoder import decode_alone, patches_in, sample_alone
from utils.target_law import TargetLaw

AT_ONCE = 256  # windows: fixed batches in a fixed order, so that a resumed run gets the same labels, bit by bit
MOST_KEPT = 2**30  # bytes


class TargetForecasts(Dataset):
    """Items (x [context, C], y [1 or 2, steps, C]): windows of `dataset`, with the target's forecast y after x.

    y has `horizon` steps; along: before them, the target's predictions within x, for every patch of it the next one.

    Standardised. With a law, y holds a path sampled from it, as a sampling rule will put it into the context, and the
    mean that the target predicts at each step of that path; without a law, one forecast serves as both.
    Forecasts are computed once and `kept`. With a dropout rate in the target, or if they take more memory than
    MOST_KEPT, they are computed at every visit (kept is None), and sampled paths differ from batch to batch.
    """

    def __init__(self, dataset, target, horizon: int, device: torch.device, dropout: float = 0.0,
                 law: TargetLaw | None = None, seed: int = 0, quiet: bool = False, along: bool = False):
        self.dataset, self.target, self.horizon, self.device = dataset, target, horizon, device
        self.dropout, self.law, self.seed, self.kept, self.along = dropout, law, seed, None, along
        context, variables = dataset[0][0].shape
        shape = (len(dataset), 1 if law is None else 2, horizon + (context if along else 0), variables)
        if dropout == 0 and 4 * torch.Size(shape).numel() <= MOST_KEPT:
            kept = torch.empty(shape)
            windows = torch.arange(len(dataset)).split(AT_ONCE)
            for part in tqdm(windows, desc="target's forecasts", unit="batch", disable=quiet):
                kept[part[0]:part[-1] + 1] = self.__getitems__(part.tolist())[1]
            self.kept = kept

    def _labels(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """[b, 1 or 2, steps, C]; first: number of the first window, which seeds the noise."""
        after = self._forecast(x, first)
        if not self.along:
            return after
        with dropout_rate(self.target, self.dropout), torch.inference_mode():
            within = self.target(x.to(self.device))
        return torch.cat([within[:, None].expand(-1, after.shape[1], -1, -1), after], dim=2)

    def _forecast(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """[b, 1 or 2, horizon, C]"""
        x, P = x.to(self.device), self.target.patch_len
        with dropout_rate(self.target, self.dropout):
            if self.law is None:
                return decode_alone(self.target, x, self.horizon)[:, None]
            generator = torch.Generator().manual_seed(self.seed + first)
            z = torch.randn(len(x), 1, patches_in(self.horizon, P), P, x.shape[2], generator=generator)
            return torch.cat(sample_alone(self.target, x, self.horizon, self.law, z.to(self.device)), dim=1)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]):
        x, _ = self.dataset.__getitems__(indices)
        # clone: out of inference mode, so that training can save it for the backward pass
        y = self._labels(x, indices[0]).float().cpu().clone() if self.kept is None else self.kept[indices]
        return x, y
