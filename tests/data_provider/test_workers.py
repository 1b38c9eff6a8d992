"""Errors of the workers that load batches."""
import gc
import multiprocessing
import sys

import pytest
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from data_provider.data_factory import ordered_loader
from utils.errors import UserError

MISSING = FileNotFoundError(2, "No such file", "x.npy")


class Spoilt(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitems__(self, indices):
        raise self.error


@pytest.mark.parametrize("error", [UserError("x.npy has changed"), MISSING, IndexError("a fault of the program")])
def test_workers_end_with_an_error(error):
    before = set(multiprocessing.active_children())
    gc.disable()  # what ends them must not depend on it: a program that ends does not collect its cycles before
    try:
        with pytest.raises(type(error) if isinstance(error, IndexError) else UserError):
            list(ordered_loader(Spoilt(error), 2, num_workers=1))
        left = set(multiprocessing.active_children()) - before
        for worker in left:
            worker.kill()
        assert not left
    finally:
        gc.enable()


def raised(error, monkeypatch, in_worker):
    """What comes out of a loader; a worker's error as torch carries it over, but without the process."""
    def batches(_self):
        try:
            raise error
        except Exception:
            if in_worker:
                ExceptionWrapper(sys.exc_info(), "in DataLoader worker process 0").reraise()
            raise
        yield
    monkeypatch.setattr(DataLoader, "__iter__", batches)
    with pytest.raises((UserError, OSError)) as caught:
        list(ordered_loader([0, 1, 2], 2))
    return caught.value


@pytest.mark.parametrize("error, line", [
    (UserError("x.npy has changed: start again"), "x.npy has changed: start again"),
    (MISSING, "[Errno 2] No such file: 'x.npy'"),
])
def test_an_error_of_a_worker_is_one_line(error, line, monkeypatch):
    found = raised(error, monkeypatch, in_worker=True)
    assert isinstance(found, UserError) and str(found) == line


def test_without_workers_an_error_stays_what_it_is(monkeypatch):
    assert raised(MISSING, monkeypatch, in_worker=False) is MISSING
