"""Static buffers of rows that differ in length."""
import torch

from utils.buffers import read_at, repeated, write_after


def test_what_is_written_after_a_row_is_read_there():
    buffer, values = torch.zeros(3, 6, 2), torch.arange(1.0, 13).view(3, 2, 2)
    lengths = torch.tensor([0, 4, 2])
    write_after(buffer, lengths, values)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(buffer[row, length:length + 2], values[row])
        assert int((buffer[row] != 0).any(dim=1).sum()) == 2  # nothing else was touched
    assert torch.equal(read_at(buffer, lengths[:, None] + torch.arange(2)), values)


def test_one_row_of_times_is_read_in_every_row():
    buffer = torch.arange(24.0).view(3, 4, 2)
    assert torch.equal(read_at(buffer, torch.tensor([[3, 1]])), buffer[:, [3, 1]])


def test_copies_of_a_row_follow_each_other():
    assert repeated(3, 2, torch.device("cpu")).tolist() == [0, 0, 1, 1, 2, 2]
