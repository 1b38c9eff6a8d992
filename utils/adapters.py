"""Adapters that make a model written without this package decodable.

`FromForward` wraps a function from a window to its next patch, and re-encodes a window for every prediction.
`FromCache` wraps one step of a model whose past can be cropped to a length: keys and values, or one hidden state per
patch. Both predict one patch ahead, and take what longer heads of the model say of later ones as `ahead`, from which
`decode_speculative` can propose without a draft; `docs/YOUR_MODEL.md` has examples.

Shapes: B rows, N tokens of context, k tokens of a step, P steps per patch, T per token, C variables, A patches ahead;
data units. A token is a patch unless `token_len` says that a patch has several: such a model reads T steps at a time,
predicts P, and takes a context of any number of tokens.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .buffers import cut, each_row, read_at, repeated, with_room, write_after
from .interface import Decodable, Prediction
from .window_state import WindowState

# means; with log-variances; and with what longer heads say
Answer = torch.Tensor | tuple[torch.Tensor, torch.Tensor | None] | \
    tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]
Parts = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
VARIANCE_FLOOR = 1e-5  # variance of a constant window


class FromForward(Decodable):
    """Makes a function from a window [B, L, C] to its next patch [B, P, C] decodable, data units in and out.

    The window slides: the function always sees the newest L steps, L being the length of the context. It may be called
    several times per prediction, each time with some of the windows. A stochastic draft returns (mean, logvar), both
    [B, P, C], with the log-variance in data units too.
    heads_ahead: A patches after the next one of which the function speaks too: it returns (mean, logvar or None,
    ahead), ahead [B, A, P, C].
    token_len: L has to be a multiple of it (None: of the patch).
    unit and scale are the standard deviation of the window, per variable.

    `start` raises ValueError if the context is not [B, L, C] or L is not a multiple of the token; decoding raises it
    if next_patch returns anything other than the above.
    """

    patches_ahead = 1

    def __init__(self, next_patch: Callable[[torch.Tensor], Answer], patch_len: int, heads_ahead: int = 0,
                 token_len: int | None = None):
        self.next_patch, self.patch_len = next_patch, checked_patch_len(patch_len)
        self.token_len = checked_token_len(token_len, patch_len)
        self.heads_ahead = checked_heads_ahead(heads_ahead)

    def start(self, context: torch.Tensor, room: int) -> WindowState:
        return WindowState(self, in_tokens(context, self.token_len, self.patch_len), room)

    def predict_windows(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Windows [b, N, T, C] -> mean and logvar (or None) [b, 1 + A, P, C], stdev [b, 1, C]."""
        window = windows.flatten(1, 2)
        wanted = torch.Size((len(window), self.patch_len, window.shape[2]))
        mean, logvar, ahead = parts_of(self.next_patch(window), wanted, window.dtype, "next_patch", self.heads_ahead)
        mean, logvar = mean[:, None], None if logvar is None else logvar[:, None]
        if ahead is not None:  # a log-variance of theirs is not known, and not asked for
            mean = torch.cat([mean, ahead], dim=1)
            logvar = None if logvar is None else logvar.expand(-1, 1 + self.heads_ahead, -1, -1)
        return mean, logvar, stdev_of(windows)[:, 0]

    def unit_of(self, context: torch.Tensor) -> torch.Tensor:
        return stdev_of(context)


class FromCache(Decodable):
    """Makes a causal model with a cache decodable. It sees the whole past, context and forecast; no window slides.

    step(tokens [B, k, T, C], cache) -> [B, k, P, C]: the predictions of the P steps AFTER each of the k new tokens,
        given what the cache holds; adds the k tokens to the cache in place. May return (mean, logvar), the log-variance
        in data units (in normalised ones with `normalise`). A prediction must not depend on later tokens of the same
        step. With `heads_ahead` A it returns (mean, logvar or None, ahead), ahead [B, k, A, P, C]: what longer heads
        say, after each of the k tokens, of the A patches after the predicted one.
    new_cache() -> an empty cache.
    crop(cache, length): keep only the first `length` tokens of every row; returns the cache, or None if it was cropped
        in place. A token is a patch, unless `token_len` says otherwise; where the model has several of its own for
        each, multiply. Never called with length 0, nor if there is nothing to drop.
    select(cache, rows): keep these rows [b] (indices, possibly repeated), in this order; returns the cache, or None.
        Without it a finished row stays in the cache's batch as padding, and the context is encoded once per sample
        instead of once per window.
    normalise: step sees (tokens - mean) / stdev, and its outputs are denormalised. The statistics are those of the
        context, FROZEN along the forecast, as a cache requires. Otherwise step works in data units.

    The cache has one length for all rows, see `LockstepState`. unit and scale are the standard deviation of the
    context, per variable, with and without `normalise`.

    token_len: T, a divisor of the patch, for a model that predicts more steps than it reads at once (None: the patch).

    `start` raises ValueError if the context is not [B, L, C] or L is not a multiple of the token; decoding raises it
    if step returns anything other than the above.
    """

    patches_ahead = 1

    def __init__(self, step: Callable[[torch.Tensor, Any], Answer], patch_len: int, new_cache: Callable[[], Any],
                 crop: Callable[[Any, int], Any], select: Callable[[Any, torch.Tensor], Any] | None = None,
                 normalise: bool = False, heads_ahead: int = 0, token_len: int | None = None):
        self.step, self.patch_len, self.new_cache = step, checked_patch_len(patch_len), new_cache
        self.token_len = checked_token_len(token_len, patch_len)
        self.crop, self.select, self.normalise = crop, select, normalise
        self.heads_ahead = checked_heads_ahead(heads_ahead)

    def start(self, context: torch.Tensor, room: int) -> LockstepState:
        return LockstepState(self, in_tokens(context, self.token_len, self.patch_len), room)


