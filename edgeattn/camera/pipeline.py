"""A frame's way from a source to a result: capture, resize, infer, decode."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.bundle import Bundle
from edgeattn.camera.capture import Capture
from edgeattn.camera.flight import InFlight
from edgeattn.camera.frame import Frame, Reconnecting, Source
from edgeattn.camera.model import Model, asked_thresholds, blank_input, described, open_model
from edgeattn.camera.slot import POLICIES, Pace, Policy, Turns
from edgeattn.camera.state import Status
from edgeattn.camera.watch import Watch
from edgeattn.engines import Engine, default_threads, open_engine
from edgeattn.engines.certify import Certificate
from edgeattn.errors import EngineError, NameNotFoundError, SourceError, SpecError
from edgeattn.imaging import prepare
from edgeattn.tasks import Classification, Prediction, decode, detect
from edgeattn.tasks.smoothing import Smoother
from edgeattn.tasks.tracking import Tracker, unsure
from edgeattn.timing import NS_PER_MS, Clock, Spans, monotonic_ns

PATIENCE_S = 5.0
"""How long closing waits for an inference in flight."""


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
    """Frames of its source that were not used, since the start."""
    model: Model
    """What said it."""
    camera: int = 0
    """Place of its source among several."""


@dataclass
class _Request:
    """A frame on its way."""

    camera: int
    frame: Frame
    spans: Spans
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Pipeline:
    """Runs a model over a source: a context manager that gives a `Result` a frame when iterated.

    A live source is read by a thread of its own and only its latest frame is taken; of any other source every frame is.
    A camera that breaks off is reconnected, for as long as it takes. One inference is in flight at a time (two with
    `throughput`), so that several cameras take turns: each once a round, as far as it has a frame. Another model may take
    over between two frames, see `swap`.
    """

    model: Model
    """What runs; from entering on."""

    def __init__(
        self,
        bundle: Bundle,
        source: Source | Sequence[Source],
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
        throughput: bool = False,
        confidence: float | None = None,
        iou: float | None = None,
        track: bool = False,
        clock: Clock = monotonic_ns,
        opened_engine: Engine | None = None,
    ) -> None:
        """Describe a run; nothing is opened yet.

        Args:
            bundle: the model.
            source: where the frames come from; several must all be live.
            engine: `onnxruntime` or `openvino`; what is not given is chosen by speed on this machine.
            precision: `float` or `int8`, likewise.
            device: CPU, or another of OpenVINO's, which is used if its answers are the CPU's (see `engines.certify`).
            threads: threads that compute one inference.
            maps: give the attention maps.
            smooth: hold a classifier's answer steady over frames, for sources whose frames follow each other in time.
            policy: which frames of a live source are taken, see `slot.POLICIES`; default `latest`. A file gives `every`.
            max_fps: take no more frames a second than that of each source, on average.
            crop: the part of each frame that is looked at: x, y, width, height in pixels.
            give_up_s: how long a camera may give no frame before that is an error; None: it is waited for.
            throughput: two inferences in flight, each with half the threads: more results a second, each older by
                about the time of one inference. Two engines are opened for it.
            confidence: least score of a box that a detector tells, 0 to 1; None: as its bundle says.
            iou: overlap from which on two of its boxes are one thing, likewise.
            track: follow a detector's boxes from frame to frame.
            clock: gives nanoseconds; the source's clock must be the same.
            opened_engine: run this engine, which stays open afterwards.

        Raises:
            NameNotFoundError: no policy has that name.
            EngineError: `throughput` on another device than the CPU.
            ExtraMissingError: `track`, and the package trackers is not installed.
            SpecError: `track`, and the model is no detector.
            SourceError: a file is asked for another policy than `every`, or is one of several sources.
        """
        if policy is not None and policy not in POLICIES:
            raise NameNotFoundError("policy", policy, POLICIES)
        sources = tuple(source) if isinstance(source, Sequence) else (source,)
        for each in sources:
            if not each.live and policy not in (None, "every"):
                raise SourceError(
                    f"{each.name}: every frame of a file is taken; replay it live (--realtime) for {policy}"
                )
            if not each.live and len(sources) > 1:
                raise SourceError(
                    f"{each.name}: several sources must all be live; run a file alone, or --realtime, as a camera would"
                )
        if throughput and (device.upper() != "CPU" or opened_engine is not None):
            raise EngineError("two inferences in flight need the CPU and engines of our own; leave out --throughput")
        if throughput and threads is None:
            threads = max(1, default_threads() // 2)  # two requests share the cores
        self.bundle = bundle
        self.sources: tuple[Source, ...] = sources
        """Where the frames come from."""
        self.source = sources[0]
        """The first of them; mostly the only one."""
        self.options: dict[str, Any] = {
            "engine": engine, "precision": precision, "device": device.upper(), "threads": threads, "maps": maps,
            "confidence": confidence, "iou": iou,
        }  # fmt: skip
        """How a model is opened here, see `model.open_model`."""
        self._opened_engine = opened_engine
        self._throughput = throughput
        self._beside: Engine | None = None
        self._flights: InFlight[_Request, _Request] | None = None
        self._clock = clock
        self._smooth, self._track = smooth, track
        self._steady = self._steadying(bundle)
        self._inferring = threading.Lock()
        self._policy, self._max_fps, self._crop = policy, max_fps, crop
        self._have_cropped: set[int] = set()
        self._give_up_s = give_up_s
        self.waiting: Callable[[], bool] | None = None
        """Called ten times a second while a live source gives no frame; True ends the results."""
        self._captures: list[Capture | Watch] = []
        self._next: Callable[[], tuple[int, Frame] | None] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pipeline:
        """Open the engine, then the source, so that no frame grows old meanwhile.

        Raises:
            EngineError: nothing in the bundle can be run here.
            SourceError: the source does not open.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_engine)
            if self._opened_engine is None:
                self.model = open_model(self.bundle, **self.options)
                self.engine.infer(blank_input(self.bundle.spec))  # the first inference is slow: no frame should wait
                if self._throughput:
                    self._beside = self._open_beside(stack)
            else:
                thresholds = asked_thresholds(self.bundle.spec, self.options["confidence"], self.options["iou"])
                line = described(self._opened_engine)
                self.model = Model(self.bundle, self._opened_engine, line, thresholds=thresholds)
            self._next = self._open_sources(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._flights is not None:  # before the source and the engines that they use are closed
            self.stop()
            self._flights.end(PATIENCE_S)
        self._next = None
        self._stack.close()

    @property
    def in_flight(self) -> int:
        """Inferences at a time."""
        return 2 if self._throughput else 1

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

        Raises:
            EngineError: two inferences are in flight.
        """
        if self._throughput:
            raise EngineError("no other model can take over while two inferences are in flight; leave out --throughput")
        with self._inferring:
            before, self.model = self.model, model
            if model.bundle is not before.bundle:
                self.bundle = model.bundle
                self._steady = self._steadying(model.bundle)
        return before

    @property
    def statuses(self) -> tuple[Status, ...]:
        """How each live source that was opened is doing, for any thread and at any moment."""
        return tuple(capture.status for capture in self._captures)

    def __iter__(self) -> Iterator[Result]:
        """A result a frame, until the source ends.

        Raises:
            EngineError: the engine failed, or the pipeline is not open.
            SourceError: the source broke off.
        """
        if self._next is None:
            raise EngineError("the pipeline is not open; iterate inside: with Pipeline(...) as pipeline")
        if self._beside is None:
            while (taken := self._take()) is not None:
                with self._inferring:
                    result = self._result(self._infer(self.engine, taken))
                yield result
        else:
            workers = [functools.partial(self._infer, engine) for engine in (self.engine, self._beside)]
            self._flights = InFlight(self._take, workers)
            yield from map(self._result, self._flights)

    def _take(self) -> _Request | None:
        """Wait for the next frame."""
        spans = Spans(self._clock, capacity=1)
        with spans("capture"):
            taken = self._next() if self._next is not None else None
        return _Request(*taken, spans) if taken is not None else None

    def _infer(self, engine: Engine, request: _Request) -> _Request:
        with request.spans("resize"):
            image = prepare(request.frame.picture, self.bundle.spec.input)
        with request.spans("infer"):
            request.outputs = engine.infer(image)
        return request

    def _result(self, request: _Request) -> Result:
        spec, camera, frame, outputs = self.model.spec, request.camera, request.frame, request.outputs
        with request.spans("decode"):
            size = (frame.picture.shape[0], frame.picture.shape[1])
            steady = self._steady[camera] if self._steady else None
            prediction: Prediction
            smoothed: Prediction
            if isinstance(steady, Tracker):
                boxes = detect.decode(outputs, unsure(spec), size)
                prediction = smoothed = steady.update(boxes, frame.captured_ns / NS_PER_MS / 1000)
            else:
                prediction = smoothed = decode(outputs, spec, size)
            if isinstance(steady, Smoother) and isinstance(prediction, Classification):
                smoothed = steady.update(prediction)
            maps = {m.block: outputs[m.output][0] for m in spec.maps} if self.maps else {}
        age_ms = (self._clock() - frame.captured_ns) / NS_PER_MS
        stages_ms = request.spans.latest_ms()
        dropped = self._captures[camera].dropped if self._captures else 0
        return Result(
            frame, prediction, smoothed, maps, age_ms, stages_ms["infer"], stages_ms, dropped, self.model, camera
        )

    def stop(self) -> None:
        """Let another thread's iteration over live sources end after the frame in hand."""
        for capture in self._captures:
            capture.slot.end()
            capture.stop()

    def _steadying(self, bundle: Bundle) -> list[Smoother] | list[Tracker]:
        """What holds the answer of each source steady."""
        if self._track:
            if bundle.spec.task != "detect":
                raise SpecError(
                    f"{bundle.name} is a model to {bundle.spec.task}; only a detector's boxes can be tracked"
                )
            asked = asked_thresholds(bundle.spec, self.options["confidence"], self.options["iou"])
            spec = replace(bundle.spec, thresholds=asked or bundle.spec.thresholds)
            return [Tracker(spec) for _ in self.sources]
        return [Smoother(bundle.spec) for _ in self.sources] if self._smooth and bundle.spec.task == "classify" else []

    def _close_engine(self) -> None:
        """Close the engine that runs in the end, if it is not the caller's."""
        model = getattr(self, "model", None)
        if model is not None and model.engine is not self._opened_engine:
            model.engine.close()

    def _open_sources(self, stack: contextlib.ExitStack) -> Callable[[], tuple[int, Frame] | None]:
        """Open them; gives what waits for the next frame, with its source's place."""
        if not self.source.live:
            frames, pace = iter(stack.enter_context(self.source)), Pace(self._max_fps)
            return lambda: self._paced(frames, pace)
        policy, changed = self._policy or "latest", threading.Condition()
        for source in self.sources:
            self._captures.append(
                Watch(source, policy, self._max_fps, self._give_up_s, changed=changed)
                if isinstance(source, Reconnecting)
                else Capture(source, policy, self._max_fps, changed=changed)
            )
        for capture in self._captures:  # their states can be asked for while they connect
            stack.enter_context(capture)
        turns = Turns([capture.slot for capture in self._captures])

        def take() -> tuple[int, Frame] | None:
            """The next frame; one that is too small to be cropped is passed over, unless it is its camera's first."""
            while (taken := turns.take(self.waiting)) is not None:
                try:
                    cropped = self._cropped(taken)
                except SourceError:
                    if taken[0] not in self._have_cropped:
                        raise
                    self._captures[taken[0]].slot.drops["crop"] += 1
                else:
                    self._have_cropped.add(taken[0])
                    return cropped
            return None

        return take

    def _paced(self, frames: Iterator[Frame], pace: Pace) -> tuple[int, Frame] | None:
        time.sleep(pace.wait_s(self._clock()))
        pace.allows(self._clock())
        frame = next(frames, None)
        return self._cropped((0, frame)) if frame is not None else None

    def _cropped(self, taken: tuple[int, Frame] | None) -> tuple[int, Frame] | None:
        if taken is None or self._crop is None:
            return taken
        camera, frame = taken
        x, y, width, height = self._crop
        picture = frame.picture[y : y + height, x : x + width]
        if not picture.size:
            name, shown = self.sources[camera].name, f"{frame.picture.shape[1]}x{frame.picture.shape[0]}"
            raise SourceError(f"{name}: the crop {self._crop} lies outside its pictures of {shown}; move it")
        return camera, replace(frame, picture=np.ascontiguousarray(picture))

    def _open_beside(self, stack: contextlib.ExitStack) -> Engine:
        """A second engine like the first."""
        first = self.engine
        second = open_engine(
            self.bundle, engine=first.name, precision=first.precision, threads=first.threads, maps=self.maps
        )
        stack.callback(second.close)
        second.infer(blank_input(self.bundle.spec))
        return second
