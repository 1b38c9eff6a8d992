"""Losses of a training for TensorBoard, where that is installed."""
from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from utils.files import named

FOLDER = "tensorboard"


class Curves:
    """Scalars by name and step, in folder/tensorboard; does nothing without TensorBoard.

    Raises OSError that names that folder where it cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder, self.writer = Path(folder) / FOLDER, None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        threading.excepthook = _quietly
        with named(self.folder):
            self.writer = SummaryWriter(str(self.folder))

    def add(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            with named(self.folder):
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            with named(self.folder):
                self.writer.close()


def _quietly(failure: Any) -> None:
    """TensorBoard's thread raises an error twice: in the next call, and in itself, where it would be a traceback."""
    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(failure)
