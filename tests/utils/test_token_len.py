"""Models that read tokens of T steps and predict patches of more: adapters against plain calls over whole series."""
import pytest
import torch
from foreign_models import Attention, KeysAndValues, weights
from helpers import any_order_of_calls

from utils.acceptance import Tolerance
from utils.adapters import FromCache, FromForward
from utils.speculative_decoder import decode_alone, decode_parareal, decode_speculative, patches_in

T, P, C = 2, 6, 2
HORIZON = 4 * P + 1


class Tokens(Attention):
    """Attention over tokens of T steps; after each it predicts the next P steps, and A patches after them."""

    def __init__(self, noise=0.0, ahead=0):
        super().__init__(noise)
        self.ahead = ahead
        self.into, self.place = (weights(seed, *shape) + noise * weights(seed + 10, *shape)
                                 for seed, shape in [(31, (T * C, 8)), (32, (80, 8))])
        self.heads = weights(33, 8, (1 + ahead) * P * C) + noise * weights(34, 8, (1 + ahead) * P * C)

    def step(self, tokens, cache):
        assert tokens.shape[2:] == (T, C)
        tokens, before = tokens.flatten(2) @ self.into, cache.get_seq_length()
        k = tokens.shape[1]
        tokens = tokens + self.place[before:before + k]
        keys, values = cache.update(tokens @ self.key, tokens @ self.value)
        later = torch.ones(k, before + k).triu(before + 1).bool()
        scores = (tokens @ self.query @ keys.transpose(1, 2)).masked_fill(later, float("-inf"))
        made = torch.tanh(scores.softmax(dim=2) @ values + tokens) @ self.heads
        made = made.unflatten(2, (1 + self.ahead, P, C))
        return (made[:, :, 0], None, made[:, :, 1:]) if self.ahead else made[:, :, 0]

    def next_patch(self, window):
        """[B, L, C] -> [B, P, C]"""
        made = self.step(window.unflatten(1, (-1, T)), KeysAndValues())
        return made[0][:, -1] if self.ahead else made[:, -1]


def cached(toy, select=True, **more):
    return FromCache(toy.step, P, KeysAndValues, toy.crop, toy.select if select else None, token_len=T,
                     heads_ahead=toy.ahead, **more)


def contexts(rows, steps, variables=C, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, steps, variables, generator=generator, dtype=torch.float64) \
        * torch.linspace(0.3, 2, rows, dtype=torch.float64)[:, None, None]


def rolled(next_patch, context, window=None):
    """Plain autoregression by whole calls; window: steps that are seen."""
    series = context
    for _ in range(patches_in(HORIZON, P)):
        series = torch.cat([series, next_patch(series if window is None else series[:, -window:])], dim=1)
    return series[:, context.shape[1]:][:, :HORIZON]


@pytest.mark.parametrize("steps", [2 * P, 2 * P + T, 2 * T, T])
def test_a_context_may_be_any_number_of_tokens(steps):
    toy, context = Tokens(), contexts(3, steps)
    torch.testing.assert_close(decode_alone(cached(toy), context, HORIZON), rolled(toy.next_patch, context))
    sliding = FromForward(toy.next_patch, P, token_len=T)
    torch.testing.assert_close(decode_alone(sliding, context, HORIZON), rolled(toy.next_patch, context, steps))


def test_statistics_of_the_context_stay_as_they_are():
    toy, context = Tokens(), 5 + 3 * contexts(2, 2 * P + T)
    mean, stdev = context.mean(1, keepdim=True), (context.var(1, correction=0, keepdim=True) + 1e-5).sqrt()

    def normalised(series):
        return toy.next_patch((series - mean) / stdev) * stdev + mean
    torch.testing.assert_close(decode_alone(cached(toy, normalise=True), context, HORIZON),
                               rolled(normalised, context))


@pytest.mark.parametrize("adapted", [cached, lambda toy: cached(toy, select=False),
                                     lambda toy: FromForward(toy.next_patch, P, token_len=T)])
def test_rows_of_a_batch_are_what_they_are_alone(adapted):
    target, draft, context = adapted(Tokens()), adapted(Tokens(0.4)), contexts(5, 2 * P + T)
    together = decode_speculative(target, draft, context, HORIZON, Tolerance(0.35))
    assert len(set(together.target_passes.tolist())) > 1, "the batch is not ragged"
    for row in range(5):
        alone = decode_speculative(target, draft, context[row:row + 1], HORIZON, Tolerance(0.35))
        torch.testing.assert_close(together.forecast[row], alone.forecast[0])
        assert torch.equal(together.origin[row], alone.origin[0])
    for exact in (decode_speculative(target, draft, context, HORIZON, Tolerance(0.0)),
                  decode_parareal(target, draft, context, HORIZON, passes=5)):
        torch.testing.assert_close(exact.forecast, decode_alone(target, context, HORIZON))


def test_longer_heads_of_such_a_model_are_its_draft():
    toy, context = Tokens(ahead=3), contexts(4, P + T)
    model = cached(toy)
    expected = rolled(toy.next_patch, context)
    strict = decode_speculative(model, None, context, HORIZON, Tolerance(0.0))
    torch.testing.assert_close(strict.forecast, expected)
    forced = decode_speculative(model, None, context, HORIZON, Tolerance(1e6))
    heads = toy.step(context.unflatten(1, (-1, T)), KeysAndValues())[2][:, -1].flatten(1, 2)
    torch.testing.assert_close(forced.draft_mean[:, P:4 * P], heads)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_calls_gives_what_whole_calls_give(seed):
    toy = Tokens()

    def check(row, mean, ahead, histories):
        expected = [toy.next_patch(history[None])[0] for history in histories]
        torch.testing.assert_close(mean, torch.stack(expected))
    assert any_order_of_calls(cached(toy, select=seed % 2 == 0), contexts(3, P + T, seed=seed), contexts, seed,
                              check) > 1


# --- what is refused

@pytest.mark.parametrize("token_len", [0, -1, 4, 7])
def test_a_token_that_does_not_divide_the_patch_is_refused(token_len):
    with pytest.raises(ValueError, match=f"token_len is {token_len}, but must divide the patch of 6 steps"):
        FromForward(Tokens().next_patch, P, token_len=token_len)
    with pytest.raises(ValueError, match="token_len"):
        FromCache(Tokens().step, P, KeysAndValues, Tokens.crop, token_len=token_len)


def test_a_context_that_is_no_multiple_of_the_token_is_refused():
    with pytest.raises(ValueError, match="9 steps, which is not a multiple of the token, 2 steps"):
        decode_alone(cached(Tokens()), contexts(1, 9), HORIZON)


def test_a_step_that_answers_once_a_patch_is_refused():
    model = FromCache(lambda tokens, cache: tokens.new_zeros(len(tokens), 1, P, C), P, KeysAndValues, Tokens.crop,
                      token_len=T)
    with pytest.raises(ValueError, match=r"step returned means \[1, 1, 6, 2\], but must return \[1, 4, 6, 2\]"):
        decode_alone(model, contexts(1, P + T), HORIZON)
