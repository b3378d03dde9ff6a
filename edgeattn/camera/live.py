"""The loop that shows: results to sinks and the window, keys to what they ask for.

A result is handed over and never waited for: every sink has a thread and a slot of its own. A live source's loop turns in
a thread of its own, too, beside the main one, which has the window and the signals. Sources that are not live wait: none
of their frames is left out, and none grows old.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.bundle import Bundle
from edgeattn.camera import canvas
from edgeattn.camera.canvas import Mosaic, Painter, Painting, Tile
from edgeattn.camera.controls import HELP, Collector, Controls, save_picture
from edgeattn.camera.feed import Feed, Waiting
from edgeattn.camera.pipeline import Pipeline, Result
from edgeattn.camera.record import MEANING, Record
from edgeattn.camera.shadow import Shadow
from edgeattn.camera.sinks import Sink
from edgeattn.camera.state import Status
from edgeattn.camera.window import Window, WindowLostError
from edgeattn.errors import EdgeAttnError
from edgeattn.timing import monotonic_ns

if TYPE_CHECKING:
    from edgeattn.camera.exchange import Exchange


@dataclasses.dataclass
class Channel:
    """One of the sources while it runs."""

    name: str
    """What to call it."""
    record: Record
    """Counts and times of its frames."""
    status: Status | None = None
    """How it is doing, as it was said."""
    painting: Tile | None = None
    """Its newest picture, where there are several."""
    painted_ns: int = 0
    """From when that is."""


SAID_FOR_FRAMES = 60
"""How long a message stays on the screen."""
SILENT_S = 3.0
"""After how long without a frame a source is called silent."""
HUNG_S = 10.0
"""After how long without a turn the loop is called hung: an inference that never returns, a driver that holds it."""
_KEYS_EVERY_S = 0.05
_PATIENCE_S = 0.1
_STATE_EVERY_S = 0.5


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
        several = len(pipeline.sources) > 1
        self.channels = [Channel(each.name, Record() if several else self.record) for each in pipeline.sources]
        """The sources."""
        pipeline.waiting = self._wait
        self._message, self._message_left = (HELP if window else ""), SAID_FOR_FRAMES
        for sink in sinks:
            self.add(sink)

    def add(self, sink: Sink) -> None:
        """Give a sink the results from now on; `close` closes it."""
        lossless = not self.pipeline.source.live
        self.feeds.append(Feed(sink, lossless=lossless, spans=self.record.stages, say=self._say))

    def run(self, max_frames: int | None = None) -> None:
        """Run; ends early where there is no window, or none any more, and the last sink failed.

        Raises:
            EngineError: the engine failed.
            SourceError: the source broke off.
        """
        if self.pipeline.source.live:
            self._loop_beside(max_frames)
        else:
            self._loop(self._show if self._window else None, max_frames)

    def stop(self) -> None:
        """Let the run end after the frame in hand; any thread may ask."""
        self.controls.quit = True
        self.pipeline.stop()

    @property
    def turned_s(self) -> float | None:
        """Seconds since the loop has turned: had a frame, or looked for one; None: it has not begun."""
        return None if self._turned_ns is None else (monotonic_ns() - self._turned_ns) / 1e9

    @property
    def state(self) -> str:
        """`starting`, `running`, `paused`, `silent` (no frame comes), `hung` (the loop stands), or the first camera's."""
        silent_s, turned_s, cameras = self.record.silent_s, self.turned_s, self.pipeline.statuses
        if self.controls.paused and not self.pipeline.source.live:
            return "paused"
        if turned_s is not None and turned_s > HUNG_S:
            return "hung"
        if cameras and not any(camera.state == "live" for camera in cameras):
            return cameras[0].state
        return "starting" if silent_s is None else "silent" if silent_s > SILENT_S else "running"

    @property
    def news(self) -> tuple[str, int]:
        """The state, and how often the model was changed: what is worth telling at once."""
        return self.state, sum(self._exchange.counts.values()) if self._exchange else 0

    def status(self) -> dict[str, Any]:
        """What runs, how it goes and how it is shown, as plain JSON values; any thread may ask."""
        pipeline, now, exchange = self.pipeline, self.record.now(), self._exchange
        engine, cameras = pipeline.engine, pipeline.statuses
        drops = [dict(camera.drops or {}) for camera in cameras] or [{"source": now["dropped"]}]
        return {
            "schema": "edgeattn.status/1",
            "state": self.state,
            "bundle": pipeline.bundle.name,
            "source": ", ".join(_public(each.name) for each in self.channels),
            "engine": engine.name,
            "precision": engine.precision,
            "executed_precision": engine.executed_precision,
            "threads": engine.threads,
            **now,
            "age_means": MEANING.get(now["age_from"]),
            "dropped": {cause: sum(each.get(cause, 0) for each in drops) for cause in drops[0]}
            | {feed.sink.name: feed.dropped for feed in self.feeds},
            "reconnects": sum(camera.reconnects for camera in cameras) if cameras else None,
            "cameras": [
                {"source": _public(each.name), "fps": each.record.fps_now, **camera.report()}
                for each, camera in zip(self.channels, cameras, strict=False)
            ],
            "failed": [feed.sink.name for feed in self.feeds if feed.error],
            "shadow": self._shadow.report() if self._shadow else None,
            "fallback": exchange.fallback if exchange else None,
            "changes": exchange.changes if exchange else [],
            "change_counts": dict(exchange.counts) if exchange else {},
            "blocks": list(self.controls.blocks),
            "gives_maps": bool(pipeline.bundle.spec.maps),
            "view": dataclasses.asdict(self.controls.view),
        }

    def by_source(self) -> list[dict[str, Any]]:
        """Each source's own report, where there are several; as plain JSON values."""
        if len(self.channels) == 1:
            return []
        statuses = self.pipeline.statuses
        return [
            {"source": each.name, **each.record.report([status])}
            for each, status in zip(self.channels, statuses, strict=False)
        ]

    def close(self) -> None:
        """Close the sinks, each with all that it was given, and the window."""
        for feed in self.feeds:
            feed.close()
        if self._shadow is not None:
            self._shadow.close()
        if self._window is not None:
            self._window.close()

    def _loop(self, show: Callable[[Painting], object] | None, max_frames: int | None) -> None:
        for result in self.pipeline:
            self._tell_states()
            if result.model.bundle is not self._bundle:
                self._follow(result.model.bundle)
            self.record.add(result)
            if len(self.channels) > 1:
                self.channels[result.camera].record.add(result)
            with self.record.stages("hand"):
                painting = self._painting(result)
                for feed in self.feeds:
                    feed.put(painting)
            if self._shadow is not None:
                self._shadow.offer(result)
            if show is not None:
                show(painting)
            deserted = self._window is None and self.feeds and all(feed.error for feed in self.feeds)
            if deserted or self.controls.quit or self.record.frames == max_frames:
                return

    def _loop_beside(self, max_frames: int | None) -> None:
        """Turn the loop in a thread, and the window in this one, which signals reach though an inference takes seconds."""
        screen, errors = Waiting(room=1), []

        def loop() -> None:
            try:
                self._loop(screen.put if self._window else None, max_frames)
            except Exception as error:  # raised again in the window's thread
                errors.append(error)
            screen.end()

        thread = threading.Thread(target=loop, name="loop", daemon=True)
        thread.start()
        try:
            self._attend(screen)
            if not self.controls.quit:
                thread.join()
        finally:
            self.stop()
            thread.join(_PATIENCE_S)  # an inference that takes longer is left to the end of the process
        if errors:
            raise errors[0]

    def _attend(self, screen: Waiting) -> None:
        """Show what comes, while there is a window; keys are heard, and the state is shown, while no frame comes."""
        painting = None
        while self._window is not None and not (screen.over or self.controls.quit):
            newer = screen.take(_KEYS_EVERY_S)
            if newer is None and painting is not None:
                newer = self._painting(painting.result)
            if newer is not None:
                painting = newer
                self._show(painting)

    def _show(self, painting: Painting) -> None:
        """In the window, if there is one: a run that was given other sinks goes on when it is lost."""
        if self._window is None:
            return
        try:
            self._interact(self._window, painting)
        except WindowLostError as error:
            self._say(f"window stopped: {error}")
            self._window.close()
            self._window, self.controls.paused = None, False
            self.controls.quit = self.controls.quit or not self.feeds

    def _follow(self, bundle: Bundle) -> None:
        """Another model has taken over: its blocks can be chosen, and frames are collected into its classes."""
        self._bundle = bundle
        self.controls.change_blocks(_blocks(self.pipeline))
        if self._collector is not None:
            self._collector.labels = bundle.spec.labels

    def _wait(self) -> bool:
        """While no source gives a frame: say so; True: to quit."""
        self._tell_states()
        return self.controls.quit

    def _tell_states(self) -> None:
        """Say it when a source's state has changed; the loop comes by here at every turn."""
        self._turned_ns = monotonic_ns()
        for channel, status in zip(self.channels, self.pipeline.statuses, strict=False):
            was, channel.status = channel.status, status
            if status.state == (was.state if was else "connecting"):
                continue
            if status.state != "live":
                self._say(f"{channel.name}: {status.state} ({status.reason})")
            elif was is not None and was.state != "connecting":
                self._say(f"{channel.name}: live again")

    def _painting(self, result: Result) -> Painting:
        """What is to be seen now that there is this result."""
        channel = self.channels[result.camera]
        lines = self._lines(channel, result)
        if self._message and self._message_left > 0:
            self._message_left -= 1
            lines += (self._message,)
        painting = self._painter(result, self.controls.view, lines)
        if len(self.channels) == 1:
            return painting
        channel.painting, channel.painted_ns = painting, monotonic_ns()
        return Mosaic(result, [self._tile(each) for each in self.channels], self._painter)

    def _tile(self, channel: Channel) -> Tile | tuple[str, ...]:
        """Its newest picture; of a camera that gives none, with its state as it is now."""
        painting, now_ns = channel.painting, monotonic_ns()
        if painting is None:
            return self._lines(channel)
        if not _is_live(channel.status) and now_ns - channel.painted_ns > _STATE_EVERY_S * 1e9:
            lines = self._lines(channel, painting.result)
            channel.painting, channel.painted_ns = self._painter(painting.result, self.controls.view, lines), now_ns
        return channel.painting or painting

    def _lines(self, channel: Channel, result: Result | None = None) -> tuple[str, ...]:
        """What stands on a source's picture."""
        lines = [_public(channel.name)] if len(self.channels) > 1 else []
        if result is not None:
            lines.append(canvas.figures(result, channel.record))
        status = channel.status
        if status is not None and not _is_live(status):
            lines.append(f"{status.state} for {(monotonic_ns() - status.since_ns) / 1e9:.1f} s")
        return tuple(lines)

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


def _is_live(status: Status | None) -> bool:
    return status is None or status.state == "live"


def _public(name: str) -> str:
    return name.partition("?")[0]  # what follows may be a password


def _blocks(pipeline: Pipeline) -> tuple[str, ...]:
    """The blocks whose attention is given."""
    return tuple(each.block for each in pipeline.bundle.spec.maps) if pipeline.maps else ()
