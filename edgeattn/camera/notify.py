"""What systemd is told of a run: that it is ready, alive, reloading or stopping, and a line of state (sd_notify(3)).

The protocol is one datagram a message, so that no library is needed. Without systemd nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

SEND_S = 1.0
"""How long a message may wait for a manager that is busy."""


class Notifier:
    """Sends to the service manager that started this process, if one did and wants to hear."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @: an abstract socket
        self.watchdog_s = _watchdog_s(environment) if self.listened_to else None
        """How long it may stay silent before it is killed and started anew; None: for ever."""

    @property
    def listened_to(self) -> bool:
        """There is somebody to tell."""
        return self._address[:1] in ("/", "\0") and hasattr(socket, "AF_UNIX")

    def send(self, **fields: object) -> bool:
        """Send fields of the protocol, as in `send(READY=1, STATUS="running")`; False: nobody takes them."""
        if not self.listened_to:
            return False
        text = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in fields.items())
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.settimeout(SEND_S)
            sender.connect(self._address)
            sender.send(text.encode())
            return True
        return False

    def reloading(self) -> None:
        """Say that settings are being read anew; READY=1 says when that is over."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """How often the manager wants a sign of life, where it wants it from this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
