"""Threads beside the one that forecasts: the same items in the same order, errors where they belong, nothing left."""
import threading
import time

import pytest

from exp.predict.ahead import Behind, ahead


def test_the_items_come_in_order_and_one_is_made_ahead():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i
    got = []
    for item in ahead(items()):
        got.append(item)
        deadline = time.monotonic() + 5
        while len(made) < min(item + 2, 5):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert len(made) <= item + 3  # one waits, one is being made
    assert got == made == list(range(5))


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("broken")
    got = []
    with pytest.raises(KeyError, match="broken"):
        for item in ahead(items()):
            got.append(item)
    assert got == [1]


def test_a_caller_that_leaves_ends_the_thread():
    before, closed = threading.active_count(), []

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)
    walk = ahead(items())
    next(walk)
    walk.close()
    assert threading.active_count() == before


def test_what_is_done_behind_is_done_in_order_and_at_the_end():
    done = []
    with Behind() as behind:
        for i in range(4):
            behind.do(lambda i: (time.sleep(0.01), done.append(i)), i)
    assert done == [0, 1, 2, 3]


@pytest.mark.parametrize("more", [0, 1])
def test_its_error_is_raised_by_the_next_or_at_the_end(more):
    def fail():
        raise OSError("full")
    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.do(fail)
        for _ in range(more):
            behind.do(lambda: None)


def test_it_finishes_what_it_began_when_the_caller_is_ended():
    done = []
    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.do(lambda: (time.sleep(0.05), done.append(1)))
        raise KeyboardInterrupt
    assert done == [1]
