"""Measure the artefacts of a bundle on this machine, in the mode that was asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeattn import engines
from edgeattn.bundle import Bundle, load
from edgeattn.engines.base import Array
from edgeattn.engines.choose import choose
from edgeattn.errors import BundleError, EngineError
from edgeattn.profiling import frames
from edgeattn.profiling.ablation import measure_without
from edgeattn.profiling.bench import Bench, Contender
from edgeattn.profiling.blocks import ATTENTION, Blocks, measure_blocks
from edgeattn.profiling.cold import ColdStarts, cold, start
from edgeattn.profiling.identity import model_of
from edgeattn.profiling.modes import MEASURE, STARTS, Plan, plan
from edgeattn.profiling.peaks import Peaks, measure_peaks
from edgeattn.profiling.report import Report, Result
from edgeattn.profiling.roofline import Roof, roof, work_of
from edgeattn.spec import Artefact
from edgeattn.timing import Clock, environment, monotonic_ns, pressure, sensors
from edgeattn.timing.memory import memory

READ_EVERY_NS = 2_000_000_000
"""Time between two readings of the sensors."""
AS_THEY_COME = ("paced", "live")
"""Modes whose frames wait for nobody: sensors are read before and after, since a reading may take as long as a frame."""
ALONE = 0.6
"""Part of the progress that the inferences take; the rest goes to what each block takes."""
ONE_ARTEFACT = ("sustained", "live")
"""Modes that measure the artefact that `run` would take, where none is named: they last, or they are the real loop."""


class Profiler:
    """A profile in the making: iterate over it to measure, then take the `report`.

    The iteration yields the share that is done, 0 to 1. It may be left at any time (as by Ctrl-C); the report then tells
    what had been measured.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        mode: str = "single",
        source: str | None = None,
        engine: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        samples: int | None = None,
        seconds: float | None = None,
        until: str | None = None,
        fps: float = 30.0,
        minutes: float = 30.0,
        memory: bool = False,
        blocks: bool = False,
        clock: Clock = monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """See `profile`; opens the engines, times their first inference and warms them up."""
        self._plan: Plan = plan(
            mode, samples=samples, seconds=seconds, until=until, fps=fps, minutes=minutes, source=source
        )
        if mode == "throughput":
            threads = threads or 1  # of each stream
        self._bundle, self._clock, self._threads, self._each_block = bundle, clock, threads, blocks
        self._peaks: Peaks | None = None
        self._complete = False
        self._stack = contextlib.ExitStack()
        self._bench: Bench | None = None
        if mode in ONE_ARTEFACT and not (engine and precision):
            chosen = choose(bundle, engine=engine, precision=precision, threads=threads)
            engine, precision = chosen.engine, chosen.precision
        artefacts = _chosen(bundle, engine, precision)
        self._starts = [ColdStarts(artefact) for artefact in artefacts] if mode == "cold" or memory else []
        self._source = source or f"built-in frames of {frames.WIDTH}x{frames.HEIGHT}"
        if mode == "cold":
            self._source = "one grey picture of 640x480"
        else:
            with contextlib.ExitStack() as undo:
                taken = frames.of_source(source) if source and mode != "live" else frames.builtin(bundle)
                undo.callback(taken.close)
                named = bool(engine and precision)
                self._bench = undo.enter_context(
                    Bench(bundle, artefacts, taken, threads=threads, named=named, clock=clock, sleep=sleep)
                )
                self._stack = undo.pop_all()
        if mode == "live":
            self._source = source or "test pattern"
        self._before = self._after = pressure.read(clock)
        self._readings: list[sensors.Sensors] = []
        self._seconds = 0.0

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
        self._before = self._after = pressure.read(self._clock)
        self._readings = [sensors.read(self._clock)]
        try:
            for done in self._measure():
                if self._plan.mode not in AS_THEY_COME and self._clock() - self._readings[-1].at_ns > READ_EVERY_NS:
                    self._readings.append(sensors.read(self._clock))
                yield done
            self._complete = True
        finally:
            self._after = pressure.read(self._clock)
            self._readings.append(sensors.read(self._clock))

    def report(self) -> Report:
        """What was measured so far.

        Raises:
            EngineError: nothing yet: it was stopped before each artefact had its first turn.
        """
        results = self._results()
        if not results:
            raise EngineError("the profile was stopped before every artefact was measured once; run it again")
        return Report(
            bundle=self._bundle.name,
            digest=self._bundle.digest(),
            model=model_of(self._bundle),
            source=self._source,
            results=results,
            skipped=tuple(self._bench.skipped) if self._bench else (),
            environment=environment(),
            memory=memory(),
            seconds=self._seconds,
            waited_share=self._after.waited_share(self._before),
            other_cores=self._after.other_cores(self._before),
            stolen_cores=self._after.stolen_cores(self._before),
            readings=tuple(self._readings),
            stopped_early=not self._complete,
            mode=self._plan.mode,
            peaks=self._peaks,
        )

    def _measure(self) -> Iterator[float]:
        if self._bench is None:
            began_ns = self._clock()
            for done in cold(self._bundle, self._starts, self._threads, self._plan.samples or STARTS):
                self._seconds = (self._clock() - began_ns) / 1e9
                yield done
            return
        for each in self._starts:  # one start each, for the memory of a process that holds this artefact alone
            if (each.artefact.engine, each.artefact.precision) not in {(e, p) for e, p, _ in self._bench.skipped}:
                start(self._bundle, each, self._threads)
        began_ns, alone = self._clock(), ALONE if self._plan.mode == "single" else 1.0
        for done in MEASURE[self._plan.mode](self._bench, self._plan):
            self._seconds = (self._clock() - began_ns) / 1e9
            yield done * alone
        if self._plan.mode != "single":
            return
        for i, contender in enumerate(self._bench.contenders, start=1):
            self._measure_blocks(contender, self._bench.image)
            yield ALONE + (1.0 - ALONE) * i / len(self._bench.contenders)

    def _measure_blocks(self, contender: Contender, image: Array) -> None:
        """What each block takes, and what is gained without; what cannot be told is left out, with the reason."""
        names = [each.block for each in self._bundle.spec.maps]
        if not names:
            return
        choices = {ATTENTION: names} | ({name: [name] for name in names} if self._each_block else {})
        try:
            contender.blocks = measure_blocks(self._bundle, contender.engine, image)
            if self._each_block:
                contender.roofs = self._roofs(contender.blocks)
            contender.without = measure_without(self._bundle, contender.artefact, contender.engine, image, choices)
        except (BundleError, EngineError, ImportError) as error:  # OpenVINO tells the peaks
            contender.more["blocks_missing"] = str(error)

    def _roofs(self, blocks: Blocks) -> dict[str, Roof]:
        """Each part against the processor's peaks, which are measured once."""
        self._peaks = self._peaks or measure_peaks(threads=self._threads)
        names = [each.block for each in self._bundle.spec.maps]
        work = work_of(self._bundle.file(self._bundle.artefact("onnxruntime", "float")), names)
        return {block.name: roof(block, work[block.name], self._peaks) for block in blocks.blocks if block.name in work}

    def _results(self) -> tuple[Result, ...]:
        """Of every artefact; in modes that take one after the other, of those that had their turn."""
        alone = {(s.artefact.engine, s.artefact.precision): s.result() for s in self._starts if s.stages_ns}
        if self._bench is None:
            return tuple(alone.values()) if len(alone) == len(self._starts) else ()
        found = []
        for contender in self._bench.contenders:
            if not (contender.latencies_ns or contender.histogram):
                if self._plan.mode == "single":
                    return ()
                continue
            started = alone.get((contender.artefact.engine, contender.artefact.precision))
            found.append(contender.result(self._plan.mode, started.memory if started else {}))
        return tuple(found)


