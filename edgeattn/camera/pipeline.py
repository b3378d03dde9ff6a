"""A frame's way from a source to a result: capture, resize, infer, decode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import Bundle
from edgeattn.camera.slot import Capture
from edgeattn.camera.source import Frame, Source
from edgeattn.engines import Engine, open_engine
from edgeattn.engines.certify import Certificate, open_certified
from edgeattn.engines.choose import choose
from edgeattn.errors import EngineError
from edgeattn.imaging import prepare
from edgeattn.spec import Spec
from edgeattn.tasks import Prediction, decode
from edgeattn.tasks.smoothing import Smoother
from edgeattn.timing import NS_PER_MS, Clock, Spans, monotonic_ns


@dataclass(frozen=True)
class Result:
    """What the model says about one frame, and when."""

    frame: Frame
    """The frame itself."""
    prediction: Prediction
    """The answer for this frame alone."""
    smoothed: Prediction
    """The answer held steady over frames; without smoothing the same as `prediction`."""
    maps: Mapping[str, NDArray[Any]]
    """Raw attention map (h, w) of each block, from the first to the last; empty unless asked for."""
    age_ms: float
    """From the frame's capture to this result."""
    infer_ms: float
    """Time in the engine."""
    stages_ms: Mapping[str, float]
    """Time in each stage: `capture` (waiting for the frame), `resize`, `infer`, `decode`."""
    dropped: int
    """Frames of the source that were replaced by newer ones, since the start."""


class Pipeline:
    """Runs a model over a source: a context manager that gives a `Result` a frame when iterated.

    A live source is read by a thread of its own and only its latest frame is taken; of any other source every frame is.
    One inference is in flight at a time.
    """

    engine: Engine
    """The engine that runs; from entering on."""
    line: str
    """What runs and why, for people; from entering on."""

    def __init__(
        self,
        bundle: Bundle,
        source: Source,
        *,
        engine: str | None = None,
        precision: str | None = None,
        device: str = "CPU",
        threads: int | None = None,
        maps: bool = False,
        smooth: bool = False,
        clock: Clock = monotonic_ns,
        opened_engine: Engine | None = None,
    ) -> None:
        """Describe a run; nothing is opened yet.

        Args:
            bundle: the model.
            source: where the frames come from.
            engine: `onnxruntime` or `openvino`; what is not given is chosen by speed on this machine.
            precision: `float` or `int8`, likewise.
            device: CPU, or another of OpenVINO's, which is used if its answers are the CPU's (see `engines.certify`).
            threads: threads that compute one inference.
            maps: give the attention maps.
            smooth: hold the answer steady over frames, for sources whose frames follow each other in time.
            clock: gives nanoseconds; the source's clock must be the same.
            opened_engine: run this engine, which stays open afterwards.
        """
        self.bundle, self.source, self.maps = bundle, source, maps
        self._engine, self._precision, self._threads = engine, precision, threads
        self._device, self._opened_engine = device.upper(), opened_engine
        self.certificate: Certificate | None = None
        """What the device answered; None: the CPU."""
        self._clock = clock
        self._smoother = Smoother(bundle.spec) if smooth else None
        self._frames: Source | Capture | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pipeline:
        """Open the engine, then the source, so that no frame grows old meanwhile.

        Raises:
            EngineError: nothing in the bundle can be run here.
            SourceError: the source does not open.
        """
        with contextlib.ExitStack() as stack:
            self.engine, self.line = self._open_engine()
            if self._opened_engine is None:
                stack.callback(self.engine.close)
                self.engine.infer(blank_input(self.bundle.spec))  # the first inference is slow: no frame should wait
            frames: Source | Capture = Capture(self.source) if self.source.live else self.source
            stack.enter_context(frames)
            self._frames = frames
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._frames = None
        self._stack.close()

    def __iter__(self) -> Iterator[Result]:
        """A result a frame, until the source ends.

        Raises:
            EngineError: the engine failed, or the pipeline is not open.
            SourceError: the source broke off.
        """
        if self._frames is None:
            raise EngineError("the pipeline is not open; iterate inside: with Pipeline(...) as pipeline")
        spec, spans = self.bundle.spec, Spans(self._clock, capacity=1)
        frames = iter(self._frames)
        while True:
            with spans("capture"):
                frame = next(frames, None)
            if frame is None:
                return
            with spans("resize"):
                image = prepare(frame.picture, spec.input)
            with spans("infer"):
                outputs = self.engine.infer(image)
            with spans("decode"):
                prediction = decode(outputs, spec)
                smoothed = self._smoother.update(prediction) if self._smoother else prediction
                maps = {m.block: outputs[m.output][0] for m in spec.maps} if self.maps else {}
            age_ms = (self._clock() - frame.captured_ns) / NS_PER_MS
            stages_ms = spans.latest_ms()
            yield Result(frame, prediction, smoothed, maps, age_ms, stages_ms["infer"], stages_ms, self._dropped())

    def stop(self) -> None:
        """Let another thread's iteration over a live source end after the frame in hand."""
        if isinstance(self._frames, Capture):
            self._frames.slot.end()

    def _dropped(self) -> int:
        return self._frames.slot.dropped if isinstance(self._frames, Capture) else 0

    def _open_engine(self) -> tuple[Engine, str]:
        if self._opened_engine is not None:
            return self._opened_engine, _line(self._opened_engine)
        engine, precision, line = self._engine, self._precision, ""
        if self._device != "CPU":
            if engine not in (None, "openvino"):
                raise EngineError(f"{self._device} is reached by openvino, not by {engine}; leave out --engine")
            opened, self.certificate, line = open_certified(
                self.bundle, self._device, precision=precision, maps=self.maps
            )
            return opened, line
        options: dict[str, Any] = {"threads": self._threads, "maps": self.maps}
        if engine is None or precision is None:
            choice = choose(self.bundle, engine=engine, precision=precision, **options)
            engine, precision, line = choice.engine, choice.precision, choice.line
        opened = open_engine(self.bundle, engine=engine, precision=precision, **options)
        return opened, line or _line(opened)


def blank_input(spec: Spec) -> NDArray[Any]:
    """A black picture as the model's input, for warming up."""
    return prepare(np.zeros((spec.input.height, spec.input.width, 3), np.uint8), spec.input)


def _line(engine: Engine) -> str:
    return (
        f"{engine.name} {engine.precision} (as asked), {engine.threads} threads, executes {engine.executed_precision}"
    )
