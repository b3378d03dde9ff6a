"""Measure the artefacts of a bundle in turns, in one process: the inference alone, and a frame's whole way.

Turns of a few milliseconds put all artefacts under the same weather (frequency, temperature, other load), so that their
ratios hold even where the absolute figures drift. Each turn of an artefact is one inference that is not counted (the
caches are the previous artefact's), one frame from capture to drawing by stages, and a burst of inferences alone.
"""

from __future__ import annotations

import contextlib
import importlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from edgeattn import engines
from edgeattn.bundle import Bundle, load
from edgeattn.engines.base import Engine
from edgeattn.errors import BundleError, EngineError, SpecError
from edgeattn.imaging import prepare
from edgeattn.profiling import frames
from edgeattn.profiling.report import STAGES, Report, Result
from edgeattn.spec import Artefact
from edgeattn.tasks import decode, draw
from edgeattn.timing import NS_PER_MS, Clock, Spans, environment, monotonic_ns, pressure

BURST = 8
"""Inferences alone in one turn of an artefact."""
SAMPLES = 88 * BURST
"""Inferences an artefact, unless told otherwise: enough for p99, and 88 frames by stages, enough for p90."""
SECONDS = 15.0
"""Longest measurement, unless told otherwise."""
WARMUP, WARMUP_NS = 20, 500_000_000
"""Frames that each artefact is warmed up with, fewer (3 at least) where they take longer than half a second."""


@dataclass
class _Contender:
    """An open engine with what was measured on it so far."""

    engine: Engine
    load_ms: float
    first_ms: float
    spans: Spans
    warmup: int = 0
    latencies_ns: list[int] = field(default_factory=list)

    def result(self) -> Result:
        frames = self.spans.count(STAGES[-1])  # a frame that Ctrl-C cut short has no drawing
        stages = {stage: self.spans.values_ms(stage)[:frames] for stage in STAGES}
        return Result(
            engine=self.engine.name,
            precision=self.engine.precision,
            executed_precision=self.engine.executed_precision,
            threads=self.engine.threads,
            load_ms=self.load_ms,
            first_ms=self.first_ms,
            warmup=self.warmup,
            latencies_ms=np.asarray(self.latencies_ns, np.float64) / NS_PER_MS,
            stages_ms=stages,
            details=self.engine.details,
        )


class Profiler:
    """A profile in the making: iterate over it to measure, then take the `report`.

    Each step of the iteration is one turn of every artefact and yields the share that is done, 0 to 1. It may be left
    at any time (as by Ctrl-C); the report then tells what had been measured.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        source: str | None = None,
        engine: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        samples: int | None = None,
        seconds: float | None = None,
        clock: Clock = monotonic_ns,
    ) -> None:
        """See `profile`; opens the engines, times their first inference and warms them up."""
        if (samples is not None and samples < 1) or (seconds is not None and seconds <= 0):
            raise SpecError(f"samples ({samples}) and seconds ({seconds}) of a profile must be above 0")
        if samples is None and seconds is None:
            samples, seconds = SAMPLES, SECONDS
        self._bundle, self._clock, self._samples, self._seconds = bundle, clock, samples, seconds
        self._source = source or f"built-in frames of {frames.WIDTH}x{frames.HEIGHT}"
        self._complete = False
        self._skipped: list[tuple[str, str, str]] = []
        self._contenders: list[_Contender] = []
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # closes what is open already when the next thing fails
            undo.callback(self.close)
            self._frames = frames.of_source(source) if source else frames.builtin(bundle)
            self._stack.callback(self._frames.close)
            self._image = prepare(next(self._frames), bundle.spec.input)
            self._open(_chosen(bundle, engine, precision), threads, named=bool(engine and precision))
            self._warm_up()
            undo.pop_all()
        self._before = self._after = pressure.read(clock)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the engines and the source."""
        self._stack.close()

    def __iter__(self) -> Iterator[float]:
        order = random.Random(0)  # no artefact always runs after the same one
        self._before = self._after = pressure.read(self._clock)
        done = 0.0
        while done < 1.0:
            for contender in order.sample(self._contenders, len(self._contenders)):
                self._turn(contender)
            self._after = pressure.read(self._clock)
            done = self._done()
            self._complete = done >= 1.0
            yield done

    def report(self) -> Report:
        """What was measured so far.

        Raises:
            EngineError: nothing yet: it was stopped before each artefact had its first turn.
        """
        results = tuple(contender.result() for contender in self._contenders)
        if any(not result.latencies_ms.size for result in results):
            raise EngineError("the profile was stopped before every artefact was measured once; run it again")
        return Report(
            bundle=self._bundle.name,
            digest=self._bundle.digest(),
            source=self._source,
            results=results,
            skipped=tuple(self._skipped),
            environment=environment(),
            seconds=(self._after.at_ns - self._before.at_ns) / 1e9,
            waited_share=self._after.waited_share(self._before),
            other_cores=self._after.other_cores(self._before),
            stolen_cores=self._after.stolen_cores(self._before),
            stopped_early=not self._complete,
        )

    def _open(self, artefacts: list[Artefact], threads: int | None, *, named: bool) -> None:
        for artefact in artefacts:
            try:
                self._contenders.append(self._contender(artefact, threads))
            except EngineError as error:
                if named:
                    raise
                self._skipped.append((artefact.engine, artefact.precision, str(error)))
        if not self._contenders:
            raise EngineError(f"no artefact of {self._bundle.path} can be run here: {self._skipped[0][2]}")

    def _contender(self, artefact: Artefact, threads: int | None) -> _Contender:
        with contextlib.suppress(ImportError):  # the import of a package is no artefact's own time
            importlib.import_module(artefact.engine)
        start_ns = self._clock()
        engine = engines.open_artefact(self._bundle, artefact, threads=threads)
        self._stack.callback(engine.close)
        loaded_ns = self._clock()
        engine.infer(self._image)
        first_ns = self._clock() - loaded_ns
        return _Contender(engine, (loaded_ns - start_ns) / NS_PER_MS, first_ns / NS_PER_MS, Spans(self._clock))

    def _warm_up(self) -> None:
        for contender in self._contenders:
            start_ns = self._clock()
            while contender.warmup < 3 or (contender.warmup < WARMUP and self._clock() - start_ns < WARMUP_NS):
                self._frame(contender)
                contender.warmup += 1
            contender.spans.clear()

    def _turn(self, contender: _Contender) -> None:
        infer, clock = contender.engine.infer, self._clock
        infer(self._image)
        self._frame(contender)
        for _ in range(BURST):
            start_ns = clock()
            infer(self._image)
            contender.latencies_ns.append(clock() - start_ns)

    def _frame(self, contender: _Contender) -> None:
        """Take the next frame its whole way, by stages."""
        spec, spans = self._bundle.spec, contender.spans
        with spans("capture"):
            picture = next(self._frames)
        with spans("resize"):
            self._image = prepare(picture, spec.input)
        with spans("infer"):
            outputs = contender.engine.infer(self._image)
        with spans("decode"):
            prediction = decode(outputs, spec)
        with spans("draw"):
            draw(picture, prediction)

    def _done(self) -> float:
        by_samples = len(self._contenders[0].latencies_ns) / self._samples if self._samples else 0.0
        elapsed = (self._after.at_ns - self._before.at_ns) / 1e9
        return min(1.0, max(by_samples, elapsed / self._seconds if self._seconds else 0.0))