class LockstepState:
    """Decode state over a cache that has ONE length for all rows, while the rows of the batch differ in length.

    The cache holds `held` tokens of every row, of which the first `known` [B] are valid. A pass crops the cache to the
    smallest `known` and encodes from there to the end of the longest row. A row that is ahead re-encodes its surplus,
    to the same values; a shorter row is padded with its last token (a valid one: masked NaNs would still spoil a sum).
    Nothing attends to the padding: the model is causal, and the next pass crops before it. So all rows have the same
    positions, and the model needs no masks.

    One host synchronisation per round and model, for the row lengths: after a rollback only the device knows them.
    """

    def __init__(self, model: FromCache, context: torch.Tensor, room: int):
        """context [B, N, T, C]"""
        N = context.shape[1]
        self.model, self.context_tokens = model, N
        self.in_patch = model.patch_len // model.token_len  # tokens
        self.series = with_room(context, room * self.in_patch)
        self.lengths = torch.zeros(len(context), dtype=torch.long, device=context.device)  # tokens after the context
        self.unit = stdev_of(context)
        # kept apart from `unit`: the decoder overwrites that of the draft's state with the target's
        self.mean, self.stdev = context.mean(dim=(1, 2), keepdim=True), self.unit
        self.cache, self.held = model.new_cache(), 0
        self.known = torch.zeros_like(self.lengths)
        # smallest `known`, end of the shortest and of the longest row; None: only the device knows
        self.bounds: tuple[int, int, int] | None = (0, N, N)
        # for a model without select: the cache row of each row (None: the same), and the inverse map
        self.slots: torch.Tensor | None = None
        self.feeds: torch.Tensor | None = None

    @property
    def ends(self) -> torch.Tensor:
        """Tokens of each row, context included: [B]."""
        return self.context_tokens + self.lengths

    def append(self, patches: torch.Tensor) -> None:
        k = patches.shape[1] * self.in_patch
        write_after(self.series, self.ends, cut(patches, self.model.token_len))
        self.lengths = self.lengths + k
        if self.bounds is not None:
            known, shortest, longest = self.bounds
            self.bounds = known, shortest + k, longest + k

    def rollback(self, lengths: torch.Tensor | int) -> None:
        lengths = lengths * self.in_patch
        if isinstance(lengths, int) and self.bounds is not None:
            end = self.context_tokens + lengths
            self.bounds = min(self.bounds[0], end), end, end
        else:
            self.bounds = None
        self.lengths = each_row(lengths, self.lengths)
        self.known = torch.minimum(self.known, self.ends)

    def select(self, rows: torch.Tensor) -> None:
        width = len(self.lengths) if self.feeds is None else len(self.feeds)
        self._keep(rows)
        if not self.held:
            return
        if self.model.select is not None:
            self.cache = self._replaced(self.model.select(self.cache, rows))
            return
        self.slots = rows if self.slots is None else self.slots[rows]
        self.feeds = torch.zeros(width, dtype=torch.long, device=rows.device)  # a finished row is fed the first row
        self.feeds[self.slots] = torch.arange(len(rows), device=rows.device)

    def fan_out(self, samples: int) -> None:
        rows = repeated(len(self.lengths), samples, self.lengths.device)
        if self.model.select is None:
            self._go_back(0)
            self.known = torch.zeros_like(self.known)
            self._keep(rows)
            return
        known, _, longest = self._bounds()
        if known < longest:
            self.predict(1)
        self.select(rows)

    def predict(self, newest: int) -> Prediction:
        known, shortest, longest = self._bounds()
        back = torch.arange(-(newest - 1) * self.in_patch, 1, self.in_patch, device=self.series.device)
        begin = min(known, shortest - (newest - 1) * self.in_patch - 1)  # before `known` if less is new than asked for
        if begin < 0:
            raise ValueError(f"cannot make {newest} predictions for a row with {shortest // self.in_patch} patches")
        self._go_back(begin)
        ends = self.ends
        times = torch.arange(begin, longest, device=ends.device).expand(len(ends), -1)
        mean, logvar, ahead = self._step(read_at(self.series, times.minimum(ends[:, None] - 1)))
        self.held, self.known, self.bounds = longest, ends, (shortest, shortest, longest)

        at = ends[:, None] - begin - 1 + back
        mean = read_at(mean, at)
        logvar, ahead = (None if part is None else read_at(part, at) for part in (logvar, ahead))
        if self.model.normalise:
            mean = mean * self.stdev + self.mean
            logvar = None if logvar is None else logvar + 2 * self.stdev.log()
            ahead = None if ahead is None else ahead * self.stdev[:, None] + self.mean[:, None]
        return Prediction(mean, logvar, self.stdev.expand(-1, newest, -1, -1), self.unit, ahead)

    def _step(self, tokens: torch.Tensor) -> Parts:
        model = self.model
        if model.normalise:
            tokens = (tokens - self.mean) / self.stdev
        if self.feeds is not None:
            tokens = tokens[self.feeds]
        wanted = torch.Size((*tokens.shape[:2], model.patch_len, tokens.shape[3]))
        parts = parts_of(model.step(tokens, self.cache), wanted, tokens.dtype, "step", model.heads_ahead)
        if self.slots is None:
            return parts
        mean, logvar, ahead = (None if part is None else part[self.slots] for part in parts)
        assert mean is not None
        return mean, logvar, ahead

    def _bounds(self) -> tuple[int, int, int]:
        if self.bounds is None:
            known, shortest, longest = torch.stack([self.known.min(), self.ends.min(), self.ends.max()]).tolist()
            self.bounds = known, shortest, longest
        return self.bounds

    def _go_back(self, length: int) -> None:
        """Crops the cache to its first `length` tokens."""
        if length == self.held:
            return
        if length:
            self.cache = self._replaced(self.model.crop(self.cache, length))
        else:  # a new cache holds the remaining rows only
            self.cache, self.slots, self.feeds = self.model.new_cache(), None, None
        self.held = length

    def _replaced(self, cache: Any) -> Any:
        return self.cache if cache is None else cache

    def _keep(self, rows: torch.Tensor) -> None:
        """Keeps these rows of everything but the cache."""
        self.series, self.lengths, self.known = self.series[rows], self.lengths[rows], self.known[rows]
        self.unit, self.mean, self.stdev = self.unit[rows], self.mean[rows], self.stdev[rows]
        self.bounds = None


