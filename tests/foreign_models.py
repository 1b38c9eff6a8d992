"""Models of other projects in miniature, and slow ones that encode everything anew: to test the adapters with.

In double precision, so that a proposal on the edge of acceptance falls to the same side in both.
"""
import torch

from utils.interface import Decodable, Prediction

P, C, N = 4, 2, 3


def weights(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / shape[0] ** 0.5


# --- three foreign models: a function, hidden states, keys and values

class Forward:
    """window [B, L, C] -> its next patch, and a log-variance if stochastic."""

    def __init__(self, noise=0.0, stochastic=False):
        self.weight = weights(1, N * P * C, P * C) + noise * weights(2, N * P * C, P * C)
        self.stochastic = stochastic

    def __call__(self, window):
        assert window.shape[1:] == (N * P, C)
        mean = torch.tanh(window.flatten(1) @ self.weight).unflatten(1, (P, C)) + 0.5 * window[:, -P:]
        return (mean, 0.1 * mean - 2) if self.stochastic else mean


class Recurrent:
    """A recurrent net; its cache is a list with the hidden state [B, width] after each patch."""

    def __init__(self, noise=0.0, stochastic=False):
        self.into, self.on, self.out = (
            weights(seed, *shape) + noise * weights(seed + 10, *shape)
            for seed, shape in enumerate([(P * C, 8), (8, 8), (8, P * C)]))
        self.stochastic = stochastic

    new_cache = list

    def step(self, patches, cache):
        out = []
        for patch in patches.flatten(2).unbind(1):
            before = cache[-1] if cache else patch.new_zeros(len(patch), 8)
            cache.append(torch.tanh(patch @ self.into + before @ self.on))
            out.append(cache[-1] @ self.out + 0.5 * patch)
        mean = torch.stack(out, dim=1).view_as(patches)
        return (mean, 0.1 * mean - 2) if self.stochastic else mean

    @staticmethod
    def crop(cache, length):
        return cache[:length]

    @staticmethod
    def select(cache, rows):
        return [hidden[rows] for hidden in cache]


class KeysAndValues:
    """Behaves as a `DynamicCache` of Hugging Face does: changes in place, and answers None."""

    def __init__(self):
        self.keys = self.values = None

    def update(self, keys, values):
        if self.keys is None:
            self.keys, self.values = keys, values
        else:
            self.keys, self.values = torch.cat([self.keys, keys], 1), torch.cat([self.values, values], 1)
        return self.keys, self.values

    def get_seq_length(self):
        return 0 if self.keys is None else self.keys.shape[1]

    def crop(self, minus):
        assert 0 > minus > -self.get_seq_length(), "to nothing, or for nothing"
        self.keys, self.values = self.keys[:, :minus], self.values[:, :minus]

    def batch_select_indices(self, rows):
        self.keys, self.values = self.keys[rows], self.values[rows]


class Attention:
    """One causal layer with positions; P * C elements of a patch are one token."""

    def __init__(self, noise=0.0, stochastic=False):
        D = P * C
        self.query, self.key, self.value, self.out, self.place = (
            weights(seed, *shape) + noise * weights(seed + 10, *shape)
            for seed, shape in enumerate([(D, D), (D, D), (D, D), (D, D), (40, D)]))
        self.stochastic = stochastic

    new_cache = KeysAndValues

    def step(self, patches, cache):
        tokens, before = patches.flatten(2), cache.get_seq_length()
        k = tokens.shape[1]
        tokens = tokens + self.place[before:before + k]
        keys, values = cache.update(tokens @ self.key, tokens @ self.value)
        later = torch.ones(k, before + k).triu(before + 1).bool()
        scores = (tokens @ self.query @ keys.transpose(1, 2)).masked_fill(later, float("-inf"))
        mean = torch.tanh(scores.softmax(dim=2) @ values @ self.out).view_as(patches) + 0.5 * patches
        return (mean, 0.1 * mean - 2) if self.stochastic else mean

    @staticmethod
    def crop(cache, length):
        return cache.crop(length - cache.get_seq_length())

    @staticmethod
    def select(cache, rows):
        return cache.batch_select_indices(rows)


# --- the slow ones

class Slow(Decodable):
    """Encodes the whole history of ONE row (or its last window) for every prediction; keeps lists of patches."""

    patch_len, patches_ahead = P, 1

    def __init__(self, toy, normalise=False):
        self.toy, self.normalise = toy, normalise

    def start(self, context, room):
        return SlowState(self, [list(row.unflatten(0, (-1, P))) for row in context])

    def next_patch(self, history):
        """history [patches] -> mean, logvar, scale"""
        series, context = torch.stack(history)[None], torch.stack(history[:N])
        if isinstance(self.toy, Forward):
            seen = series[:, -N:].flatten(1, 2)
            return *both(self.toy(seen)), stdev_of(seen[0])
        stdev = stdev_of(context.flatten(0, 1))
        if not self.normalise:
            mean, logvar = both(self.toy.step(series, self.toy.new_cache()))
            return mean[:, -1], None if logvar is None else logvar[:, -1], stdev
        level = context.mean(dim=(0, 1))
        mean, logvar = both(self.toy.step((series - level) / stdev, self.toy.new_cache()))
        return mean[:, -1] * stdev + level, None if logvar is None else logvar[:, -1] + 2 * torch.log(stdev), stdev


class SlowState:
    def __init__(self, model, rows):
        self.model, self.rows = model, rows
        self.unit = torch.stack([stdev_of(torch.cat(row)) for row in rows])[:, None, None]

    def append(self, patches):
        self.rows = [row + list(new) for row, new in zip(self.rows, patches)]

    def rollback(self, lengths):
        self.rows = [row[:N + length] for row, length in
                     zip(self.rows, [lengths] * len(self.rows) if isinstance(lengths, int) else lengths.tolist())]

    def select(self, rows):
        self.rows, self.unit = [self.rows[row] for row in rows.tolist()], self.unit[rows]

    def fan_out(self, samples):
        self.select(torch.arange(len(self.rows)).repeat_interleave(samples))

    def predict(self, newest):
        answers = [[self.model.next_patch(row[:len(row) - back]) for back in range(newest - 1, -1, -1)]
                   for row in self.rows]
        mean, logvar, scale = (None if answers[0][0][part] is None else
                               torch.stack([torch.stack([each[part].view(-1, C) for each in row]) for row in answers])
                               for part in range(3))
        return Prediction(mean, logvar, scale, self.unit)


def both(answer):
    return answer if isinstance(answer, tuple) else (answer, None)


def stdev_of(steps):
    return torch.sqrt(steps.var(dim=0, unbiased=False) + 1e-5)
