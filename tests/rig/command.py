"""The command in a process of its own, as a user starts it at a camera."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle

SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"
ENDS_S = 0.2


class Run:
    """`edgeattn run` on a camera, whose lines can be waited for."""

    def __init__(
        self,
        bundle: Bundle,
        url: str,
        folder: Path,
        program: Sequence[str | Path] = (SCRIPT,),
        *,
        sinks: str = "mp4,jsonl",
        more: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.video, self.lines, self.report = folder / "seen.mp4", folder / "seen.jsonl", folder / "run.json"
        for path in (self.video, self.lines, self.report):
            path.unlink(missing_ok=True)
        options = ["--engine", "onnxruntime", "--precision", "float", "--sink", sinks]
        if sinks != "window":
            options += ["--out", str(self.video)]
        command = [sys.executable, *program, bundle.path, "--source", url, *more, *options, "--json", self.report]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=folder
        )
        self._said: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=lambda: [self._said.put(line) for line in self.process.stdout])
        self._listener.start()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process as process:  # closes its pipes
            process.kill()
            self._listener.join(5)

    def wait_for(self, text: str) -> None:
        while text not in self._said.get(timeout=20):
            pass

    def wait_for_frames(self, frames: int) -> None:
        deadline = time.monotonic() + 20
        while not self.lines.exists() or self.lines.read_text().count("\n") < frames:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ends(self, number: signal.Signals) -> dict[str, object]:
        """Send a signal; checks how the command ends and gives its report."""
        begin = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(10)
        took_s = time.monotonic() - begin
        assert (code, self.process.stderr.read()) == (0, "")
        print(f"ended after {1000 * took_s:.0f} ms")
        assert took_s < ENDS_S
        return json.loads(self.report.read_text(encoding="utf-8"))


def frames_of(video: Path) -> int:
    """How many a player finds."""
    capture, frames = cv2.VideoCapture(str(video)), 0
    while capture.read()[0]:
        frames += 1
    return frames
