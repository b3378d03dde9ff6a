"""A camera in a process of its own, so that no program under test disturbs its timing, and faults on command.

Both halves are here: `Remote` in the test, `obey` in the camera's process. Each command is a line of JSON, `[name,
arguments]`, on the process's standard input; the answer tells when it was carried out. Needs nothing but Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

Self = TypeVar("Self", bound="Remote")


class Fault(NamedTuple):
    """A fault on command, on the monotonic clock."""

    name: str
    began_ns: int
    """From here on the camera misbehaved."""
    ended_ns: int
    """From here on it was well again."""


class Remote:
    """Starts the process on entering and ends it on leaving."""

    def __init__(self, command: list[str], options: dict[str, Any]) -> None:
        self._command = [*command, json.dumps(options)]
        self.port = 0

    def __enter__(self: Self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:  # closes its standard input, which ends it
            process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Have a command carried out; it is when this returns."""
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def _fault(self, name: str, *arguments: Any, seconds: float = 0.0) -> Fault:
        began_ns = self.ask(name, *arguments)
        return Fault(name, began_ns, began_ns + round(seconds * 1e9))

    def _answer(self) -> Any:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"the camera's process died (exit code {self._process.wait(5)})")
        return json.loads(line)


def later(seconds: float, what: Callable[[], Any]) -> None:
    """Do it after a while, unless the process ends before."""
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.start()


def obey(camera: Any) -> None:
    """Carry out what comes on standard input, until it is closed."""
    print(camera.port, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        began_ns = time.monotonic_ns()
        answer = getattr(camera, name)(*arguments)
        print(json.dumps(began_ns if answer is None else answer), flush=True)
