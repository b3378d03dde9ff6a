"""The thread that watches a camera: sees silence, leaves readers behind that are stuck, opens the camera again.

Every connection has a reader with a thread of its own. Whoever takes the frames never touches the camera.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from types import TracebackType

from edgeattn.camera.capture import PATIENCE_S, close_at_exit
from edgeattn.camera.frame import Connection, Frame, Interrupt, Reconnecting
from edgeattn.camera.slot import Policy, Slot
from edgeattn.camera.state import CHANGES, Change, State, Status
from edgeattn.errors import RefusedError, SourceError
from edgeattn.imaging import Picture
from edgeattn.timing import monotonic_ns

STALLED = 0.45
"""Part of the time-out after which a silence is called a stall: within half a second."""
MOST_PATIENT_S = 10.0
"""How long a camera may be silent at most that gives a frame now and then."""
QUICK = 5
"""Frames in a row without a stall that make a camera a quick one."""
OPENING_S = 1.5
"""How much longer than its time-out opening may take: OpenCV opens one stream after the other."""
EAGER_S = 60.0
"""How long a camera that is away is looked for ten times a second."""
KEPT = 5
"""Time-outs for which a silent connection is kept while new ones are tried: the first that has a frame is the one. A
camera that only paused goes on where it was, without a wait for the next keyframe."""
LEFT_BEHIND = 3
"""Silent or stuck readers of one camera, at most: beyond that it is opened again only when one of them ends."""
_PROBE_S, _LAZY_S = 0.1, 2.0


class Watch:
    """Reads a camera for as long as it takes: reconnects whenever it breaks off or is silent for too long."""

    def __init__(
        self,
        camera: Reconnecting,
        policy: Policy = "latest",
        max_fps: float | None = None,
        give_up_s: float | None = None,
        *,
        changed: threading.Condition | None = None,
    ) -> None:
        """Describe it; `give_up_s` is how long it may be without a frame before that is an error (None: for ever)."""
        self.slot = Slot(policy, max_fps, changed)
        self._camera, self._give_up_s = camera, give_up_s
        self._changed = threading.Condition()  # guards all that follows
        self._changes: deque[Change] = deque([Change("connecting", monotonic_ns())], maxlen=CHANGES)
        self._reconnects = self._stalls = self._resizes = self._damaged = self._skipped = 0
        self._size: tuple[int, int] | None = None
        self._frames = 0
        self._latest_ns = monotonic_ns()
        self._timeout_s = camera.timeout_s
        self._slow = self._quick = 0
        self._reader: _Reader | None = None
        self._readers: list[_Reader] = []
        self._stopped_ns = math.inf  # not yet
        self._tried = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch {camera.name}", daemon=True)

    @property
    def status(self) -> Status:
        """How it is doing, for any thread."""
        with self._changed:
            damaged, skipped = self._damaged, self._skipped
            for reader in self._readers:
                if reader.connection is not None:
                    damaged += reader.connection.damaged
                    skipped += reader.connection.skipped
            drops = dict(self.slot.drops, backlog=skipped)
            changes = tuple(self._changes)
            return Status(changes, self._reconnects, self._stalls, self._resizes, damaged, drops, self._size)

    @property
    def dropped(self) -> int:
        """Good frames that were not used."""
        with self._changed:
            connections = [reader.connection for reader in self._readers]
            return self.slot.dropped + self._skipped + sum(each.skipped for each in connections if each is not None)

    def __enter__(self) -> Watch:
        """Start; returns once the first attempt has succeeded, or failed where the camera is waited for.

        Raises:
            SourceError: a local camera does not open, or a network camera wants another login or address.
        """
        close_at_exit(self)
        self._thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._tried)
        except BaseException:
            self.close(0.0)
            raise
        if self._failure is not None:
            self.close(PATIENCE_S)
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(PATIENCE_S)

    def stop(self) -> None:
        """Stop reading, and open nothing more."""
        with self._changed:
            self._stopped_ns = min(self._stopped_ns, monotonic_ns())
            self._retire_all_but(None)
            self._changed.notify_all()

    def close(self, patience_s: float) -> None:
        """Stop reading; wait for the readers until it was stopped that long ago, and leave behind those that are stuck."""
        self.stop()
        until_ns = self._stopped_ns + patience_s * 1e9

        def wait_for(thread: threading.Thread) -> None:
            thread.join(max(0.0, (until_ns - monotonic_ns()) / 1e9))

        wait_for(self._thread)  # it starts the readers
        with self._changed:
            readers = list(self._readers)
        for reader in readers:
            wait_for(reader.thread)

    @property
    def _stopped(self) -> bool:
        return self._stopped_ns < math.inf

    # The watcher's thread.

    def _run(self) -> None:
        try:
            while not self._stopped:
                reader = self._reader or self._open()
                self._follow(reader)
                self._leave(reader)
                self._pause(reader)
            self.slot.end()
        except BaseException as error:  # raised again where the frames are taken, or where the watch is entered
            self._failure = error
            self.slot.end(error)
        finally:
            self.stop()
            self._end_attempt()

    def _open(self) -> _Reader:
        with self._changed:
            reader = self._reader = _Reader(self, self._camera, self._timeout_s)
            self._readers.append(reader)
        reader.thread.start()
        return reader

    def _follow(self, reader: _Reader) -> None:
        """Until the reader is at its end, silent for too long, or an older one has come back before it."""
        with self._changed:
            while not self._stopped and reader.error is None and self._reader is reader:
                silent_s = (monotonic_ns() - reader.latest_ns) / 1e9
                stalled_s = self._timeout_s * STALLED
                held = reader.connection.held if reader.frames and reader.connection is not None else 1.0
                limit_s = held * self._timeout_s if reader.frames else self._timeout_s + OPENING_S
                if silent_s >= limit_s:
                    return
                if reader.frames and silent_s >= stalled_s and self._changes[-1].state == "live":
                    self._stalls += 1
                    self._enter("stalled", "no frame comes")
                if reader.frames and silent_s >= self._timeout_s and self._changes[-1].state == "stalled":
                    self._enter("down", "no frame comes")
                self._check_give_up("no frame comes")
                steps_s = (stalled_s, self._timeout_s, limit_s) if reader.frames else (limit_s,)
                self._changed.wait(min(min(step for step in steps_s if step > silent_s) - silent_s, self._left_s()))

    def _leave(self, reader: _Reader) -> None:
        """Leave a reader behind, if it is still the one that counts."""
        with self._changed:
            if self._reader is not reader:
                return
            self._reader = None
            error = reader.error
            if error is None and reader.frames:
                self._grow_patient()
            if not self._stopped and self._changes[-1].state != "down":
                reason = str(error or "no frame came").removeprefix(f"{self._camera.name} ")
                self._enter("down", reason)
        at_start = not (self._tried or self._stopped) and (self._camera.local or isinstance(error, RefusedError))
        if error is not None and (at_start or not isinstance(error, SourceError)):
            raise error
        self._end_attempt()

    def _grow_patient(self) -> None:
        """A camera that gives a frame now and then is no broken one."""
        self._slow += 1
        if self._slow > 1:
            self._timeout_s = min(2 * self._timeout_s, max(MOST_PATIENT_S, self._camera.timeout_s))

    def _pause(self, reader: _Reader) -> None:
        """Until the camera is tried again (at once, if the attempt took longer than the pause), or an old reader is back."""
        with self._changed:
            until_ns = reader.began_ns + probe_s((monotonic_ns() - self._latest_ns) / 1e9) * 1e9
            while not self._stopped and self._reader is None:
                self._check_give_up(self._changes[-1].reason)
                left_s = (until_ns - monotonic_ns()) / 1e9
                if left_s <= 0 and len(self._readers) <= LEFT_BEHIND:
                    return
                self._changed.wait(min(max(left_s, 0.01) if left_s > 0 else _PROBE_S, self._left_s()))

    def _left_s(self) -> float:
        """How long until it is given up."""
        if self._give_up_s is None:
            return EAGER_S
        return max(0.0, self._give_up_s - (monotonic_ns() - self._latest_ns) / 1e9)

    def _check_give_up(self, reason: str) -> None:
        if self._left_s() <= 0:
            raise SourceError(
                f"{self._camera.name} has been away for {self._give_up_s:g} s ({reason}); check it and start again"
            )

    def _end_attempt(self) -> None:
        with self._changed:
            self._tried = True
            self._changed.notify_all()

    def _enter(self, state: State, reason: str = "") -> None:
        self._changes.append(Change(state, monotonic_ns(), reason))

    def _retire_all_but(self, reader: _Reader | None) -> None:
        for other in self._readers:
            if other is not reader:
                other.retired = True
                other.interrupt()

    # The readers' threads.

    def _seen(self, reader: _Reader, picture: Picture, captured_ns: int) -> bool:
        """Take a frame of a reader; False: it does not count any more."""
        with self._changed:
            if reader.retired or self._stopped:
                return False
            if self._changes[-1].state == "stalled":
                self._grow_patient()
            if self._changes[-1].state != "live" or reader is not self._reader:  # the first that has a frame is the one
                self._reader = reader
                self._retire_all_but(reader)
                self._enter("live")
                self._tried = True
                self._changed.notify_all()
            now_ns = monotonic_ns()
            self._quick = self._quick + 1 if now_ns - self._latest_ns < self._camera.timeout_s * STALLED * 1e9 else 0
            if self._quick == QUICK:
                self._slow, self._timeout_s = 0, self._camera.timeout_s
            self._latest_ns = reader.latest_ns = now_ns
            reader.frames += 1
            self._reconnects += reader.frames == 1 and self._frames > 0
            size = (picture.shape[1], picture.shape[0])
            self._resizes += self._size not in (None, size)
            self._size = size
            age_from = reader.connection.age_from if reader.connection is not None else "received"
            self.slot.put(Frame(picture, self._frames, captured_ns, age_from))
            self._frames += 1
            return True

    def _ended(self, reader: _Reader, error: BaseException | None) -> None:
        with self._changed:
            reader.error = error
            self._readers.remove(reader)
            if reader.connection is not None:
                self._damaged += reader.connection.damaged
                self._skipped += reader.connection.skipped
            self._changed.notify_all()


class _Reader:
    """One connection and its thread."""

    def __init__(self, watch: Watch, camera: Reconnecting, timeout_s: float) -> None:
        self.connection: Connection | None = None
        self.error: BaseException | None = None
        self.retired = False
        self.interrupt = Interrupt()
        self.frames = 0
        self.began_ns = self.latest_ns = monotonic_ns()
        self._watch, self._camera, self._timeout_s = watch, camera, timeout_s
        self.thread = threading.Thread(target=self._run, name=f"read {camera.name}", daemon=True)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            connection = self._camera.connect(self._timeout_s, KEPT * self._timeout_s, self.interrupt)
            try:
                self.connection = connection
                while self._watch._seen(self, *connection.read()):
                    pass
            finally:
                connection.close()
        except BaseException as failure:  # the watcher's to judge
            error = failure
        self._watch._ended(self, error)


def probe_s(away_s: float) -> float:
    """How long to wait before a camera is tried again that has been away for so long."""
    if away_s < EAGER_S:
        return _PROBE_S
    doublings = min(10.0, (away_s - EAGER_S) / 10)
    return min(_LAZY_S, _PROBE_S * 2**doublings) * random.uniform(0.75, 1.0)
