"""A screen that nobody looks at: Debian's Xvfb, whose picture can be read, with keys, and faults on command."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

PACKAGES = ("xvfb", "xdotool")
SIZE = (1024, 768)


def missing() -> str | None:
    """What to install before it works; None: nothing."""
    if shutil.which("Xvfb") and shutil.which("xdotool"):
        return None
    return f"no screen; apt-get install --no-install-recommends {' '.join(PACKAGES)}"


class Screen:
    """A display of its own."""

    def __init__(self, folder: Path) -> None:
        self._picture = folder / "Xvfb_screen0"
        number, told = os.pipe()
        width, height = SIZE
        command = ["Xvfb", "-displayfd", str(told), "-screen", "0", f"{width}x{height}x24", "-fbdir", str(folder)]
        self._process = subprocess.Popen([*command, "-nolisten", "tcp"], pass_fds=[told], stderr=subprocess.DEVNULL)
        os.close(told)
        with os.fdopen(number) as said:
            self.env = {**os.environ, "DISPLAY": f":{int(said.readline())}"}

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            process.kill()

    def seen(self) -> Any:
        """What is on it, (H, W, 3) BGR: the format is X11's XWDFile.h."""
        import numpy as np  # not at the top: CI asks what is missing before anything is installed

        dump = self._picture.read_bytes()
        header = struct.unpack(">25I", dump[:100])
        start, row, colours = header[0], header[12], header[19]
        pixels = np.frombuffer(dump, np.uint8, offset=start + 12 * colours)
        return pixels.reshape(SIZE[1], row // 4, 4)[:, : SIZE[0], :3]

    def wait_for_window(self, title: str) -> None:
        """Until it is there, with a picture in it."""
        deadline = time.monotonic() + 30
        while not (self._find(title) and self.seen().any()):
            assert time.monotonic() < deadline, "no window"
            time.sleep(0.05)

    def press(self, title: str, key: str) -> None:
        """Type into a window, in X11's names of keys."""
        subprocess.run(["xdotool", "windowfocus", "--sync", self._find(title), "key", key], env=self.env, check=True)

    def freeze(self) -> None:
        """It answers nobody any more."""
        self._process.send_signal(signal.SIGSTOP)

    def go(self) -> None:
        """As when its user logs out."""
        self._process.kill()
        self._process.wait()

    def _find(self, title: str) -> str:
        found = subprocess.run(
            ["xdotool", "search", "--onlyvisible", "--name", title],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return found.stdout.strip()
