"""A float model beside the one that runs, shown a frame now and then: the watch for drift.

It computes in a thread of its own, with one engine thread at low priority, and the loop never waits for it: a frame that
comes while the last one is still being computed is not looked at.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from edgeattn.bundle import Bundle, check_unchanged
from edgeattn.camera.drift import Drift, maps_of
from edgeattn.camera.model import Model, blank_input
from edgeattn.camera.pipeline import Result
from edgeattn.engines import Engine, held, open_artefact
from edgeattn.errors import BundleError, EdgeAttnError
from edgeattn.imaging import prepare
from edgeattn.tasks import decode
from edgeattn.timing import Clock, Spans, monotonic_ns

NICE = 10
"""How far the shadow steps back behind the loop; 19 is the farthest."""
_CLOSE_S = 2.0


class Shadow:
    """Watches a run's results from construction to `close`; a model that takes over is watched from its first frame on."""

    def __init__(
        self,
        every_s: float,
        *,
        say: Callable[[str], object] = print,
        broken: Callable[[Model, str], object] | None = None,
        clock: Clock = monotonic_ns,
    ) -> None:
        """Watch.

        Args:
            every_s: seconds between two frames that are looked at.
            say: is told when a bound breaks, and when it holds again.
            broken: is told the model and the reason when a bound breaks; called in the shadow's thread.
            clock: gives nanoseconds.
        """
        self._every_ns, self._say, self._broken, self._clock = round(every_s * 1e9), say, broken, clock
        self._due_ns = clock()
        self._changed = threading.Condition()
        self._waiting: Result | None = None
        self._busy = self._ended = False
        self._skipped = 0
        self._failure = ""
        self._offered: Bundle | None = None
        self._bundle: Bundle | None = None
        self._engine: Engine | None = None
        self._drift: Drift | None = None
        self._failed = False
        self._spans = Spans(clock)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, result: Result) -> None:
        """Show it a result; it takes one as often as it was told to."""
        now_ns, bundle = self._clock(), result.model.bundle
        if (now_ns < self._due_ns and bundle is self._offered) or not watchable(result.model):
            return
        self._offered = bundle
        self._due_ns = now_ns + self._every_ns
        with self._changed:
            if self._busy or self._failure:
                self._skipped += 1
                return
            self._waiting, self._busy = result, True
            self._changed.notify()

    def report(self) -> dict[str, Any]:
        """What was seen of the model that runs, as plain JSON values; any thread may ask."""
        drift, engine = self._drift, self._engine
        infer_ms = self._spans.values_ms("infer")
        return {
            "every_s": self._every_ns / 1e9,
            "reference": f"{engine.name} {engine.precision}" if engine else None,
            "infer_ms": float(infer_ms[-1]) if len(infer_ms) else None,
            "skipped": self._skipped,
            "failed": self._failure or None,
            **(drift.report() if drift else {"checked": 0, "differed": 0, "verdict": "cannot tell"}),
        }

    def close(self) -> None:
        """End the watch; a float inference in flight is left behind."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    # The shadow's thread.

    def _run(self) -> None:
        step_back()
        try:
            while (result := self._take()) is not None:
                self._look(result)
                with self._changed:
                    self._busy = False
        except Exception as error:  # the run itself goes on
            self._failure = str(error) or type(error).__name__
            self._say(f"the watch for drift has ended: {self._failure}")
        finally:
            if self._engine is not None:
                self._engine.close()

    def _take(self) -> Result | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._ended)
            result, self._waiting = self._waiting, None
            return None if self._ended else result

    def _look(self, result: Result) -> None:
        bundle = result.model.bundle
        if bundle is not self._bundle:
            self._open(result.model)
        assert self._engine is not None
        assert self._drift is not None
        image = prepare(result.frame.picture, bundle.spec.input)
        before_ns = time.monotonic_ns()
        outputs = self._engine.infer(image)
        self._spans.record("infer", time.monotonic_ns() - before_ns)
        wanted_maps = maps_of(outputs, bundle.spec) if result.maps else {}
        wanted = decode(outputs, result.model.spec, result.frame.picture.shape[:2])
        self._drift.add(result.frame.picture, result.prediction, wanted, result.maps, wanted_maps, camera=result.camera)
        self._judge(result.model, self._drift)

    def _open(self, model: Model) -> None:
        if self._engine is not None:
            self._engine.close()
        bundle = model.bundle
        self._engine = open_reference(bundle, maps=bool(bundle.spec.maps))
        self._engine.infer(blank_input(bundle.spec))
        self._drift, self._failed, self._bundle = Drift(bundle), False, bundle

    def _judge(self, model: Model, drift: Drift) -> None:
        """Say it when a bound breaks, and when all of them hold again."""
        verdict = drift.verdict
        if verdict == "failed" and not self._failed:
            self._failed = True
            reason = drift.reason()
            self._say(f"drift: {model.engine.name} {model.engine.precision}: {reason}")
            if self._broken is not None:
                self._broken(model, reason)
        elif verdict == "passed" and self._failed:
            self._failed = False
            self._say(f"drift: {model.engine.name} {model.engine.precision} answers as float does again")


def watchable(model: Model) -> bool:
    """Whether there is something to watch: not where the processor computes the float file itself."""
    return model.engine.precision != "float" or model.certificate is not None


def open_reference(bundle: Bundle, *, maps: bool) -> Engine:
    """The bundle's float model with one thread: ONNX Runtime's, which computes in the thread that asks, else OpenVINO's.

    Raises:
        BundleError: there is none that opens.
    """
    failures = []
    for artefact in sorted(held(bundle, precisions=["float"]), key=lambda each: each.engine != "onnxruntime"):
        try:
            check_unchanged(bundle, artefact)
            return open_artefact(bundle, artefact, threads=1, maps=maps)
        except EdgeAttnError as error:
            failures.append(str(error))
    raise BundleError(f"{bundle.path}: no float model to watch by ({'; '.join(failures) or 'it holds none'})")


def step_back() -> None:
    """Lower the priority of this thread, and of those that it starts; elsewhere than on Linux nothing happens."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
