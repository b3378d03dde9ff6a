"""The bench: open engines side by side, warmed up until they are steady, and a frame's way through one of them by stages."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeattn import engines
from edgeattn.bundle import Bundle
from edgeattn.camera.frame import AgeFrom
from edgeattn.engines.base import Array, Engine
from edgeattn.errors import EngineError
from edgeattn.imaging import Picture, prepare
from edgeattn.profiling.ablation import Saved
from edgeattn.profiling.blocks import Blocks
from edgeattn.profiling.report import STAGES, Result
from edgeattn.profiling.roofline import Roof
from edgeattn.spec import Artefact
from edgeattn.tasks import decode, draw
from edgeattn.timing import NS_PER_MS, Clock, Spans, thread_ns
from edgeattn.timing.histogram import Histogram
from edgeattn.timing.statistics import change_point

T = TypeVar("T", bound=np.generic)
STEADY = 20
"""Frames without a change of level after which an engine counts as warm; fewer (3 at least) where they take long."""
WARMUP, WARMUP_NS = 200, 2_000_000_000
"""Most frames that an artefact is warmed up with, and the longest time."""


@dataclass
class Contender:
    """An open engine with what was measured on it so far."""

    artefact: Artefact
    engine: Engine
    sha256: str
    load_ms: float
    first_ms: float
    spans: Spans
    warmup: int = 0
    settled: bool = False
    latencies_ns: list[int] = field(default_factory=list)
    inside_ms: list[float] = field(default_factory=list)
    ages_ns: list[int] = field(default_factory=list)
    age_from: AgeFrom | None = None
    histogram: Histogram | None = None
    blocks: Blocks | None = None
    without: dict[str, Saved] = field(default_factory=dict)
    roofs: dict[str, Roof] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop what was measured so far."""
        self.spans.clear()
        self.latencies_ns.clear()
        self.ages_ns.clear()

    def result(self, mode: str, memory: Mapping[str, Any]) -> Result:
        """What was measured, frames that were cut short left out; `memory` of a process with this artefact alone."""
        return Result(
            engine=self.engine.name,
            precision=self.engine.precision,
            executed_precision=self.engine.executed_precision,
            threads=self.engine.threads,
            mode=mode,
            load_ms=self.load_ms,
            first_ms=self.first_ms,
            warmup=self.warmup,
            settled=self.settled,
            latencies_ms=np.asarray(self.latencies_ns, np.float64) / NS_PER_MS,
            inside_ms=np.asarray(self.inside_ms, np.float64),
            stages_ms=self._whole(self.spans.values_ms),
            thread_ms=self._whole(self.spans.thread_ms) if mode != "live" else {},  # other threads compute there
            starts_ns=self._whole(self.spans.starts_ns),
            ages_ms=np.asarray(self.ages_ns, np.float64) / NS_PER_MS,
            age_from=self.age_from,
            histogram=self.histogram,
            details=dict(self.engine.details) | {"sha256": self.sha256},
            layers=self.engine.layers,
            memory=memory,
            blocks=self.blocks,
            without=self.without,
            roofs=self.roofs,
            more=self.more,
        )

    def _whole(self, values: Callable[[str], NDArray[T]]) -> dict[str, NDArray[T]]:
        """Stages of whole frames: one that Ctrl-C cut short has passed some stages and not the last."""
        stages = [stage for stage in STAGES if stage in self.spans.stages]
        whole = min((self.spans.count(stage) for stage in stages), default=0)
        kept = {stage: values(stage) for stage in stages}
        kept = {stage: each[: len(each) - (self.spans.count(stage) - whole)] for stage, each in kept.items()}
        n = min((len(each) for each in kept.values()), default=0)
        return {stage: each[len(each) - n :] for stage, each in kept.items()}


class Bench:
    """The contenders of a bundle and the frames that they take: a context manager."""

    def __init__(
        self,
        bundle: Bundle,
        artefacts: list[Artefact],
        frames: Iterator[Picture],
        *,
        threads: int | None,
        named: bool,
        clock: Clock,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Open the engines one after the other, time their first inference, and warm them up.

        Args:
            bundle: the model.
            artefacts: which of its artefacts.
            frames: endless frames.
            threads: threads that compute one inference; None: the engine's default here.
            named: an artefact that does not open is an error, and not passed over.
            clock: gives nanoseconds.
            sleep: sleeps for a number of seconds.

        Raises:
            EngineError: no artefact can be run here, or the one that was named cannot.
        """
        self.bundle, self.clock, self.sleep = bundle, clock, sleep
        self.contenders: list[Contender] = []
        """Those that opened."""
        self.skipped: list[tuple[str, str, str]] = []
        """Those that did not: engine, precision, why."""
        self._frames, self._threads = frames, threads
        with contextlib.ExitStack() as undo:  # closes what is open already when the next thing fails
            self.image: Array = prepare(next(frames), bundle.spec.input)
            """The latest frame as the model's input."""
            for artefact in artefacts:
                try:
                    contender = self._open(artefact)
                    undo.callback(contender.engine.close)
                    self.contenders.append(contender)
                except EngineError as error:
                    if named:
                        raise
                    self.skipped.append((artefact.engine, artefact.precision, str(error)))
            if not self.contenders:
                raise EngineError(f"no artefact of {bundle.path} can be run here: {self.skipped[0][2]}")
            for contender in self.contenders:
                self._warm_up(contender)
            self._stack = undo.pop_all()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def frame(self, contender: Contender) -> dict[str, Array]:
        """Take the next frame its whole way, by stages; gives the model's outputs."""
        spec, spans = self.bundle.spec, contender.spans
        with spans("capture"):
            picture = next(self._frames)
        with spans("resize"):
            self.image = prepare(picture, spec.input)
        with spans("infer"):
            outputs = contender.engine.infer(self.image)
        with spans("decode"):
            prediction = decode(outputs, spec, picture.shape[:2])
        with spans("draw"):
            draw(picture, prediction)
        return outputs

    def another(self, contender: Contender) -> Engine:
        """One more engine for the contender's artefact, that has run once; closed with the bench."""
        engine = engines.open_artefact(self.bundle, contender.artefact, threads=contender.engine.threads)
        self._stack.callback(engine.close)
        engine.infer(self.image)
        return engine

    def _open(self, artefact: Artefact) -> Contender:
        with contextlib.suppress(ImportError):  # the import of a package is no artefact's own time
            importlib.import_module(artefact.engine)
        start_ns = self.clock()
        engine = engines.open_artefact(self.bundle, artefact, threads=self._threads)
        try:
            loaded_ns = self.clock()
            engine.infer(self.image)
            first_ns = self.clock() - loaded_ns
        except BaseException:
            engine.close()
            raise
        digest = self.bundle.sha256.get(artefact.file, "")
        spans = Spans(self.clock, thread_clock=thread_ns)
        return Contender(artefact, engine, digest, (loaded_ns - start_ns) / NS_PER_MS, first_ns / NS_PER_MS, spans)

    def _warm_up(self, contender: Contender) -> None:
        """Run frames until the times since their last change of level are as many as `STEADY`."""
        start_ns, contender.settled = self.clock(), False
        while contender.warmup < 3 or (contender.warmup < WARMUP and self.clock() - start_ns < WARMUP_NS):
            self.frame(contender)
            contender.warmup += 1
            if contender.warmup >= STEADY and contender.warmup % 5 == 0:
                times_ms = contender.spans.values_ms("infer")
                contender.settled = len(times_ms) - change_point(times_ms, chance=0.05) >= STEADY
                if contender.settled:
                    break
        contender.spans.clear()
