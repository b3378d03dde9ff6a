"""`doctor --glass` with a real browser as the other screen, and a camera that films it and is late by a known time."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from browser import Browser
from calm import in_calm
from chromium import missing

from edgeattn.cli import glass

pytestmark = pytest.mark.rig

needs_browser = pytest.mark.skipif(missing() is not None, reason=missing() or "")
SET = "(document.querySelector('p') || {textContent: ''}).textContent.startsWith('clock set')"
LATE_S, SLACK_MS = 0.25, 30
"""How late the camera sends; how far beyond the browser's own time for a picture the answer may lie."""


class Film:
    """Pictures of a page, sent `LATE_S` after each was asked for: an MJPEG camera."""

    def __init__(self, page_port: int, profile: Path) -> None:
        self._page_port, self._profile = page_port, profile
        self.took_ms: list[float] = []
        self.port = 0
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Film:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)

    async def _run(self) -> None:
        async with Browser(self._profile, 640, 400) as browser:
            await browser.open(f"http://127.0.0.1:{self._page_port}/")
            await browser.until(SET)

            async def stream(request: web.Request) -> web.StreamResponse:
                kind = {"Content-Type": "multipart/x-mixed-replace; boundary=frame"}
                response = web.StreamResponse(headers=kind)
                response.force_close()
                await response.prepare(request)
                while not self._over.is_set():
                    asked = time.monotonic()
                    taken = await browser.do("Page.captureScreenshot", format="jpeg", quality=80)
                    self.took_ms.append(1000 * (time.monotonic() - asked))
                    await asyncio.sleep(asked + LATE_S - time.monotonic())
                    await response.write(
                        b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + base64.b64decode(taken["data"])
                    )
                    await response.write(b"\r\n")
                return response

            app = web.Application()
            app.router.add_get("/video", stream)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            self._ready.set()
            while not self._over.is_set():
                await asyncio.sleep(0.05)
            assert not browser.complaints
            await runner.cleanup()


@needs_browser
def test_a_camera_that_is_late_by_a_known_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture shows the page at some moment between asking for it and having it: that wide is the answer's slack."""
    from edgeattn.camera.glass import ClockPage

    def check() -> None:
        # The film needs the page first, and the command the film.
        with ClockPage(0) as page, Film(page.port, tmp_path / f"profile{time.monotonic_ns()}") as film:
            monkeypatch.setattr("edgeattn.camera.glass.ClockPage", lambda port: _Open(page))
            report = tmp_path / "glass.json"
            glass.measure(f"http://127.0.0.1:{film.port}/video", 4.0, 0, report)
        figures = json.loads(report.read_text(encoding="utf-8"))
        p50, took = figures["whole_ms"]["p50"], float(np.median(film.took_ms))
        print(f"{p50:.0f} ms of {1000 * LATE_S:.0f}; a picture takes the browser {took:.0f} ms; {figures}")
        assert 1000 * LATE_S - took - SLACK_MS < p50 < 1000 * LATE_S + SLACK_MS
        assert figures["frames_read"] >= 0.8 * figures["frames"] > 8
        assert 0 < figures["ours_ms"]["p50"] < 20
        assert figures["clock_unsure_ms"] < 10

    in_calm(check)
    assert "from the screen to a picture in our hands: p50 2" in capsys.readouterr().out


class _Open:
    """A page that is served already, and goes on after the command."""

    def __init__(self, page: object) -> None:
        self.page = page

    def __enter__(self) -> object:
        return self.page

    def __exit__(self, *_: object) -> None:
        pass
