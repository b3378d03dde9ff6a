"""A real MQTT broker on loopback, Debian's mosquitto, that can be stopped, frozen and started again on its port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = ("mosquitto",)
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def missing() -> str | None:
    """What to install before the broker works; None: nothing."""
    if shutil.which("mosquitto", path=PATH):
        return None
    return f"no MQTT broker; apt-get install --no-install-recommends {PACKAGES[0]}"


class Mosquitto:
    """A broker for NAME and PASSWORD alone, where they are given; else for everybody."""

    def __init__(self, folder: Path, login: tuple[str, str] | None = None, *, started: bool = True) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder, self._process = folder, None
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(login is None).lower()}"]
        if os.geteuid() == 0:
            lines.append("user root")
        if login:
            passwords = folder / "passwords"
            program = shutil.which("mosquitto_passwd", path=PATH)
            subprocess.run([str(program), "-c", "-b", str(passwords), *login], check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        if started:
            self.start()

    def start(self) -> None:
        program = str(shutil.which("mosquitto", path=PATH))
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [program, "-c", str(self._folder / "mosquitto.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < deadline, "the broker did not start"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it as a power cut does: nobody is told, what it retained is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Connections stay, nothing is read or answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Mosquitto:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
