"""Adapters that make a model written without this package decodable.

`FromForward` wraps a function from a window to its next patch, and re-encodes a window for every prediction.
`FromCache` wraps one step of a model whose past can be cropped to a length: keys and values, or one hidden state per
patch. Both predict one patch ahead, and take what longer heads of the model say of later ones as `ahead`, from which
`decode_speculative` can propose without a draft; `docs/YOUR_MODEL.md` has examples.

Shapes: B rows, N patches of context, k patches of a step, P steps per patch, C variables, A patches ahead; data units.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .buffers import each_row, read_at, repeated, with_room, write_after
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
    unit and scale are the standard deviation of the window, per variable.

    `start` raises ValueError if the context is not [B, L, C] or L is not a multiple of the patch; decoding raises it
    if next_patch returns anything other than the above.
    """

    patches_ahead = 1

    def __init__(self, next_patch: Callable[[torch.Tensor], Answer], patch_len: int, heads_ahead: int = 0):
        self.next_patch, self.patch_len = next_patch, checked_patch_len(patch_len)
        self.heads_ahead = checked_heads_ahead(heads_ahead)

    def start(self, context: torch.Tensor, room: int) -> WindowState:
        return WindowState(self, in_patches(context, self.patch_len), room)

    def predict_windows(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Windows [b, N, P, C] -> mean and logvar (or None) [b, 1 + A, P, C], stdev [b, 1, C]."""
        answer = self.next_patch(windows.flatten(1, 2))
        mean, logvar, ahead = parts_of(answer, windows[:, 0], "next_patch", self.heads_ahead)
        mean, logvar = mean[:, None], None if logvar is None else logvar[:, None]
        if ahead is not None:  # a log-variance of theirs is not known, and not asked for
            mean = torch.cat([mean, ahead], dim=1)
            logvar = None if logvar is None else logvar.expand(-1, 1 + self.heads_ahead, -1, -1)
        return mean, logvar, stdev_of(windows)[:, 0]

    def unit_of(self, context: torch.Tensor) -> torch.Tensor:
        return stdev_of(context)


class FromCache(Decodable):
    """Makes a causal model with a cache decodable. It sees the whole past, context and forecast; no window slides.

    step(patches [B, k, P, C], cache) -> [B, k, P, C]: the predictions AFTER each of the k new patches, given what the
        cache holds; adds the k patches to the cache in place. May return (mean, logvar), the log-variance in data
        units (in normalised ones with `normalise`). A prediction must not depend on later patches of the same step.
        With `heads_ahead` A it returns (mean, logvar or None, ahead), ahead [B, k, A, P, C]: what longer heads say,
        after each of the k patches, of the A patches after the predicted one.
    new_cache() -> an empty cache.
    crop(cache, length): keep only the first `length` patches of every row; returns the cache, or None if it was
        cropped in place. length counts PATCHES: with several tokens per patch, multiply. Never called with length 0,
        nor if there is nothing to drop.
    select(cache, rows): keep these rows [b] (indices, possibly repeated), in this order; returns the cache, or None.
        Without it a finished row stays in the cache's batch as padding, and the context is encoded once per sample
        instead of once per window.
    normalise: step sees (patches - mean) / stdev, and its outputs are denormalised. The statistics are those of the
        context, FROZEN along the forecast, as a cache requires. Otherwise step works in data units.

    The cache has one length for all rows, see `LockstepState`. unit and scale are the standard deviation of the
    context, per variable, with and without `normalise`.

    `start` raises ValueError if the context is not [B, L, C] or L is not a multiple of the patch; decoding raises it
    if step returns anything other than the above.
    """

    patches_ahead = 1

    def __init__(self, step: Callable[[torch.Tensor, Any], Answer], patch_len: int, new_cache: Callable[[], Any],
                 crop: Callable[[Any, int], Any], select: Callable[[Any, torch.Tensor], Any] | None = None,
                 normalise: bool = False, heads_ahead: int = 0):
        self.step, self.patch_len, self.new_cache = step, checked_patch_len(patch_len), new_cache
        self.crop, self.select, self.normalise = crop, select, normalise
        self.heads_ahead = checked_heads_ahead(heads_ahead)

    def start(self, context: torch.Tensor, room: int) -> LockstepState:
        return LockstepState(self, in_patches(context, self.patch_len), room)


class LockstepState:
    """Decode state over a cache that has ONE length for all rows, while the rows of the batch differ in length.

    The cache holds `held` patches of every row, of which the first `known` [B] are valid. A pass crops the cache to the
    smallest `known` and encodes from there to the end of the longest row. A row that is ahead re-encodes its surplus,
    to the same values; a shorter row is padded with its last patch (a valid one: masked NaNs would still spoil a sum).
    Nothing attends to the padding: the model is causal, and the next pass crops before it. So all rows have the same
    positions, and the model needs no masks.

    One host synchronisation per round and model, for the row lengths: after a rollback only the device knows them.
    """

    def __init__(self, model: FromCache, context: torch.Tensor, room: int):
        """context [B, N, P, C]"""
        N = context.shape[1]
        self.model, self.context_patches = model, N
        self.series = with_room(context, room)
        self.lengths = torch.zeros(len(context), dtype=torch.long, device=context.device)
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
        """Patches of each row, context included: [B]."""
        return self.context_patches + self.lengths

    def append(self, patches: torch.Tensor) -> None:
        k = patches.shape[1]
        write_after(self.series, self.ends, patches)
        self.lengths = self.lengths + k
        if self.bounds is not None:
            known, shortest, longest = self.bounds
            self.bounds = known, shortest + k, longest + k

    def rollback(self, lengths: torch.Tensor | int) -> None:
        if isinstance(lengths, int) and self.bounds is not None:
            end = self.context_patches + lengths
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
        begin = min(known, shortest - newest)  # before `known` if there are more predictions than new patches
        if begin < 0:
            raise ValueError(f"cannot make {newest} predictions for a row with {shortest} patches")
        self._go_back(begin)
        ends = self.ends
        times = torch.arange(begin, longest, device=ends.device).expand(len(ends), -1)
        patches = read_at(self.series, times.minimum(ends[:, None] - 1))
        mean, logvar, ahead = self._step(patches)
        self.held, self.known, self.bounds = longest, ends, (shortest, shortest, longest)

        at = ends[:, None] - begin + torch.arange(-newest, 0, device=ends.device)
        mean = read_at(mean, at)
        logvar, ahead = (None if part is None else read_at(part, at) for part in (logvar, ahead))
        if self.model.normalise:
            mean = mean * self.stdev + self.mean
            logvar = None if logvar is None else logvar + 2 * self.stdev.log()
            ahead = None if ahead is None else ahead * self.stdev[:, None] + self.mean[:, None]
        return Prediction(mean, logvar, self.stdev.expand(-1, newest, -1, -1), self.unit, ahead)

    def _step(self, patches: torch.Tensor) -> Parts:
        if self.model.normalise:
            patches = (patches - self.mean) / self.stdev
        if self.slots is None or self.feeds is None:
            return parts_of(self.model.step(patches, self.cache), patches, "step", self.model.heads_ahead)
        patches = patches[self.feeds]
        mean, logvar, ahead = parts_of(self.model.step(patches, self.cache), patches, "step", self.model.heads_ahead)
        logvar, ahead = (None if part is None else part[self.slots] for part in (logvar, ahead))
        return mean[self.slots], logvar, ahead

    def _bounds(self) -> tuple[int, int, int]:
        if self.bounds is None:
            known, shortest, longest = torch.stack([self.known.min(), self.ends.min(), self.ends.max()]).tolist()
            self.bounds = known, shortest, longest
        return self.bounds

    def _go_back(self, length: int) -> None:
        """Crops the cache to its first `length` patches."""
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


def stdev_of(patches: torch.Tensor) -> torch.Tensor:
    """The standard deviation of windows [B, N, P, C], per variable: [B, 1, 1, C]."""
    return (patches.var(dim=(1, 2), unbiased=False, keepdim=True) + VARIANCE_FLOOR).sqrt()


def checked_patch_len(patch_len: int) -> int:
    if patch_len < 1:
        raise ValueError(f"patch_len is {patch_len}, but must be at least 1")
    return patch_len


def checked_heads_ahead(heads_ahead: int) -> int:
    if heads_ahead < 0:
        raise ValueError(f"heads_ahead is {heads_ahead}, but must be at least 0")
    return heads_ahead


def in_patches(context: torch.Tensor, patch_len: int) -> torch.Tensor:
    """context [B, L, C] -> [B, N, P, C]"""
    if context.dim() != 3 or not context.is_floating_point():
        raise ValueError(f"the context is {context.dtype} {list(context.shape)}, but must be floating point [B, L, C]")
    steps = context.shape[1]
    if steps == 0 or steps % patch_len:
        raise ValueError(f"the context has {steps} steps, which is not a multiple of the patch, {patch_len} steps")
    return context.unflatten(1, (-1, patch_len))


def parts_of(answer: object, like: torch.Tensor, name: str, heads_ahead: int = 0) -> Parts:
    """Mean, logvar (or None) and ahead (or None) from the return value of a model, in the dtype of `like`.

    Mean and logvar have the shape of `like` [..., P, C], ahead that of [..., heads_ahead, P, C].
    """
    several = isinstance(answer, tuple) and len(answer) == (3 if heads_ahead else 2)
    if heads_ahead and not several:
        raise ValueError(f"{name} must return (mean, logvar or None, ahead), as heads_ahead is {heads_ahead}")
    mean, logvar, ahead = (*answer, None)[:3] if isinstance(answer, tuple) and several else (answer, None, None)
    longer = torch.Size((*like.shape[:-2], heads_ahead, *like.shape[-2:]))

    def checked(part: object, what: str, shape: torch.Size) -> torch.Tensor:
        if not isinstance(part, torch.Tensor):
            raise ValueError(f"{name} returned a {type(part).__name__} as {what}, not a tensor {list(shape)}")
        if part.shape != shape:
            raise ValueError(f"{name} returned {what} {list(part.shape)}, but must return {list(shape)}")
        return part.to(like.dtype)
    return (checked(mean, "means", like.shape),
            None if logvar is None else checked(logvar, "log-variances", like.shape),
            checked(ahead, "patches ahead", longer) if heads_ahead else None)
