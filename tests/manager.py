"""A service manager's ear: a real notify socket, and what came in by it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Message = dict[str, str]


class Manager:
    """What was told, each message with the moment that it came."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        self.address = address
        self.told: list[tuple[float, Message]] = []
        self._listener = listener
        self._changed = threading.Condition()

    def environment(self, watchdog_s: float | None = None) -> dict[str, str]:
        """This process's, and what systemd adds."""
        watchdog = {"WATCHDOG_USEC": str(round(watchdog_s * 1e6))} if watchdog_s else {}
        return {**os.environ, "NOTIFY_SOCKET": self.address, **watchdog}

    def listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._listener.recv(1 << 16):
                message = dict(line.split("=", 1) for line in data.decode().splitlines())
                with self._changed:
                    self.told.append((time.monotonic(), message))
                    self._changed.notify_all()

    def all(self, field: str) -> list[str]:
        return [message[field] for _, message in list(self.told) if field in message]

    def wait_for(self, holds: Callable[[Message], bool], timeout_s: float = 20.0, since: int = 0) -> Message:
        """The first message, from number `since` on, of which something holds."""

        def found() -> Message | None:
            return next((message for _, message in self.told[since:] if holds(message)), None)

        with self._changed:
            assert self._changed.wait_for(found, timeout_s), f"told so far: {[message for _, message in self.told]}"
            return found() or {}


@contextlib.contextmanager
def listening(folder: Path, *, abstract: bool = False) -> Iterator[Manager]:
    path = str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + path if abstract else path)
        manager = Manager(listener, "@" + path if abstract else path)
        thread = threading.Thread(target=manager.listen, daemon=True)
        thread.start()
        yield manager
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
