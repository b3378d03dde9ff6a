"""The loop that shows: results to sinks and the window, keys to what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeattn.camera import canvas
from edgeattn.camera.controls import HELP, Collector, Controls, save_picture
from edgeattn.camera.pipeline import Pipeline, Result
from edgeattn.camera.record import Record
from edgeattn.camera.sinks import Sink, Window
from edgeattn.camera.state import State
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.timing import monotonic_ns

SAID_FOR_FRAMES = 60
"""How long a message stays on the screen."""


class Live:
    """Runs a pipeline until its source ends, `max_frames` are done or a key says quit."""

    def __init__(
        self,
        pipeline: Pipeline,
        sinks: Sequence[Sink] = (),
        *,
        window: Window | None = None,
        collector: Collector | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        """Connect a pipeline with where its results go.

        Args:
            pipeline: an open pipeline.
            sinks: take every result.
            window: shows it, and gives the keys.
            collector: saves frames into class folders at the keys 1 to 9 and 0.
            say: tells the user what a key did.
        """
        self.record = Record()
        """Counts and times of the run."""
        self.controls = Controls(overlay=pipeline.maps)
        """What the keys have set."""
        self._pipeline, self._sinks, self._window = pipeline, sinks, window
        self._collector, self._say = collector, say
        self._latest: Result | None = None
        self._state: State = "connecting"
        pipeline.waiting = self._wait
        self._paints = window is not None or any(sink.draws for sink in sinks)
        self._message, self._message_left = (HELP if window else ""), SAID_FOR_FRAMES

    def run(self, max_frames: int | None = None) -> None:
        """Run.

        Raises:
            EngineError: the engine failed.
            SourceError: the source broke off.
            EdgeAttnError: a sink cannot be written.
        """
        for result in self._pipeline:
            self._latest = result
            self._tell_state()
            self.record.add(result)
            with self.record.stages("draw"):
                picture = self._paint(result) if self._paints else None
            with self.record.stages("write"):
                for sink in self._sinks:
                    sink.write(result, picture)
            if self._window is not None and picture is not None:
                self._interact(self._window, result, picture)
            if self.controls.quit or self.record.frames == max_frames:
                return

    def close(self) -> None:
        """Close the window."""
        if self._window is not None:
            self._window.close()

    def _wait(self) -> bool:
        """While the source gives no frame: say so, and keep the window and its keys alive; True: to quit."""
        self._tell_state()
        if self._window is not None and self._latest is not None:
            self._interact(self._window, self._latest, self._paint(self._latest))
        return self.controls.quit

    def _tell_state(self) -> None:
        """Say it when the source's state has changed."""
        status = self._pipeline.status
        if status is None or status.state == self._state:
            return
        was, self._state = self._state, status.state
        if status.state == "live" and was != "connecting":
            self._say(f"{self._pipeline.source.name}: live again")
        elif status.state != "live":
            self._say(f"{self._pipeline.source.name}: {status.state} ({status.reason})")

    def _paint(self, result: Result) -> Picture:
        lines = [canvas.figures(result, self.record)]
        status = self._pipeline.status
        if status is not None and status.state != "live":
            lines.append(f"{status.state} for {(monotonic_ns() - status.since_ns) / 1e9:.1f} s")
        if self._message_left > 0:
            self._message_left -= 1
            lines.append(self._message)
        spec = self._pipeline.bundle.spec
        return canvas.paint(result, spec, overlay=self.controls.overlay, lines=tuple(filter(None, lines)))

    def _interact(self, window: Window, result: Result, picture: Picture) -> None:
        """Show the picture and do what the keys ask for; while paused, stay with it."""
        self._act(window.show(picture), result, picture)
        while self.controls.paused and not self.controls.quit:
            picture = self._paint(result)
            self._act(window.show(picture), result, picture)

    def _act(self, key: int, result: Result, picture: Picture) -> None:
        action = self.controls.press(key)
        try:
            if action == "snapshot":
                self._tell(f"saved {save_picture(picture, Path(), '.png')}")
            elif isinstance(action, int) and self._collector is None:
                self._tell("start with --collect PHOTOS to save frames for training")
            elif isinstance(action, int) and self._collector is not None:
                self._tell(f"saved {self._collector.save(result.frame.picture, action)}")
        except EdgeAttnError as error:  # a full disk does not end the run
            self._tell(str(error))

    def _tell(self, message: str) -> None:
        self._message, self._message_left = message, SAID_FOR_FRAMES
        self._say(message)
