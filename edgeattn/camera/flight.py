"""Several requests in flight: more results a second than one at a time gives, each of them older."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class InFlight(Generic[T, R]):
    """Takes things in turn and works on as many at a time as there are workers; results come in the order of taking.

    Each worker has a thread of its own. Nothing is taken beyond what is worked on or waits to be handed over, at most one
    a worker, so that whoever is slow to take the results finds none that is much older than its work.
    """

    def __init__(self, take: Callable[[], T | None], workers: Sequence[Callable[[T], R]]) -> None:
        """Start when iterated; `take` gives None at the end, and is called by one thread at a time."""
        self._take = take
        self._taking = threading.Lock()
        self._room = threading.Semaphore(len(workers))
        self._order: queue.SimpleQueue[Future[R] | None] = queue.SimpleQueue()
        self._over = False
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name="request", daemon=True) for worker in workers
        ]

    def __iter__(self) -> Iterator[R]:
        """Results in order; raises what taking or working raised, in its turn."""
        for thread in self._threads:
            thread.start()
        try:
            while (result := self._order.get()) is not None:
                yield result.result()
                self._room.release()
        finally:
            self.end(0.0)

    def end(self, patience_s: float) -> None:
        """Take nothing more, and wait that long for each worker; one that waits in `take` has to be woken before."""
        self._over = True
        self._room.release(len(self._threads))
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(patience_s)

    def _run(self, worker: Callable[[T], R]) -> None:
        while True:
            self._room.acquire()
            with self._taking:
                if self._over:
                    return
                result: Future[R] = Future()
                try:
                    taken = self._take()
                except BaseException as error:  # raised again where the results are taken
                    result.set_exception(error)
                    self._over = True
                    self._order.put(result)
                    return
                if taken is None:
                    self._over = True
                    self._order.put(None)
                    return
                self._order.put(result)
            try:
                result.set_result(worker(taken))
            except BaseException as error:
                result.set_exception(error)