def stdev_of(tokens: torch.Tensor) -> torch.Tensor:
    """The standard deviation of windows [B, N, T, C], per variable: [B, 1, 1, C]."""
    return (tokens.var(dim=(1, 2), unbiased=False, keepdim=True) + VARIANCE_FLOOR).sqrt()


def checked_patch_len(patch_len: int) -> int:
    if patch_len < 1:
        raise ValueError(f"patch_len is {patch_len}, but must be at least 1")
    return patch_len


def checked_token_len(token_len: int | None, patch_len: int) -> int:
    if token_len is None:
        return patch_len
    if token_len < 1 or patch_len % token_len:
        raise ValueError(f"token_len is {token_len}, but must divide the patch of {patch_len} steps")
    return token_len


def checked_heads_ahead(heads_ahead: int) -> int:
    if heads_ahead < 0:
        raise ValueError(f"heads_ahead is {heads_ahead}, but must be at least 0")
    return heads_ahead


def in_tokens(context: torch.Tensor, token_len: int, patch_len: int) -> torch.Tensor:
    """context [B, L, C] -> [B, N, T, C]"""
    if context.dim() != 3 or not context.is_floating_point():
        raise ValueError(f"the context is {context.dtype} {list(context.shape)}, but must be floating point [B, L, C]")
    steps, name = context.shape[1], "patch" if token_len == patch_len else "token"
    if steps == 0 or steps % token_len:
        raise ValueError(f"the context has {steps} steps, which is not a multiple of the {name}, {token_len} steps")
    return context.unflatten(1, (-1, token_len))


def parts_of(answer: object, wanted: torch.Size, dtype: torch.dtype, name: str, heads_ahead: int = 0) -> Parts:
    """Mean, logvar (or None) and ahead (or None) from the return value of a model, in this dtype.

    Mean and logvar have the shape that is wanted [..., P, C], ahead that of [..., heads_ahead, P, C].
    """
    several = isinstance(answer, tuple) and len(answer) == (3 if heads_ahead else 2)
    if heads_ahead and not several:
        raise ValueError(f"{name} must return (mean, logvar or None, ahead), as heads_ahead is {heads_ahead}")
    mean, logvar, ahead = (*answer, None)[:3] if isinstance(answer, tuple) and several else (answer, None, None)
    longer = torch.Size((*wanted[:-2], heads_ahead, *wanted[-2:]))

    def checked(part: object, what: str, shape: torch.Size) -> torch.Tensor:
        if not isinstance(part, torch.Tensor):
            raise ValueError(f"{name} returned a {type(part).__name__} as {what}, not a tensor {list(shape)}")
        if part.shape != shape:
            raise ValueError(f"{name} returned {what} {list(part.shape)}, but must return {list(shape)}")
        return part.to(dtype)
    return (checked(mean, "means", wanted),
            None if logvar is None else checked(logvar, "log-variances", wanted),
            checked(ahead, "patches ahead", longer) if heads_ahead else None)
