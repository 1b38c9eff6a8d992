"""The cache implementation of the decoding interface against full passes over the series as it stands."""
import numpy as np
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.timer_xl import reference_forward

CAUSAL = {"norm_mode": "causal", "norm_window": 3}
CONTEXT = 4  # patches, more than the trailing window


def random_patches(rows, count, variables, seed):
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(rows, count * PATCH, variables, generator=generator).cumsum(1).unflatten(1, (count, PATCH))


def whole_pass(model, history, newest):
    """What one pass over history [T, P, C] says after its last `newest` patches."""
    out = model(history.flatten(0, 1)[None])
    return (out[0] if isinstance(out, tuple) else out).unflatten(1, (-1, PATCH))[0, -newest:]


# an operation on the state: what to do, and a number that decides how far
KINDS = ["extend", "append", "roll back", "roll all back", "select", "fan out"]
operations = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6)), min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps=operations, rows=st.integers(1, 4), variables=st.integers(1, 3))
def test_any_sequence_of_operations_equals_a_whole_pass(steps, rows, variables):
    model = tiny_target(**CAUSAL)
    room = 30
    with torch.inference_mode():
        context = random_patches(rows, CONTEXT, variables, seed=1)
        state = model.start(context.flatten(1, 2), room)
        histories = list(context)
        for number, (kind, choice) in enumerate(steps):
            lengths = [len(history) - CONTEXT for history in histories]
            if kind == "append":
                new = random_patches(len(histories), 1 + choice % 2, variables, seed=number)
                state.append(new)
                histories = [torch.cat(pair) for pair in zip(histories, new)]
            elif kind == "roll back":
                kept = [choice * (row + 3) % (length + 1) for row, length in enumerate(lengths)]
                state.rollback(torch.tensor(kept))
                histories = [history[:CONTEXT + k] for history, k in zip(histories, kept)]
            elif kind == "roll all back":
                kept = choice % (min(lengths) + 1)
                state.rollback(kept)
                histories = [history[:CONTEXT + kept] for history in histories]
            elif kind == "select" and len(histories) > 1:
                dropped = choice % len(histories)
                going = [row for row in range(len(histories)) if row != dropped]
                state.select(torch.tensor(going))
                histories = [histories[row] for row in going]
            elif kind == "fan out" and len(histories) <= 4:
                model.fan_out(state, 2)
                histories = [history for history in histories for _ in range(2)]
            elif kind == "extend":
                k = choice % 4
                new = random_patches(len(histories), max(k, 1), variables, seed=number)
                prediction = model.extend(state, new if k else None)
                if k:
                    histories = [torch.cat(pair) for pair in zip(histories, new)]
                for row, history in enumerate(histories):
                    torch.testing.assert_close(prediction.mean[row], whole_pass(model, history, k + 1), atol=1e-4,
                                               rtol=1e-5)
                    newest = history[-model.config.norm_window:].flatten(0, 1)
                    scale = torch.sqrt(newest.var(0, unbiased=False) + 1e-5)
                    torch.testing.assert_close(prediction.scale[row, -1, 0], scale)
        assert state.lengths.tolist() == [len(history) - CONTEXT for history in histories]


@pytest.mark.parametrize("kept", [[0], [0, 0, 0], [3, 0, 5]])
def test_what_was_appended_and_taken_back_unseen_leaves_no_trace(kept):
    """More patches are pending than a row holds, before and after the first pass."""
    rows = len(kept)
    model, histories = tiny_target(**CAUSAL), list(random_patches(rows, CONTEXT, 2, seed=1))
    with torch.inference_mode():
        state = model.start(torch.stack(histories).flatten(1, 2), room=20)
        for start in range(2):
            new = random_patches(rows, 5, 2, seed=2 + start)
            state.append(new)
            state.rollback(state.lengths - 5 + torch.tensor(kept))
            histories = [torch.cat([history, patches[:k]]) for history, patches, k in zip(histories, new, kept)]
            prediction = model.extend(state)
            for row in range(rows):
                torch.testing.assert_close(prediction.mean[row], whole_pass(model, histories[row], 1), atol=1e-5,
                                           rtol=1e-5)


