"""A frame's way from a source to a result: capture, resize, infer, decode."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import Bundle
from edgeattn.camera.capture import Capture, Watch
from edgeattn.camera.frame import Frame, Reconnecting, Source
from edgeattn.camera.model import Model, blank_input, described, open_model
from edgeattn.camera.slot import POLICIES, Pace, Policy
from edgeattn.camera.state import Status
from edgeattn.engines import Engine
from edgeattn.engines.certify import Certificate
from edgeattn.errors import EngineError, NameNotFoundError, SourceError
from edgeattn.imaging import prepare
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
    model: Model
    """What said it."""


class Pipeline:
    """Runs a model over a source: a context manager that gives a `Result` a frame when iterated.

    A live source is read by a thread of its own and only its latest frame is taken; of any other source every frame is.
    A camera that breaks off is reconnected, for as long as it takes. One inference is in flight at a time. Another model
    may take over between two frames, see `swap`.
    """

    model: Model
    """What runs; from entering on."""

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
        policy: Policy | None = None,
        max_fps: float | None = None,
        crop: tuple[int, int, int, int] | None = None,
        give_up_s: float | None = None,
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
            policy: which frames of a live source are taken, see `slot.POLICIES`; default `latest`. A file gives `every`.
            max_fps: take no more frames a second than that, on average.
            crop: the part of each frame that is looked at: x, y, width, height in pixels.
            give_up_s: how long a camera may give no frame before that is an error; None: it is waited for.
            clock: gives nanoseconds; the source's clock must be the same.
            opened_engine: run this engine, which stays open afterwards.

        Raises:
            NameNotFoundError: no policy has that name.
            SourceError: a file is asked for another policy than `every`.
        """
        if policy is not None and policy not in POLICIES:
            raise NameNotFoundError("policy", policy, POLICIES)
        if policy not in (None, "every") and not source.live:
            raise SourceError(
                f"{source.name}: every frame of a file is taken; replay it live (--realtime) for {policy}"
            )
        self.bundle, self.source = bundle, source
        self.options: dict[str, Any] = {
            "engine": engine, "precision": precision, "device": device.upper(), "threads": threads, "maps": maps
        }  # fmt: skip
        """How a model is opened here, see `model.open_model`."""
        self._opened_engine = opened_engine
        self._clock = clock
        self._smooth = smooth
        self._smoother = Smoother(bundle.spec) if smooth else None
        self._turn = threading.Lock()
        self._policy, self._max_fps, self._crop = policy, max_fps, crop
        self._give_up_s = give_up_s
        self.waiting: Callable[[], bool] | None = None
        """Called ten times a second while a live source gives no frame; True ends the results."""
        self._capture: Capture | Watch | None = None
        self._next: Callable[[], Frame | None] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pipeline:
        """Open the engine, then the source, so that no frame grows old meanwhile.

        Raises:
            EngineError: nothing in the bundle can be run here.
            SourceError: the source does not open.
        """
        with contextlib.ExitStack() as stack:
            if self._opened_engine is None:
                self.model = open_model(self.bundle, **self.options)
                stack.callback(self._close_engine)
                self.engine.infer(blank_input(self.bundle.spec))  # the first inference is slow: no frame should wait
            else:
                self.model = Model(self.bundle, self._opened_engine, described(self._opened_engine))
                stack.callback(self._close_engine)
            self._next = self._open_source(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next = None
        self._stack.close()

    @property
    def engine(self) -> Engine:
        """The engine that runs."""
        return self.model.engine

    @property
    def line(self) -> str:
        """What runs and why, for people."""
        return self.model.line

    @property
    def certificate(self) -> Certificate | None:
        """What the device answered; None: the CPU."""
        return self.model.certificate

    @property
    def maps(self) -> bool:
        """Attention maps are given: they were asked for, and the model has some."""
        return bool(self.options["maps"] and self.bundle.spec.maps)

    def swap(self, model: Model) -> Model:
        """Let another model run from the next frame on; any thread may ask, and waits for the inference in flight.

        Returns the one that ran, which is the caller's to close.
        """
        with self._turn:
            before, self.model = self.model, model
            if model.bundle is not before.bundle:
                self.bundle = model.bundle
                self._smoother = Smoother(model.bundle.spec) if self._smooth else None
        return before

    @property
    def status(self) -> Status | None:
        """How the source is doing, for any thread and at any moment; None: it is no live one, or was not opened yet."""
        return self._capture.status if self._capture is not None else None

    def __iter__(self) -> Iterator[Result]:
        """A result a frame, until the source ends.

        Raises:
            EngineError: the engine failed, or the pipeline is not open.
            SourceError: the source broke off.
        """
        if self._next is None:
            raise EngineError("the pipeline is not open; iterate inside: with Pipeline(...) as pipeline")
        spans = Spans(self._clock, capacity=1)
        while True:
            with spans("capture"):
                frame = self._next() if self._next is not None else None
            if frame is None:
                return
            with self._turn:
                result = self._result(frame, spans)
            yield result

    def stop(self) -> None:
        """Let another thread's iteration over a live source end after the frame in hand."""
        if self._capture is not None:
            self._capture.slot.end()

    def _close_engine(self) -> None:
        if self.engine is not self._opened_engine:
            self.engine.close()

    def _result(self, frame: Frame, spans: Spans) -> Result:
        spec = self.bundle.spec
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
        return Result(
            frame, prediction, smoothed, maps, age_ms, stages_ms["infer"], stages_ms, self._dropped(), self.model
        )

    def _open_source(self, stack: contextlib.ExitStack) -> Callable[[], Frame | None]:
        """Open the source; gives what waits for its next frame."""
        capture: Capture | Watch
        if isinstance(self.source, Reconnecting):
            capture = Watch(self.source, self._policy or "latest", self._max_fps, self._give_up_s)
        elif self.source.live:
            capture = Capture(self.source, self._policy or "latest", self._max_fps)
        else:
            frames, pace = iter(stack.enter_context(self.source)), Pace(self._max_fps)
            return lambda: self._paced(frames, pace)
        self._capture = capture  # its state can be asked for while it connects
        stack.enter_context(capture)
        return lambda: self._cropped(capture.slot.take(self.waiting))

    def _paced(self, frames: Iterator[Frame], pace: Pace) -> Frame | None:
        time.sleep(pace.wait_s(self._clock()))
        pace.allows(self._clock())
        return self._cropped(next(frames, None))

    def _cropped(self, frame: Frame | None) -> Frame | None:
        if frame is None or self._crop is None:
            return frame
        x, y, width, height = self._crop
        picture = frame.picture[y : y + height, x : x + width]
        if not picture.size:
            shown = f"{frame.picture.shape[1]}x{frame.picture.shape[0]}"
            raise SourceError(
                f"{self.source.name}: the crop {self._crop} lies outside its pictures of {shown}; move it"
            )
        return replace(frame, picture=np.ascontiguousarray(picture))

    def _dropped(self) -> int:
        return self._capture.dropped if self._capture is not None else 0
