"""A thread beside the one that forecasts: one thing after another, errors where they belong, nothing left."""
import time

import pytest

from exp.predict.behind import Behind


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