@pytest.mark.parametrize("use_norm", [False, True])
def test_the_cache_of_a_window_model_freezes_the_statistics(series, use_norm):
    """Without normalisation nothing is frozen and the cache is exact."""
    model, x = tiny_target(use_norm=use_norm), series(rows=2, length=7 * PATCH)
    model.rolling = "cache"
    with torch.inference_mode():
        state = model.start(x[:, :5 * PATCH], room=2)
        got = [model.extend(state).mean[:, 0]]
        got += list(model.extend(state, x[:, 5 * PATCH:].unflatten(1, (2, PATCH))).mean[:, 1:].unbind(1))
    for row in range(2):
        context = x[row, :5 * PATCH]
        mean, stdev = (context.mean(0), torch.sqrt(context.var(0, unbiased=False) + 1e-5)) if use_norm else (0, 1)
        plain = tiny_target(use_norm=False)
        plain.load_state_dict(model.state_dict())
        slow = reference_forward(plain, ((x[row] - mean) / stdev).double().numpy(), stride=5)[0]
        for patch, position in zip(got, (4, 5, 6)):
            expected = slow[position] * np.asarray(stdev) + np.asarray(mean)
            np.testing.assert_allclose(patch[row].numpy(), expected, atol=1e-5)


def test_the_first_extend_is_one_pass_over_context_and_proposals(series, monkeypatch):
    model, x = tiny_target(**CAUSAL), series(length=7 * PATCH)
    tokens = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda patches, stats: tokens.append(patches.shape[1]) or embed(patches, stats))
    with torch.inference_mode():
        state = model.start(x[:, :5 * PATCH], room=4)
        model.extend(state, x[:, 5 * PATCH:].unflatten(1, (2, PATCH)))
        assert tokens == [7]
        state.rollback(torch.tensor([0, 1, 2, 0, 1, 2]))
        state.append(x[:, :PATCH][:, None])
        model.extend(state)
    assert tokens == [7, 1]


def test_a_row_that_goes_back_with_the_others_encodes_nothing_twice(series, monkeypatch):
    model, x = tiny_target(**CAUSAL), series(length=7 * PATCH)
    tokens, embed, patch = [], model.embed, x[:, :PATCH][:, None]
    monkeypatch.setattr(model, "embed", lambda patches, stats: tokens.append(patches.shape[1]) or embed(patches, stats))
    with torch.inference_mode():
        state = model.start(x[:, :5 * PATCH], room=4)
        model.extend(state, patch)
        for length, patches in ((2, 1), (1, 1), (0, 2)):  # what was not encoded is forgotten, the rest is still known
            state.append(patch)
            state.rollback(min(length, 1))
            for _ in range(patches):
                state.append(patch)
            model.extend(state)
    assert tokens == [6, 1, 1, 2]


def test_what_a_layer_keeps_for_later_passes_follows_its_weights(series):
    """In inference mode a layer keeps its attention bias: new weights, or another number of variables, renew it."""
    model, x = tiny_target(**CAUSAL), series()

    def said(x):
        with torch.inference_mode():
            return model.extend(model.start(x, room=1)).mean

    def fresh(x):
        other = tiny_target(**CAUSAL)
        other.load_state_dict(model.state_dict())
        with torch.inference_mode():
            return other.extend(other.start(x, room=1)).mean
    before = said(x)
    with torch.no_grad():
        for layer in model.blocks.attn_layers:
            layer.attention.inner_attention.attn_bias.emb.weight.mul_(-30)
    torch.testing.assert_close(said(x), fresh(x))
    assert (said(x) - before).abs().max() > 1e-3
    torch.testing.assert_close(said(x[:, :, :2]), fresh(x[:, :, :2]))
    torch.testing.assert_close(said(x[:, 2 * PATCH:]), fresh(x[:, 2 * PATCH:]))


def test_buffers_do_not_grow(series):
    model, x = tiny_target(**CAUSAL), series()
    with torch.inference_mode():
        state = model.start(x, room=4)
        model.extend(state)
        places = [cache.keys.data_ptr() for cache in state.caches]
        for _ in range(3):
            state.append(x[:, :PATCH][:, None])
            model.extend(state)
    assert [cache.keys.data_ptr() for cache in state.caches] == places
    assert {tuple(cache.keys.shape[:3]) for cache in state.caches} == {(6, 5 + 4 + 1, 3)}


def test_a_draft_of_several_patches_speaks_of_them_in_one_pass(series):
    draft, x = tiny_draft(tiny_target(**CAUSAL), patches=3), series()
    with torch.inference_mode():
        got = draft.extend(draft.start(x, room=0))
        mean, logvar = draft(x)
    torch.testing.assert_close(got.mean, mean[:, -1], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.logvar, logvar[:, -1], atol=1e-5, rtol=0)
    assert got.scale.shape == (6, 3, 1, 3)
