"""What takes time, such as waiting for virt-rapld, is done in threads, so that the screen never waits for it."""

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Takes the items of an iterator in a thread of its own."""

    def __init__(self, items: Iterable[Item]) -> None:
        """Begin."""
        self._come: SimpleQueue[tuple[Item, ...] | Exception] = SimpleQueue()
        """Each has one item."""
        threading.Thread(target=self._take, args=(items,), daemon=True).start()

    def _take(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                self._come.put((item,))
        except Exception as error:
            self._come.put(error)

    def come(self) -> Iterator[Item]:
        """Yield what has come since the last time. Raises what the iterator raises. Never waits."""
        while True:
            try:
                come = self._come.get_nowait()
            except Empty:
                return
            if isinstance(come, Exception):
                raise come
            yield come[0]
