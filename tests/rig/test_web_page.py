"""The page in a real browser: the picture moves, the switches work, a phone can use it; and what serving costs."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tiny
from browser import Browser
from calm import in_calm
from chromium import missing

from edgeattn.bundle import Bundle
from edgeattn.camera import Pipeline, Video
from edgeattn.camera.live import Live
from edgeattn.camera.web import Web
from edgeattn.engines.fake import FakeEngine
from edgeattn.imaging import Picture

pytestmark = pytest.mark.rig

needs_browser = pytest.mark.skipif(missing() is not None, reason=missing() or "")
BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())
RED = {"logits": np.array([[4.0, 0.0, 0.0]], np.float32), "map_0": np.eye(4, dtype=np.float32)[None]}
LOOK = """(() => {
  const canvas = document.querySelector("#picture");
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, colour = 0;
  for (let i = 0; i < data.length; i += 4) {
    sum = (sum * 31 + data[i] + data[i + 1] + data[i + 2]) % 1000003; colour += Math.abs(data[i] - data[i + 2]);
  }
  return {sum, colour: colour / (data.length / 4), width: canvas.width};
})()"""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute of grey noise that rolls by, 640x480 at 30 fps."""
    from edgeattn._cv2 import cv2

    path = tmp_path_factory.mktemp("web") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (640, 480))
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 1), np.uint8).repeat(3, axis=2)
    scene: Picture = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    for i in range(900):
        writer.write(np.roll(scene, 4 * i, axis=1))
    writer.release()
    return path


@contextlib.contextmanager
def serving(video: Path, address: str = "127.0.0.1:0") -> Iterator[Web]:
    with (
        Pipeline(BUNDLE, Video(video, realtime=True), maps=True, opened_engine=FakeEngine(RED, 5.0)) as pipeline,
        contextlib.closing(Live(pipeline)) as live,
    ):
        page = Web(live, address)
        live.add(page)
        thread = threading.Thread(target=live.run)
        thread.start()
        try:
            yield page
        finally:
            live.controls.quit = True
            thread.join(10)


def browse(page: Web, profile: Path, visit: Callable[[Browser], Coroutine[Any, Any, None]], **size: Any) -> None:
    async def session() -> None:
        async with Browser(profile, **size) as browser:
            await browser.open(page.url)
            await browser.until("document.body?.dataset.drawn > 3")
            await visit(browser)
            assert browser.complaints == []

    asyncio.run(session())


@needs_browser
def test_the_picture_moves_and_the_switches_work(video: Path, tmp_path: Path) -> None:
    async def visit(browser: Browser) -> None:
        before = await browser.value(LOOK)
        assert before["width"] == 640
        assert before["colour"] > 20, "the attention is on"
        drawn = await browser.value("Number(document.body.dataset.drawn)")
        await browser.until(f"document.body.dataset.drawn > {drawn + 5}")
        assert (await browser.value(LOOK))["sum"] != before["sum"]
        assert await browser.value("document.querySelector('#name').textContent") == "red"
        await browser.until("/fps/.test(document.querySelector('#figures').textContent)")
        await browser.until("/costs [0-9.]+ ms a frame/.test(document.querySelector('#cost').textContent)")

        await browser.click("#attention")
        await browser.until(f"{LOOK}.colour < 8")
        assert page._live.controls.view.attention is False
        await browser.click("#attention")
        await browser.until(f"{LOOK}.colour > 20")
        for control, value in (("block", "stages.2.attention"), ("opacity", "0.8"), ("colours", "grey")):
            await browser.value(
                f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
                f"(document.querySelector('#{control}'))"
            )
        await browser.until(f"{LOOK}.colour < 8")
        view = page._live.controls.view
        assert (view.block, view.opacity, view.colours) == ("stages.2.attention", 0.8, "grey")

        await browser.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
        await browser.click("#snapshot")
        deadline = time.monotonic() + 10
        while not list((tmp_path / "saved").glob("edgeattn-*.jpg")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    with serving(video) as page:
        browse(page, tmp_path / "profile", visit)
        deadline = time.monotonic() + 10
        while page.draws is not None:  # the browser has gone: nothing is encoded any more
            assert time.monotonic() < deadline
            time.sleep(0.05)


@needs_browser
def test_a_phone_shows_it_without_scrolling_sideways(video: Path, tmp_path: Path) -> None:
    async def visit(browser: Browser) -> None:
        assert await browser.value("document.documentElement.scrollWidth") == 390
        await browser.until("document.querySelector('#state').textContent === 'running'")

    with serving(video) as page:
        browse(page, tmp_path / "profile", visit, width=390, height=844, mobile=True)


@needs_browser
def test_with_a_token_the_page_works_and_the_address_forgets_it(video: Path, tmp_path: Path) -> None:
    async def visit(browser: Browser) -> None:
        assert await browser.value("location.search") == ""

    with serving(video, "0.0.0.0:0") as page:
        browse(page, tmp_path / "profile", visit)


@needs_browser
def test_when_the_run_ends_the_page_says_so(video: Path, tmp_path: Path) -> None:
    async def visit(browser: Browser) -> None:
        await asyncio.to_thread(page._live.close)
        await browser.until("document.querySelector('#state').textContent === 'not connected'")
        browser.complaints.clear()  # the browser itself notes each connection that is refused

    with serving(video) as page:
        browse(page, tmp_path / "profile", visit)


async def _watch(page: Web, seconds: float) -> None:
    async with aiohttp.ClientSession() as client, client.ws_connect(f"{page.url}live", max_msg_size=0) as connection:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await connection.receive()
            await connection.send_str("drawn")


def test_browsers_age_no_frame_and_the_end_is_quick(video: Path) -> None:
    """640x480 at 30 fps, three browsers: a result leaves the loop's thread in less than a millisecond (median)."""

    async def crowd(page: Web) -> None:
        await asyncio.gather(*(_watch(page, 3.0) for _ in range(3)))

    def check() -> None:
        with serving(video) as page:
            asyncio.run(crowd(page))
            stages = page._live.record.stages
            assert stages.count("write_web") > 45, "pictures were encoded"
            assert statistics.median(stages.values_ms("hand")[10:]) < 1.0
            start = time.monotonic()
            page.close()
            assert time.monotonic() - start < 0.2

    in_calm(check)
