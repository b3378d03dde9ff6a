"""`edgeattn doctor --glass SOURCE`: how old a picture is when we have it, counted from another screen."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from edgeattn.cli.common import say, write_json

if TYPE_CHECKING:
    from edgeattn.camera.glass import ClockPage, Reading

SCHEMA = "edgeattn.glass/1"
WAITS_S = 180.0
"""How long the clock is looked for."""
REMINDS_S = 10.0


def measure(source: str, seconds: float, port: int, json: Path | None) -> None:
    """Serve the clock, read it from the camera's pictures for a while, and tell their ages.

    Raises:
        SourceError: the source is no camera, or does not open.
        EdgeAttnError: the port is taken.
    """
    from edgeattn.camera.address import addresses
    from edgeattn.camera.glass import ClockPage
    from edgeattn.camera.source import open_source
    from edgeattn.errors import SourceError

    camera = open_source(source)
    if not camera.live:
        raise SourceError(f"{camera.name} sees no screen; give --glass a camera or a stream")
    with ClockPage(port) as page:
        say("On another screen or phone, in front of the camera and bright, open one of")
        for address in addresses():
            say(f"  http://{address}:{page.port}/")
        reading = _read(camera, seconds)
    if reading is None:
        say(
            f"no clock was seen within {WAITS_S:g} s; it has to fill a quarter of the picture's width, sharp, without glare"
        )
        raise typer.Exit(3)
    report = _report(camera.name, reading, page)
    for line in _lines(report):
        say(line)
    write_json(json, report)


def _read(camera: Any, seconds: float) -> Reading | None:
    """Look for the clock, then read it for so long; None: it was not found."""
    from edgeattn.camera.capture import Capture
    from edgeattn.camera.frame import Reconnecting
    from edgeattn.camera.glass import Reading
    from edgeattn.camera.watch import Watch
    from edgeattn.timing import monotonic_ns

    with Watch(camera) if isinstance(camera, Reconnecting) else Capture(camera) as capture:
        for lasts_s, looking in ((WAITS_S, True), (seconds, False)):
            reading, begin = Reading(), time.monotonic()
            until = begin + lasts_s
            reminds = begin + REMINDS_S
            while (now := time.monotonic()) < until and not (looking and reading.whole_ms):
                frame = capture.slot.take(_after(until))
                if frame is not None:
                    reading.add(frame, monotonic_ns())
                if looking and now > reminds:
                    say(f"{reading.seen} pictures so far, no clock in them")
                    reminds = now + REMINDS_S
            if not reading.whole_ms:
                return None
            if looking:
                say(f"the clock is seen; measuring for {seconds:g} s")
    return reading


def _after(until: float) -> Callable[[], bool]:
    return lambda: time.monotonic() > until


def _report(name: str, reading: Reading, page: ClockPage) -> dict[str, Any]:
    from edgeattn.timing.statistics import summary

    clock_ms, refresh_ms = page.unsure_ms or 0.0, page.refresh_ms or 0.0
    return {
        "schema": SCHEMA,
        "source": name,
        "frames": reading.seen,
        "frames_read": len(reading.whole_ms),
        "whole_ms": summary(reading.whole_ms),
        "ours_ms": summary(reading.ours_ms),
        "before_us_ms": summary(np.subtract(reading.whole_ms, reading.ours_ms)),
        "age_from": reading.age_from,
        "clock_unsure_ms": clock_ms,
        "refresh_ms": refresh_ms,
        "uncertainty_ms": clock_ms + refresh_ms / 2 + 0.5,
    }


def _lines(report: dict[str, Any]) -> list[str]:
    from edgeattn.timing.statistics import text

    whole, ours, before = report["whole_ms"], report["ours_ms"], report["before_us_ms"]
    counted = {"kernel": "the driver's stamp", "sender": "the camera's stamp"}.get(report["age_from"], "its reception")
    return [
        f"from the screen to a picture in our hands: p50 {text(whole, 'p50')}, p99 {text(whole, 'p99')}, "
        f"at most {text(whole, 'max')} (the clock was read in {report['frames_read']} of {report['frames']} pictures)",
        f"  screen, camera and network: p50 {text(before, 'p50')}, p99 {text(before, 'p99')}",
        f"  ours, from {counted} on: p50 {text(ours, 'p50')}, p99 {text(ours, 'p99')}",
        f"uncertain by {report['uncertainty_ms']:.1f} ms: the page's clock by {report['clock_unsure_ms']:.1f} ms, and its "
        f"screen draws every {report['refresh_ms']:.1f} ms; what the screen itself takes, a refresh or two, is counted in",
        "the ages that `edgeattn run` tells come after the second line: add them up for the way to its answer",
    ]
