"""A camera stand-in: H.264 over RTSP on loopback, with the moment of each frame burned in, and faults on command.

The camera is a process of its own: this file as a program of Debian's Python, which has the bindings of GStreamer, so
nothing here needs more than that. Its pictures are a scene that rolls by, so that the encoder has something to do.
"""

from __future__ import annotations

import functools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from remote import Fault, Remote, later, obey
from stamps import STRIP, Stamp, stamp_row

PYTHON = "/usr/bin/python3"
PACKAGES = ("python3-gi", "gir1.2-gst-rtsp-server-1.0", "gstreamer1.0-plugins-ugly")
PIPELINE = (
    "( appsrc name=eye is-live=true do-timestamp=true format=time max-buffers=2 leaky-type=downstream ! "
    "x264enc tune=zerolatency threads=1 speed-preset=ultrafast bitrate=4000 key-int-max={gop} ! "
    "rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


@functools.cache
def missing() -> str | None:
    """What to install before this camera works; None: nothing."""
    code = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; "
        "Gst.init(None); assert all(map(Gst.ElementFactory.find, ('appsrc', 'x264enc', 'rtph264pay')))"
    )
    if Path(PYTHON).exists() and subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0:
        return None
    return f"no RTSP server; apt-get install --no-install-recommends {' '.join(PACKAGES)}"


class RtspCamera(Remote):
    """Serves one stream at `fps` to whoever asks. Its methods are faults, possible at any moment.

    Args:
        fps: frames a second.
        gop: frames from one keyframe to the next; None: those of a second.
        size: width (a multiple of 64) and height (of 16).
        login: a name and a password that it asks for, by Digest.
    """

    def __init__(
        self,
        *,
        fps: int = 30,
        gop: int | None = None,
        size: tuple[int, int] = (640, 480),
        login: tuple[str, str] | None = None,
    ) -> None:
        super().__init__([PYTHON, __file__], {"fps": fps, "gop": gop or fps, "size": size, "login": login})
        self._login = f"{login[0]}:{login[1]}@" if login else ""

    @property
    def url(self) -> str:
        return f"rtsp://{self._login}127.0.0.1:{self.port}/video"

    def stall(self, seconds: float) -> Fault:
        """Send no frame for a while; the server goes on answering."""
        return self._fault("stall", seconds, seconds=seconds)

    def end(self) -> Fault:
        """Close all connections."""
        return self._fault("hang_up")

    def refuse(self, seconds: float) -> Fault:
        """Close all connections and refuse new ones for a while, as during a restart."""
        return self._fault("refuse", seconds, seconds=seconds)

    def freeze(self, seconds: float) -> Fault:
        """Stop the server's process for a while: connections are made, nobody answers, and no frame comes."""
        began_ns = time.monotonic_ns()
        self._process.send_signal(signal.SIGSTOP)
        later(seconds, lambda: self._process.send_signal(signal.SIGCONT))
        return Fault("freeze", began_ns, began_ns + round(seconds * 1e9))

    def resize(self, width: int, height: int) -> Fault:
        """Go on in another size, within the same stream."""
        return self._fault("resize", width, height)

    def connections(self) -> tuple[int, int]:
        """How many viewers there are now, and how many connections were ever made."""
        now, ever = self.ask("connections")
        return now, ever


