"""The sign of life: what a service manager is told of a run while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from edgeattn.camera.live import Live
from edgeattn.camera.notify import SEND_S, Notifier
from edgeattn.timing import monotonic_ns

FIGURES_S = 10.0
"""How often the figures in the line of state are made anew; a change of state or model is told at once."""
_BEAT_S = 0.25


class Heart:
    """Tells how a run goes, from a thread of its own, from entering to leaving.

    Ready is told once the loop turns, and alive for as long as it does: whatever the camera does, but not while an inference
    never returns. The thread is no part of the loop, so that a manager that takes nothing ages no frame.
    """

    def __init__(self, live: Live, notifier: Notifier) -> None:
        self._live, self._notifier = live, notifier
        self._ready = False
        self._told = ""
        self._news, self._figures_ns = ("", 0), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> Heart:
        if self._notifier.listened_to:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(SEND_S)

    def _run(self) -> None:
        period_s = min(_BEAT_S, (self._notifier.watchdog_s or 60.0) / 4)
        while not self._ended.wait(period_s):
            self._beat()

    def _beat(self) -> None:
        turned_s = self._live.turned_s
        if turned_s is None:
            return
        fields: dict[str, object] = {}
        if not self._ready:
            self._ready = True
            fields["READY"] = 1
        if self._notifier.watchdog_s is not None and turned_s < self._notifier.watchdog_s:
            fields["WATCHDOG"] = 1
        news, now_ns = self._live.news, monotonic_ns()
        if news != self._news or now_ns - self._figures_ns > FIGURES_S * 1e9:
            self._news, self._figures_ns = news, now_ns
            line = line_of(self._live.status())
            if line != self._told:
                self._told = fields["STATUS"] = line
        if fields:
            self._notifier.send(**fields)


def line_of(status: Mapping[str, Any]) -> str:
    """A run's status in one line, as `systemctl status` shows it."""
    cameras, age = status["cameras"], status["age_ms"]["p50"]
    reason = cameras[0]["states"][-1]["reason"] if cameras and status["state"] == cameras[0]["state"] else ""
    parts = [
        status["state"] + (f" ({reason})" if reason else ""),
        f"{status['bundle']} on {status['source']}, {status['engine']} {status['precision']}",
    ]
    if status["state"] == "running" and status["fps"] is not None and age is not None:
        parts.append(f"{status['fps']:.1f} fps, age p50 {age:.0f} ms")
    if len(cameras) > 1:
        parts += [f"{each['source']} is {each['state']}" for each in cameras if each["state"] != "live"]
    parts += [f"{name} failed" for name in status["failed"]]
    if (shadow := status["shadow"]) and shadow["verdict"] == "failed":
        parts.append(f"drift: {shadow['window_differed']} of {shadow['window']} answers are not float's")
    if status["fallback"]:
        parts.append("float has taken over from what drifted")
    if status["changes"] and (latest := status["changes"][-1])["outcome"] == "refused":
        parts.append(f"{latest['what']} refused: {latest['reason']}")
    return "; ".join(parts)
