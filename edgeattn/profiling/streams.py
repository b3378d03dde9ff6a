"""Several engines that infer at once."""

from __future__ import annotations

import threading

from edgeattn.engines.base import Engine
from edgeattn.profiling.bench import Bench


class Streams:
    """A thread an engine, each inferring without a pause, until left."""

    def __init__(self, bench: Bench, crew: list[Engine]) -> None:
        self.passes: list[tuple[int, int]] = []
        """Start and end of each inference, complete once it was left."""
        self.error: Exception | None = None
        self._bench, self._over = bench, threading.Event()
        self._lists: list[list[tuple[int, int]]] = [[] for _ in crew]
        self._threads = [
            threading.Thread(target=self._run, args=(engine, passes), daemon=True)
            for engine, passes in zip(crew, self._lists, strict=True)
        ]

    @property
    def count(self) -> int:
        """Inferences so far."""
        return sum(map(len, self._lists))

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.passes = [each for passes in self._lists for each in passes]

    def _run(self, engine: Engine, passes: list[tuple[int, int]]) -> None:
        image, clock = self._bench.image, self._bench.clock
        try:
            while not self._over.is_set():
                start_ns = clock()
                engine.infer(image)
                passes.append((start_ns, clock()))
        except Exception as error:
            self.error = error
