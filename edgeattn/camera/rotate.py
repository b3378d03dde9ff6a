"""Files for a box that runs for years: one after the other, the oldest removed, none while the disk is full.

A file is named after its beginning, `STEM-20261122T104209.123Z.mp4` (UTC), so that names sort as times do. It is whole
once the next one begins: where the power fails, what is lost is at most the video then being written.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from edgeattn.camera.canvas import Draws
from edgeattn.camera.pipeline import Result
from edgeattn.camera.sinks import Sink
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import Picture
from edgeattn.timing import Clock, monotonic_ns

EVERY_S = 600.0
"""How long a file is written where nothing is asked for."""
LEAST_BYTES = 20_000_000
"""Least cap on files together: below it, what a video's writer still holds back would matter."""
PARTS = 8
"""Files that a cap is divided into where no size is asked for, so that removing one leaves most of the past."""
FLOOR_BYTES = 100_000_000
"""Free space that is left to others; on a small disk a twentieth of it."""
_MARGIN = 1 / 32  # of the cap: a video's index, and what its writer has not yet given to the disk
_HELD_BYTES = 1 << 18  # what FFmpeg's writer holds back
_AGAIN = 1.25  # times the floor must be free before writing goes on
_LOOK_NS = 1_000_000_000
_RETRY_NS = 10_000_000_000


