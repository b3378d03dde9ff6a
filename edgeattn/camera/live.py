"""The loop that shows: results to sinks and the window, keys to what they ask for.

A result is handed over and never waited for: every sink has a thread and a slot of its own. The window belongs to the
main thread (OpenCV demands it), so that a live source's loop then turns in a thread beside it. Sources that are not live
wait: none of their frames is left out, and none grows old.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.bundle import Bundle
from edgeattn.camera import canvas
from edgeattn.camera.canvas import Painter, Painting
from edgeattn.camera.controls import HELP, Collector, Controls, save_picture
from edgeattn.camera.feed import Feed, Waiting
from edgeattn.camera.pipeline import Pipeline, Result
from edgeattn.camera.record import MEANING, Record
from edgeattn.camera.shadow import Shadow
from edgeattn.camera.sinks import Sink, Window
from edgeattn.camera.state import Status
from edgeattn.errors import EdgeAttnError
from edgeattn.timing import monotonic_ns

if TYPE_CHECKING:
    from edgeattn.camera.exchange import Exchange

SAID_FOR_FRAMES = 60
"""How long a message stays on the screen."""
SILENT_S = 3.0
"""After how long without a frame a source is called silent."""
HUNG_S = 10.0
"""After how long without a turn the loop is called hung: an inference that never returns, a driver that holds it."""
_KEYS_EVERY_S = 0.05


class Live:
    """Runs a pipeline until its source ends, `max_frames` are done or a key says quit."""

    def __init__(
        self,
        pipeline: Pipeline,
        sinks: Sequence[Sink] = (),
        *,
        window: Window | None = None,
        collector: Collector | None = None,
        shadow: Shadow | None = None,
        exchange: Exchange | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        """Connect a pipeline with where its results go.

        Args:
            pipeline: an open pipeline.
            sinks: take every result, see `add`.
            window: shows it, and gives the keys.
            collector: saves frames into class folders at the keys 1 to 9 and 0.
            shadow: watches for drift; is closed with the sinks.
            exchange: changes the model; its state is told with the run's.
            say: tells the user what a key did, and which sink failed.
        """
        self.pipeline = pipeline
        """What runs."""
        self.record = Record()
        """Counts and times of the run."""
        self.controls = Controls(attention=pipeline.maps, blocks=_blocks(pipeline))
        """What the keys have set."""
        self.feeds: list[Feed] = []
        """The sinks, each with what waits for it."""
        self._window, self._collector, self._say = window, collector, say
        self._shadow, self._exchange = shadow, exchange
        self._bundle = pipeline.bundle
        self._turned_ns: int | None = None
        self._painter = Painter(self.record.stages)
        self._status: Status | None = None
        pipeline.waiting = self._wait
        self._message, self._message_left = (HELP if window else ""), SAID_FOR_FRAMES
        for sink in sinks:
            self.add(sink)

    def add(self, sink: Sink) -> None:
        """Give a sink the results from now on; `close` closes it."""
        lossless = not self.pipeline.source.live
        self.feeds.append(Feed(sink, lossless=lossless, spans=self.record.stages, say=self._say))

    def run(self, max_frames: int | None = None) -> None:
        """Run; ends early where the last sink failed and there is no window.

        Raises:
            EngineError: the engine failed.
            SourceError: the source broke off.
        """
        window = self._window
        if window is None:
            self._loop(None, max_frames)
        elif self.pipeline.source.live:
            self._loop_beside(window, max_frames)
        else:
            self._loop(lambda painting: self._interact(window, painting), max_frames)

    @property
    def turned_s(self) -> float | None:
        """Seconds since the loop has turned: had a frame, or looked for one; None: it has not begun."""
        return None if self._turned_ns is None else (monotonic_ns() - self._turned_ns) / 1e9

    @property
    def state(self) -> str:
        """`starting`, `running`, `paused`, `silent` (no frame comes), `hung` (the loop stands), or the camera's own."""
        pipeline, silent_s, turned_s = self.pipeline, self.record.silent_s, self.turned_s
        camera = pipeline.status
        if self.controls.paused and not pipeline.source.live:
            return "paused"
        if turned_s is not None and turned_s > HUNG_S:
            return "hung"
        if camera is not None and camera.state != "live":
            return camera.state
        return "starting" if silent_s is None else "silent" if silent_s > SILENT_S else "running"

    def status(self) -> dict[str, Any]:
        """What runs, how it goes and how it is shown, as plain JSON values; any thread may ask."""
        pipeline, now, exchange = self.pipeline, self.record.now(), self._exchange
        engine, camera = pipeline.engine, pipeline.status
        return {
            "schema": "edgeattn.status/1",
            "state": self.state,
            "bundle": pipeline.bundle.name,
            "source": pipeline.source.name.partition("?")[0],  # what follows may be a password
            "engine": engine.name,
            "precision": engine.precision,
            "executed_precision": engine.executed_precision,
            "threads": engine.threads,
            **now,
            "age_means": MEANING.get(now["age_from"]),
            "dropped": (dict(camera.drops or {}) if camera else {"source": now["dropped"]})
            | {feed.sink.name: feed.dropped for feed in self.feeds},
            "reconnects": camera.reconnects if camera else None,
            "camera": camera.report() if camera else None,
            "failed": [feed.sink.name for feed in self.feeds if feed.error],
            "shadow": self._shadow.report() if self._shadow else None,
            "fallback": exchange.fallback if exchange else None,
            "changes": exchange.changes if exchange else [],
            "change_counts": dict(exchange.counts) if exchange else {},
            "blocks": list(self.controls.blocks),
            "gives_maps": bool(pipeline.bundle.spec.maps),
            "view": dataclasses.asdict(self.controls.view),
        }

    def close(self) -> None:
        """Close the sinks, each with all that it was given, and the window."""
        for feed in self.feeds:
            feed.close()
        if self._shadow is not None:
            self._shadow.close()
        if self._window is not None:
            self._window.close()

    def _loop(self, show: Callable[[Painting], None] | None, max_frames: int | None) -> None:
        for result in self.pipeline:
            self._tell_state()
            if result.model.bundle is not self._bundle:
                self._follow(result.model.bundle)
            self.record.add(result)
            with self.record.stages("hand"):
                painting = self._painting(result)
                for feed in self.feeds:
                    feed.put(painting)
            if self._shadow is not None:
                self._shadow.offer(result)
            if show is not None:
                show(painting)
            deserted = show is None and self.feeds and all(feed.error for feed in self.feeds)
            if deserted or self.controls.quit or self.record.frames == max_frames:
                return

    def _loop_beside(self, window: Window, max_frames: int | None) -> None:
        """Turn the loop in a thread, and the window in this one."""
        screen, errors = Waiting(room=1), []

        def loop() -> None:
            try:
                self._loop(screen.put, max_frames)
            except Exception as error:  # raised again in the window's thread
                errors.append(error)
            screen.end()

        thread = threading.Thread(target=loop, name="loop", daemon=True)
        thread.start()
        try:
            painting = None
            while not (screen.over or self.controls.quit):
                newer = screen.take(_KEYS_EVERY_S)
                if newer is None and painting is not None:
                    # Keys are heard, and the state is shown, while no frame comes.
                    newer = self._painting(painting.result)
                if newer is not None:
                    painting = newer
                    self._interact(window, painting)
        finally:
            self.controls.quit = True
            self.pipeline.stop()
            thread.join()
        if errors:
            raise errors[0]

    def _follow(self, bundle: Bundle) -> None:
        """Another model has taken over: its blocks can be chosen, and frames are collected into its classes."""
        self._bundle = bundle
        self.controls.change_blocks(_blocks(self.pipeline))
        if self._collector is not None:
            self._collector.labels = bundle.spec.labels

    def _wait(self) -> bool:
        """While the source gives no frame: say so; True: to quit."""
        self._tell_state()
        return self.controls.quit

    def _tell_state(self) -> None:
        """Say it when the source's state has changed; the loop comes by here at every turn."""
        self._turned_ns = monotonic_ns()
        was, status = self._status, self.pipeline.status
        self._status = status
        if status is None or status.state == (was.state if was else "connecting"):
            return
        if status.state == "live" and was is not None and was.state != "connecting":
            self._say(f"{self.pipeline.source.name}: live again")
        elif status.state != "live":
            self._say(f"{self.pipeline.source.name}: {status.state} ({status.reason})")

    def _painting(self, result: Result) -> Painting:
        lines = [canvas.figures(result, self.record)]
        status = self._status
        if status is not None and status.state != "live":
            lines.append(f"{status.state} for {(monotonic_ns() - status.since_ns) / 1e9:.1f} s")
        if self._message_left > 0:
            self._message_left -= 1
            lines.append(self._message)
        return self._painter(result, self.controls.view, tuple(filter(None, lines)))

    def _interact(self, window: Window, painting: Painting) -> None:
        """Show the picture and do what the keys ask for; while paused, stay with it."""
        self._act(window, painting)
        while self.controls.paused and not self.controls.quit:
            if not self.pipeline.source.live:
                self._turned_ns = monotonic_ns()  # it stands still because it was told to
            painting = self._painting(painting.result)
            self._act(window, painting)

    def _act(self, window: Window, painting: Painting) -> None:
        picture = painting.picture("all")
        action = self.controls.press(window.show(picture))
        try:
            if action == "snapshot":
                self._tell(f"saved {save_picture(picture, Path(), '.png')}")
            elif isinstance(action, int) and self._collector is None:
                self._tell("start with --collect PHOTOS to save frames for training")
            elif isinstance(action, int) and self._collector is not None:
                self._tell(f"saved {self._collector.save(painting.result.frame.picture, action)}")
        except EdgeAttnError as error:  # a full disk does not end the run
            self._tell(str(error))

    def _tell(self, message: str) -> None:
        self._message, self._message_left = message, SAID_FOR_FRAMES
        self._say(message)


def _blocks(pipeline: Pipeline) -> tuple[str, ...]:
    """The blocks whose attention is given."""
    return tuple(each.block for each in pipeline.bundle.spec.maps) if pipeline.maps else ()