def profile(
    bundle: Bundle | str | Path,
    *,
    source: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    samples: int | None = None,
    seconds: float | None = None,
    clock: Clock = monotonic_ns,
) -> Report:
    """Measure a bundle's artefacts on this machine, in turns.

    Args:
        bundle: the bundle, its folder, or its name in the zoo.
        source: a video, a folder of pictures or a camera; None: 640x480 frames made from the golden pictures.
        engine: measure this engine only; None: all that the bundle has artefacts for.
        precision: measure this precision only, `float`, `bf16` or `int8`; None: all.
        threads: threads that compute one inference; None: the engine's default here.
        samples: inferences to measure an artefact; p90 needs 64, p99 662.
        seconds: how long to measure altogether. With `samples` too, whichever is reached first ends it; with neither,
            704 samples or 15 seconds.
        clock: gives monotonic nanoseconds.

    Raises:
        BundleError: the bundle is damaged, or holds no such artefact.
        EngineError: no artefact can be run here, or the one that was named cannot.
        NameNotFoundError: no bundle, engine or precision has that name.
        SourceError: the source cannot be opened or gives no frame.
        SpecError: `samples` or `seconds` is not above 0.
    """
    opened = bundle if isinstance(bundle, Bundle) else load(bundle)
    with Profiler(
        opened,
        source=source,
        engine=engine,
        precision=precision,
        threads=threads,
        samples=samples,
        seconds=seconds,
        clock=clock,
    ) as profiler:
        for _ in profiler:
            pass
        return profiler.report()


def _chosen(bundle: Bundle, engine: str | None, precision: str | None) -> list[Artefact]:
    """The bundle's artefacts for this processor, of the engine and precision that were named.

    Raises:
        BundleError: there is none.
        NameNotFoundError: no engine or precision has that name.
    """
    chosen = engines.held(bundle, engine and (engine,), precision and (precision,))
    if engine and precision:
        return [bundle.artefact(engine, precision)]
    if not chosen:
        held = ", ".join(f"{a.engine} {a.precision}" for a in bundle.artefacts) or "nothing yet"
        wanted = " ".join(filter(None, (precision, "artefact", engine and f"for {engine}")))
        remedy = f"; make it with: edgeattn quantize {bundle.path}" if precision == "int8" else ""
        raise BundleError(f"{bundle.path} holds no {wanted}; it holds: {held}{remedy}")
    return chosen