class _Server:
    """The camera's side: GStreamer on the main loop's thread, one thread that makes the frames, one that takes orders."""

    def __init__(self, *, fps: int, gop: int, size: tuple[int, int], login: tuple[str, str] | None) -> None:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstRtsp", "1.0")
        gi.require_version("GstRtspServer", "1.0")
        from gi.repository import GLib, Gst, GstRtsp, GstRtspServer

        Gst.init(None)
        self._gst, self._glib, self._remove = Gst, GLib, GstRtspServer.RTSPFilterResult.REMOVE
        self._fps, self._stalled = fps, 0.0
        self._eye: Any = None
        self._accepted = 0
        self._draw(*size)
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(PIPELINE.format(gop=gop))
        factory.set_shared(True)
        factory.set_latency(0)
        factory.connect("media-configure", self._configure)
        self._server = GstRtspServer.RTSPServer()
        self._server.set_address("127.0.0.1")
        self._server.set_service("0")
        self._server.get_mount_points().add_factory("/video", factory)
        self._server.connect("client-connected", self._count)
        if login:
            token, rights = GstRtspServer.RTSPToken(), GstRtspServer.RTSPPermissions()
            token.set_string("media.factory.role", "viewer")
            for right in ("media.factory.access", "media.factory.construct"):
                rights.add_permission_for_role("viewer", right, True)
            factory.set_permissions(rights)
            door = GstRtspServer.RTSPAuth()
            door.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
            door.add_digest(*login, token)
            self._server.set_auth(door)
        self._door = self._server.attach(None)
        self.port = self._server.get_bound_port()
        self._server.set_service(str(self.port))
        threading.Thread(target=self._film, daemon=True).start()
        threading.Thread(target=GLib.MainLoop().run, daemon=True).start()

    # Commands.

    def stall(self, seconds: float) -> None:
        self._stalled = time.monotonic() + seconds

    def hang_up(self) -> None:
        self._on_main_loop(lambda: self._server.client_filter(lambda *_: self._remove))

    def refuse(self, seconds: float) -> None:
        if self._door:
            self._on_main_loop(lambda: self._glib.source_remove(self._door))
            self._door = 0
        self.hang_up()
        self._glib.timeout_add(round(1000 * seconds), self._reopen)

    def resize(self, width: int, height: int) -> None:
        self._draw(width, height)

    def connections(self) -> tuple[int, int]:
        return len(self._server.client_filter(None)), self._accepted

    # The main loop's.

    def _on_main_loop(self, what: Any) -> None:
        done = threading.Event()

        def run() -> bool:
            what()
            done.set()
            return False

        self._glib.idle_add(run)
        done.wait(5)

    def _reopen(self) -> bool:
        self._door = self._door or self._server.attach(None)
        return False

    def _count(self, *_: Any) -> None:
        self._accepted += 1

    def _configure(self, _: Any, media: Any) -> None:
        self._eye = media.get_element().get_by_name("eye")

    # Frames.

    def _draw(self, width: int, height: int) -> None:
        """A textured scene, twice as high as shown so that it can roll by, and no colour (I420)."""
        noise = random.Random(0)
        tiles = [bytes(noise.randrange(40, 216) for _ in range(width // 16)) for _ in range(height // 16)]
        rows = b"".join(16 * b"".join(16 * bytes([grey]) for grey in tile) for tile in tiles)
        self._scene = (width, height, 2 * rows, bytes([128]) * (width * height // 2))

    def _film(self) -> None:
        due, index = time.monotonic(), 0
        caps_set: tuple[Any, ...] = ()
        while True:
            while (left := max(due, self._stalled) - time.monotonic()) > 0:
                time.sleep(min(left, 0.05))
            index += 1
            due = max(due + 1 / self._fps, time.monotonic())
            eye, (width, height, scene, colour) = self._eye, self._scene
            if eye is None:
                continue
            if caps_set != (eye, width, height):
                caps_set = (eye, width, height)
                form = f"video/x-raw,format=I420,width={width},height={height},framerate={self._fps}/1"
                eye.set_property("caps", self._gst.Caps.from_string(form))
            rolled = (2 * index % height) * width
            strip = STRIP * stamp_row(Stamp(time.monotonic_ns(), index % 256), width)
            between = scene[rolled : rolled + (height - 2 * STRIP) * width]
            eye.emit("push-buffer", self._gst.Buffer.new_wrapped(strip + between + strip + colour))


if __name__ == "__main__":
    obey(_Server(**json.loads(sys.argv[1])))