def profile(
    bundle: Bundle | str | Path,
    *,
    clock: Clock = monotonic_ns,
    **options: Any,
) -> Report:
    """Measure a bundle's artefacts on this machine.

    Args:
        bundle: the bundle, its folder, or its name in the zoo.
        clock: gives monotonic nanoseconds.
        options: `mode` (`single`, `paced`, `throughput`, `sustained`, `cold`, `live`; see `modes`); `source`: a video, a
            folder of pictures or a camera (None: 640x480 frames made from the golden pictures); `engine`, `precision`:
            measure these only (None: all that the bundle has); `threads`: threads that compute one inference; `samples`:
            inferences (frames, starts) an artefact; `seconds`: how long altogether (with `samples` too, whichever is
            reached first); `until`: percentile, as `p99`, that the samples must suffice for; `fps` of `paced`; `minutes`
            of `sustained`; `memory`: start a process an artefact to weigh it; `blocks`: also time the net without each
            attention block.

    Raises:
        BundleError: the bundle is damaged, or holds no such artefact.
        EngineError: no artefact can be run here, or the one that was named cannot.
        NameNotFoundError: no bundle, engine, precision, mode or percentile has that name.
        SourceError: the source cannot be opened or gives no frame.
        SpecError: a number is not above 0.
    """
    opened = bundle if isinstance(bundle, Bundle) else load(bundle)
    with Profiler(opened, clock=clock, **options) as profiler:
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
