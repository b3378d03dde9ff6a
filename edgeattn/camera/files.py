"""Files as sources: a video (every frame, or replayed live at its own pace) and a folder of pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeattn._cv2 import cv2
from edgeattn.camera.frame import Frame
from edgeattn.errors import DataError, PictureError, SourceError
from edgeattn.imaging import SUFFIXES, list_pictures, read_picture
from edgeattn.timing import Clock, monotonic_ns


class Video:
    """A video file: every frame as fast as asked for, or with `realtime` replayed live at its own pace.

    Replayed, a frame is captured when it is due, whether or not anybody was ready for it. A file `NAME.truth.jsonl`
    beside the video, one object `{"index": 0, "label": "seven"}` a frame, gives its frames their `truth`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        realtime: bool = False,
        clock: Clock = monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = Path(path)
        self.name, self.live = str(path), realtime
        self.fps: float | None = None
        self._clock, self._sleep = clock, sleep
        self._capture: Any = None
        if not self.path.is_file():
            raise SourceError(f"{path}: there is no such video; check the path")
        self._truth = _read_truth(self.path.with_suffix(".truth.jsonl"))

    def __enter__(self) -> Video:
        self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(f"{self.path}: not a video that can be read; convert it to MP4 (H.264) first")
        self.fps = plausible(self._capture.get(cv2.CAP_PROP_FPS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """Every frame in order; the count that the file claims is not trusted.

        Raises:
            SourceError: the file holds no frame at all.
        """
        period_ns = 1e9 / (self.fps or 30.0)
        index, start_ns = 0, 0
        while True:
            readable, picture = self._capture.read()
            now_ns = self._clock()
            if not readable:
                break
            start_ns = start_ns if index else now_ns
            captured_ns = start_ns + round(index * period_ns) if self.live else now_ns
            if captured_ns > now_ns:
                self._sleep((captured_ns - now_ns) / 1e9)
            yield Frame(picture, index, captured_ns, "due" if self.live else "received", self._truth.get(index))
            index += 1
        if index == 0:
            raise SourceError(
                f"{self.path}: the video holds no frame that can be read; convert it to MP4 (H.264) first"
            )


class Folder:
    """Pictures of a folder and the folders below, in the order of their paths; or a single picture.

    Pictures that cannot be read are passed over and kept in `skipped`, as (path, reason).
    """

    live = False
    fps: float | None = None

    def __init__(self, path: str | Path, *, clock: Clock = monotonic_ns) -> None:
        self.name = str(path)
        self.skipped: list[tuple[Path, str]] = []
        self._clock = clock
        self._paths = list_pictures(Path(path)) if Path(path).is_dir() else [Path(path)]
        if not self._paths:
            raise SourceError(f"{path}: the folder holds no picture; it may hold {', '.join(sorted(SUFFIXES))}")

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def __iter__(self) -> Iterator[Frame]:
        """Every picture that can be read; `index` counts the unreadable ones too.

        Raises:
            SourceError: not one of them can be read.
        """
        self.skipped.clear()
        for index, path in enumerate(self._paths):
            try:
                picture = read_picture(path)
            except PictureError as error:
                self.skipped.append((path, str(error)))
                continue
            yield Frame(picture, index, self._clock(), "received")
        if len(self.skipped) == len(self._paths):
            raise SourceError(f"{self.name}: none of {len(self._paths)} pictures can be read; {self.skipped[0][1]}")


def plausible(fps: float) -> float | None:
    """Streams without a rate say 0, NaN or their clock's 90000."""
    return fps if 0.1 <= fps <= 1000.0 else None


def _read_truth(path: Path) -> dict[int, Mapping[str, Any]]:
    if not path.is_file():
        return {}
    truth = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            truth[int(entry["index"])] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: not an object with an "index" ({error}); mend or delete it'
            ) from error
    return truth
