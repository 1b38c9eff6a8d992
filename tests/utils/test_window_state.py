"""The window implementation of the decoding interface against plain slicing."""
import pytest
import torch
from helpers import PATCH, tiny_target

from utils import window_state
from utils.window_state import WindowState


def cut(series):
    """[B, T*P, C] -> [B, T, P, C]"""
    return series.unflatten(1, (-1, PATCH))


def test_rows_of_different_length_give_their_own_windows(series):
    context = series(rows=3, length=4 * PATCH)
    patches = series(rows=3, length=3 * PATCH, seed=9).unflatten(1, (3, PATCH))
    state = WindowState(tiny_target(), cut(context), room=4)
    state.append(patches[:, :1])
    state.append(patches[:, 1:])
    state.rollback(torch.tensor([1, 3, 0]))
    extra = series(rows=3, length=PATCH, seed=10)
    state.append(cut(extra))
    for row, kept in enumerate((1, 3, 0)):
        whole = torch.cat([context[row], patches[row, :kept].flatten(0, 1), extra[row]])
        windows = state.windows(2).flatten(1, 2).unflatten(0, (3, 2))[row]
        torch.testing.assert_close(windows[1], whole[-4 * PATCH:])
        torch.testing.assert_close(windows[0], whole[-5 * PATCH:-PATCH])


def test_select_keeps_the_rows_asked_for(series):
    context = series(rows=4)
    state = WindowState(tiny_target(), cut(context), room=2)
    state.append(cut(series(rows=4, length=PATCH, seed=3)))
    state.rollback(torch.tensor([0, 1, 0, 1]))
    before = state.windows(1)
    state.select(torch.tensor([1, 3]))
    torch.testing.assert_close(state.windows(1), before[[1, 3]])
    assert state.lengths.tolist() == [1, 1]
    state.rollback(0)  # one length for all
    assert state.lengths.tolist() == [0, 0]


def test_extending_by_k_patches_is_k_plus_one_single_predictions(series):
    model, context = tiny_target(), series()
    patches = series(length=3 * PATCH, seed=4).unflatten(1, (3, PATCH))
    with torch.inference_mode():
        together = model.extend(model.start(context, room=3), patches)
        state = model.start(context, room=3)
        for i in range(4):
            single = model.extend(state)
            torch.testing.assert_close(together.mean[:, i], single.mean[:, 0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.scale[:, i], single.scale[:, 0])
            if i < 3:
                state.append(patches[:, i:i + 1])


def test_a_context_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="not a multiple of the patch"):
        tiny_target().start(torch.zeros(1, 3 * PATCH + 1, 2), room=1)


def test_a_pass_cut_into_parts_gives_what_one_pass_gives(series, monkeypatch):
    model, context = tiny_target(), series(rows=6)
    patches = series(rows=6, length=2 * PATCH, seed=4).unflatten(1, (2, PATCH))
    with torch.inference_mode():
        whole = model.extend(model.start(context, room=2), patches)
        monkeypatch.setattr(window_state, "CPU_TOKENS", 4 * 15)  # 18 windows of 15 tokens: parts of 4, 4, 4, 4, 2
        parts = model.extend(model.start(context, room=2), patches)
    torch.testing.assert_close(parts.mean, whole.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.scale, whole.scale)
