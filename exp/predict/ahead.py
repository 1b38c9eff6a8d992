"""Reading and writing in threads beside the one that forecasts: one item ahead of it, one behind."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")
PATIENCE = 0.1  # seconds between two looks at whether anybody still waits


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, the next of which is made while the caller works on one. What making one raises, is raised here."""
    made: Queue[tuple[str, Any]] = Queue(maxsize=1)
    stopped = Event()

    def put(what: str, item: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put((what, item), timeout=PATIENCE)
                return True
            except Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # the caller's to handle
            put("error", error)
    maker = Thread(target=make, daemon=True)
    maker.start()
    try:
        while True:
            what, item = made.get()
            if what == "error":
                raise item
            if what == "end":
                return
            yield item
    finally:
        stopped.set()
        maker.join()


class Behind:
    """Does one thing after another in a thread; the next waits for the one before. Waits at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Future[Any] | None = None

    def do(self, work: Callable[..., Any], *what: Any) -> None:
        """Raises what the last one raised."""
        self._wait()
        self._last = self._pool.submit(work, *what)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown(wait=True)