@dataclass(frozen=True)
class Rotation:
    """When a file gives way to a new one, and what all of them may take together."""

    every_s: float | None = EVERY_S
    """How long a file is written, in seconds; None: however long."""
    most_bytes: int | None = None
    """How large a file becomes; None: with a cap an eighth of it."""
    keep_bytes: int | None = None
    """What all files may take; None: no cap."""

    def __post_init__(self) -> None:
        keep, most = self.keep_bytes, self.most_bytes
        if keep is not None and keep < LEAST_BYTES:
            raise EdgeAttnError(f"--keep {keep / 1e6:g}MB is too little; give it {LEAST_BYTES / 1e6:g}MB at least")
        if most is not None and most < LEAST_BYTES // PARTS:
            raise EdgeAttnError(
                f"--rotate {most / 1e6:g}MB is too little; give it {LEAST_BYTES // PARTS / 1e6:g}MB at least"
            )
        if keep is not None and most is not None and most > keep // 4:
            raise EdgeAttnError(
                f"--rotate {most / 1e6:g}MB is more than a quarter of --keep; older files would have no room"
            )

    @property
    def file_bytes(self) -> int | None:
        """How large a file becomes at most; None: it has no bound."""
        return self.most_bytes or (self.keep_bytes // PARTS if self.keep_bytes else None)


class Segments:
    """The files of a run's sinks in one folder, and those of earlier runs of the same stem."""

    def __init__(
        self,
        folder: Path,
        stem: str,
        keep_bytes: int | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage,
    ) -> None:
        """Describe them; nothing is touched yet.

        Args:
            folder: where they lie.
            stem: how their names begin; no other file is ever removed.
            keep_bytes: what all of them may take; None: no cap.
            now: the wall clock.
            usage: gives the total, used and free bytes of a folder's disk.
        """
        self.folder = folder
        self.removed = 0
        """Files removed to make room."""
        self._keep_bytes, self._stem, self._now, self._usage = keep_bytes, stem, now, usage
        self._pattern = re.compile(re.escape(stem) + r"-\d{8}T\d{6}\.\d{3}Z\.\w+")
        self._lock = threading.Lock()  # guards all that follows
        self._running: set[Path] = set()
        self._finished: list[tuple[Path, int]] = []

    def begin(self, suffix: str) -> Path:
        """A new name; its file is not removed until `end`."""
        with self._lock:
            moment = self._now()
            while (path := self._path(moment, suffix)).exists():
                moment += timedelta(milliseconds=1)
            self._running.add(path)
            self._count()
            return path

    def end(self, path: Path) -> None:
        """A file is written no more."""
        with self._lock:
            self._running.discard(path)
            self._count()

    def fit(self) -> None:
        """Remove the oldest files until all are within the cap; one that is being written stays."""
        if self._keep_bytes is None:
            return
        with self._lock:
            room = self._keep_bytes * (1 - _MARGIN) - sum(map(_size, self._running))
            while self._finished and sum(size for _, size in self._finished) > room:
                path, _ = self._finished.pop(0)
                path.unlink(missing_ok=True)
                self.removed += 1

    def full(self, *, again: bool = False) -> str | None:
        """Why nothing may be written now; None: there is space. `again`: for going on, a little more."""
        try:
            total, _, free = self._usage(self.folder)
        except OSError as error:
            return f"{self.folder} cannot be reached ({error.strerror})"
        floor = min(FLOOR_BYTES, total / 20) * (_AGAIN if again else 1)
        return f"only {free / 1e6:.0f} MB are free in {self.folder.resolve()}" if free < floor else None

    def _path(self, moment: datetime, suffix: str) -> Path:
        stamp = f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"
        return self.folder / f"{self._stem}-{stamp}{suffix}"

    def _count(self) -> None:
        """Look for the files that are done, also those of an earlier run, from the oldest on."""
        paths = sorted(path for path in self.folder.iterdir() if self._pattern.fullmatch(path.name))
        self._finished = [(path, _size(path)) for path in paths if path not in self._running]


class Rotating:
    """A sink whose file gives way to a new one, by time or size, and that waits where the disk is full.

    What is written is whole at every change of files. Errors after the first file are said and tried again: a disk that
    is full, or was pulled out, ends no run.
    """

    def __init__(
        self,
        make: Callable[[Path], Sink],
        path: Path,
        segments: Segments,
        rotation: Rotation | None = None,
        *,
        say: Callable[[str], object] = print,
        clock: Clock = monotonic_ns,
    ) -> None:
        """Open the first file.

        Args:
            make: opens a sink that writes to a path.
            path: gives the suffix; without a rotation the first file has this very name.
            segments: names the files and makes room for them.
            rotation: when a new one begins; None: only after the disk was full.
            say: tells why nothing is written, and where it goes on.
            clock: gives nanoseconds.

        Raises:
            EdgeAttnError: the file cannot be written.
        """
        self._every_s = rotation.every_s if rotation else None
        self._most_bytes = rotation.file_bytes if rotation else None
        self._make, self._suffix, self._segments = make, path.suffix, segments
        self._say, self._clock = say, clock
        self.files, self.missed = 1, 0
        """Files so far; results that came while nothing could be written."""
        try:
            segments.folder.mkdir(parents=True, exist_ok=True)
            self._path = segments.begin(path.suffix) if rotation else path
        except OSError as error:
            raise EdgeAttnError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        self._sink: Sink | None = make(self._path)
        self.name, self.waiting, self._draws = self._sink.name, self._sink.waiting, self._sink.draws
        self._wrote = False
        self._began_ns: int | None = None
        self._look_ns = clock()
        self._problem, self._said = "", False

    @property
    def draws(self) -> Draws | None:
        """What the file's sink wants; None while nothing can be written."""
        if self._clock() >= self._look_ns:
            self._look_ns = self._clock() + _LOOK_NS
            self._look()
        if self._problem:
            self.missed += 1
            return None
        return self._draws

    def write(self, result: Result, picture: Picture | None) -> None:
        """Write, into a new file where it is time for one.

        Raises:
            EdgeAttnError: already the first result cannot be written.
            OSError: likewise.
        """
        try:
            if self._due():
                self.close()
            self._into().write(result, picture)
            self._segments.fit()
        except (OSError, EdgeAttnError) as error:
            if not self._wrote:
                raise
            self.missed += 1
            self._look_ns = self._clock() + _RETRY_NS
            self._pause(str(error))
            return
        self._wrote = True
        if self._said:
            self._said = False
            self._say(f"{self.name} is written again: {self._path}")

    def close(self) -> None:
        """Finish the file in hand.

        Raises:
            EdgeAttnError: it is not whole.
        """
        if self._sink is not None:
            sink, self._sink = self._sink, None
            try:
                sink.close()
            finally:
                self._segments.end(self._path)
                self._segments.fit()

    def figures(self) -> dict[str, Any]:
        """For the report: files written, files removed by all sinks of the run, results that found no space."""
        return {"files": self.files, "removed": self._segments.removed, "missed": self.missed}

    def _due(self) -> bool:
        """Whether the file in hand has had its time or size."""
        if self._sink is None or self._began_ns is None:
            return False
        if self._every_s is not None and self._clock() - self._began_ns >= self._every_s * 1e9:
            return True
        return self._most_bytes is not None and _size(self._path) + _HELD_BYTES >= self._most_bytes

    def _into(self) -> Sink:
        """The sink of the file in hand, or of a new one."""
        if self._sink is None:
            self._path = self._segments.begin(self._suffix)
            self._sink = self._make(self._path)
            self._began_ns = None
            self.files += 1
        if self._began_ns is None:
            self._began_ns = self._clock()
        return self._sink

    def _look(self) -> None:
        """See whether there is space."""
        problem = self._segments.full(again=bool(self._problem))
        if problem:
            self._pause(problem)
        self._problem = problem or ""

    def _pause(self, problem: str) -> None:
        """Finish the file in hand, and say once why nothing is written."""
        self._problem = problem
        if not self._said:
            self._said = True
            self._say(f"{self.name} is not written for now: {problem}")
        with contextlib.suppress(OSError, EdgeAttnError):  # what is wrong has been said
            self.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not begun, or somebody took it away
        return 0
