"""The browser's page: a real server, real clients over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tiny
from scripted import write_video

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.camera import Frame, Pipeline
from edgeattn.camera.live import Live as Loop
from edgeattn.camera.state import Change, Status
from edgeattn.camera.web import Web
from edgeattn.cli import app
from edgeattn.engines.fake import FakeEngine
from edgeattn.errors import EdgeAttnError, ExtraMissingError
from edgeattn.spec import InputSpec, Spec

RED = {"logits": np.array([[4.0, 0.0, 0.0]], np.float32), "map_0": np.eye(4, dtype=np.float32)[None]}
BUNDLE = Bundle(Path("nowhere.edgeattn"), tiny.SPEC, ())
SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"


class Ticking:
    """A live source of grey frames that grow brighter, until `stopped`; it can fall silent."""

    live = True
    fps = 50.0
    name = "rtsp://camera/video?password=secret"

    def __init__(self) -> None:
        self.stopped, self.silent = threading.Event(), threading.Event()

    def __enter__(self) -> Ticking:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self.stopped.wait(0.02):
            if not self.silent.is_set():
                picture = np.full((48, 64, 3), 4 * index % 250, np.uint8)
                yield Frame(picture, index, time.monotonic_ns(), "received")
                index += 1


@contextlib.contextmanager
def serving(
    address: str = "127.0.0.1:0",
    token: str | None = None,
    *,
    maps: bool = True,
    model: tuple[Bundle, dict[str, Any]] = (BUNDLE, RED),
) -> Iterator[Web]:
    """A page over a loop that turns; `model`: a bundle and what it answers."""
    source, (bundle, answer) = Ticking(), model
    with (
        Pipeline(bundle, source, maps=maps, opened_engine=FakeEngine(answer)) as pipeline,
        contextlib.closing(Loop(pipeline)) as loop,
    ):
        page = Web(loop, address, token)
        loop.add(page)
        thread = threading.Thread(target=loop.run)
        thread.start()
        while loop.record.frames == 0:
            time.sleep(0.01)
        try:
            yield page
        finally:
            loop.controls.quit = True
            source.stopped.set()
            thread.join(10)
    assert not page._thread.is_alive()


def talk(page: Web, dialogue: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, None]]) -> None:
    """Run a dialogue with the page's server."""

    async def session() -> None:
        base = f"http://127.0.0.1:{page.port}"
        jar, limit = aiohttp.CookieJar(unsafe=True), aiohttp.ClientTimeout(20)
        async with aiohttp.ClientSession(base, timeout=limit, cookie_jar=jar) as client:
            await dialogue(client)

    asyncio.run(session())


@contextlib.asynccontextmanager
async def watching(client: aiohttp.ClientSession, **headers: str) -> AsyncIterator[Watcher]:
    async with client.ws_connect("/live", max_msg_size=0, headers=headers) as connection:
        yield Watcher(connection)


class Watcher:
    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self.connection = connection

    async def message(self) -> tuple[dict[str, Any], bytes]:
        """The next message's head and JPEG, not yet confirmed."""
        data = await self.connection.receive_bytes(timeout=20)
        length = int.from_bytes(data[:4], "big")
        return json.loads(data[4 : 4 + length]), data[4 + length :]

    async def drawn(self) -> tuple[dict[str, Any], bytes]:
        """The next message, confirmed."""
        message = await self.message()
        await self.connection.send_str("drawn")
        return message


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_the_page_needs_nothing_else_and_allows_nothing_else() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with client.get("/") as answer:
            text = await answer.text()
            assert answer.status == 200
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert answer.headers["Cache-Control"] == "no-store"
        links = set(re.findall(r"(?:src|href)=\"([^\"]*)\"|https?://[^\s\"'`]+", text))
        assert links <= {"data:,", ""}
        assert set(re.findall(r"https?://\S+?(?=[\"'`])", text)) <= {"http://www.w3.org/2000/svg"}

    with serving() as page:
        talk(page, dialogue)


def test_the_picture_moves_with_its_answer_and_figures() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with watching(client) as browser:
            messages = [await browser.drawn() for _ in range(6)]
        heads = [head for head, jpeg in messages if jpeg]
        assert len(heads) >= 5
        indices = [head["answer"]["index"] for head in heads]
        assert indices == sorted(set(indices))
        assert len({jpeg for _, jpeg in messages}) == 6
        picture = cv2.imdecode(np.frombuffer(messages[-1][1], np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (48, 64, 3)
        assert heads[-1]["answer"]["likeliest"][0][0] == heads[-1]["answer"]["label"] == "red"
        status = heads[-1]["status"]
        assert status["state"] == "running"
        assert status["browsers"] == 1
        assert "secret" not in json.dumps(messages[-1][0])
        assert status["blocks"] == ["stages.2.attention"]

    with serving() as page:
        talk(page, dialogue)


def test_regions_stand_in_the_picture_and_their_shares_beside_it() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with watching(client) as browser:
            head, jpeg = await browser.drawn()
        assert head["answer"]["label"] == "road"
        assert head["answer"]["likeliest"] == [["road", 0.5]]
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
        assert np.ptp(picture[2:12, 36:], axis=2).mean() > 20 > np.ptp(picture[2:12, :28], axis=2).mean()

    spec = Spec("segment", InputSpec(48, 64), ("background", "road"))
    halves = np.repeat([-1.0, 1.0], 32)[None].repeat(48, 0)
    answer = {"logits": np.stack([-halves, halves])[None].astype(np.float32)}
    with serving(model=(Bundle(Path("street.edgeattn"), spec, ()), answer), maps=False) as page:
        talk(page, dialogue)


def test_nothing_is_drawn_or_encoded_while_nobody_watches() -> None:
    with serving() as page:
        stages, record = page._live.record.stages, page._live.record
        while record.frames < 10:
            time.sleep(0.01)
        assert stages.count("attention") == stages.count("write_web") == 0


def test_browsers_share_one_encoding_and_leave_nothing_behind() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        tasks = len(asyncio.all_tasks(page._loop))
        async with watching(client) as first, watching(client) as second:
            seen = [await asyncio.gather(first.drawn(), second.drawn()) for _ in range(8)]
            by_index = {head["answer"]["index"]: jpeg for one, _ in seen for head, jpeg in [one] if jpeg}
            shared = [(head["answer"]["index"], jpeg) for _, two in seen for head, jpeg in [two] if jpeg]
            assert any(index in by_index for index, _ in shared)
            assert all(by_index.get(index, jpeg) == jpeg for index, jpeg in shared)
            assert page._live.record.stages.count("write_web") <= page._live.record.frames
        await until(lambda: page.draws is None)
        await until(lambda: len(asyncio.all_tasks(page._loop)) <= tasks)

    with serving() as page:
        talk(page, dialogue)


def test_a_slow_browser_skips_and_holds_up_nobody() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with watching(client) as slow, watching(client) as quick:
            await slow.drawn()
            held, _ = await slow.message()  # never confirmed: nothing more is sent to it
            for _ in range(15):
                await quick.drawn()
            with pytest.raises(asyncio.TimeoutError):
                await slow.connection.receive(timeout=0.2)
            await slow.connection.send_str("drawn")
            late, jpeg = await slow.drawn()
            assert jpeg
            assert late["answer"]["index"] >= held["answer"]["index"] + 10, "it gets the latest, none in between"
            assert (await browser_drops(quick)) >= 9

    async def browser_drops(browser: Watcher) -> int:
        await asyncio.sleep(0.3)
        for _ in range(3):
            head, _ = await browser.drawn()
        return int(head["status"]["dropped"]["browser"])

    with serving() as page:
        talk(page, dialogue)
        assert page._live.feeds[0].dropped <= 2


def test_a_browser_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.camera.web.PATIENCE_S", 0.3)

    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with watching(client) as dead:
            await dead.message()
            await until(lambda: not page._clients)
            assert (await dead.connection.receive(timeout=5)).type in (
                aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR,
            )  # fmt: skip

    with serving() as page:
        talk(page, dialogue)


def test_switches_change_the_picture_for_all() -> None:
    view = {"attention": True, "block": None, "opacity": 0.5, "colours": "turbo"}

    async def colourful(browser: Watcher, wanted: bool) -> bool:
        for _ in range(40):
            _, jpeg = await browser.drawn()
            if jpeg:
                b, g, r = cv2.split(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int))
                if (max(abs(b - r).max(), abs(g - r).max()) > 40) == wanted:
                    return True
        return False

    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with watching(client) as one, watching(client) as other:
            assert await colourful(other, True)
            await one.connection.send_json(view | {"attention": False})
            assert await colourful(other, False)
            await one.connection.send_json(view | {"block": "stages.2.attention", "opacity": 0.9})
            assert await colourful(other, True)
            assert page._live.controls.view.block == "stages.2.attention"
            await one.connection.send_json(view | {"block": "absent"})
            await until(lambda: page._live.controls.view.block is None)
            for wrong in ({"opacity": 2}, {"colours": "rainbow"}, {"opacity": "NaN"}, {"opacity": None}):
                async with watching(client) as rude:
                    await rude.connection.send_json(view | wrong)
                    await until(lambda: len(page._clients) == 2)
            assert page._live.controls.view.colours == "turbo"

    with serving() as page:
        talk(page, dialogue)


def test_health_metrics_and_snapshot() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with client.get("/snapshot.jpg") as answer:
            assert answer.content_type == "image/jpeg"
            assert cv2.imdecode(np.frombuffer(await answer.read(), np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)
        async with client.get("/healthz") as answer:
            state = await answer.json()
            assert (answer.status, state["state"]) == (200, "running")
            assert "secret" not in json.dumps(state)
        async with client.get("/metrics") as answer:
            text = await answer.text()
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(samples["edgeattn_frames_total"]) > 0
        assert float(samples['edgeattn_dropped_total{cause="replaced"}']) >= 0
        assert float(samples['edgeattn_age_ms{quantile="0.5"}']) >= 0
        assert 'edgeattn_age_ms{quantile="0.99"}' not in samples, "too few samples for it"
        assert samples["edgeattn_up"] == "1"

    with serving() as page:
        talk(page, dialogue)


def test_a_silent_camera_is_said_and_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.camera.live.SILENT_S", 0.3)
    monkeypatch.setattr("edgeattn.camera.web._SNAPSHOT_S", 0.1)

    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with watching(client) as browser:
            await browser.drawn()
            page._live.pipeline.source.silent.set()
            while (message := await browser.drawn())[0]["status"]["state"] != "silent":
                pass
            assert message[1] == b"", "the state comes without a picture"
        async with client.get("/healthz") as answer:
            assert answer.status == 503
        async with client.get("/snapshot.jpg") as answer:
            assert answer.status == 503
        async with client.get("/metrics") as answer:
            assert "edgeattn_up 0" in await answer.text()

    with serving() as page:
        talk(page, dialogue)


def test_a_loop_that_stands_is_not_healthy_whatever_the_camera_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.camera.live.HUNG_S", 0.3)
    let_go = threading.Event()

    def hang(image: np.ndarray) -> dict[str, np.ndarray]:
        let_go.wait(20)
        return RED

    async def dialogue(client: aiohttp.ClientSession) -> None:
        loop = page._live
        async with client.get("/healthz") as answer:
            assert answer.status == 200
        monkeypatch.setattr(loop.pipeline.engine, "infer", hang)
        down = Status((Change("connecting", 0), Change("down", 1, "no frame comes")))
        monkeypatch.setattr(type(loop.pipeline), "statuses", (down,))
        await until(lambda: loop.state == "hung")
        await asyncio.sleep(0.3)
        async with client.get("/healthz") as answer:
            assert (answer.status, (await answer.json())["state"]) == (503, "hung")
        async with client.get("/metrics") as answer:
            assert "edgeattn_up 0" in await answer.text()
        let_go.set()
        await until(lambda: loop.state == "down")
        await asyncio.sleep(0.3)
        async with client.get("/healthz") as answer:
            assert (answer.status, (await answer.json())["state"]) == (200, "down"), "the loop turns again"

    with serving() as page:
        talk(page, dialogue)


PATHS = ("/", "/live", "/snapshot.jpg", "/healthz", "/metrics")


def test_beyond_loopback_a_token_is_demanded() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        assert page.token is not None
        for path in PATHS:
            async with client.get(path) as answer:
                assert answer.status == 401
                assert page.token not in await answer.text()
            for wrong in ("x", page.token + "x", "ä"):
                async with client.get(path, params={"token": wrong}) as answer:
                    assert answer.status == 403
        async with client.get("/healthz", headers={"Authorization": f"Bearer {page.token}"}) as answer:
            assert answer.status == 200
        async with client.get("/metrics", params={"token": page.token}) as answer:
            assert answer.status == 200
        async with client.get("/", params={"token": page.token}) as answer:
            assert (answer.status, answer.url.query_string) == (200, ""), "the token goes into a cookie"
            assert page.token not in await answer.text()
            cookie = answer.history[0].headers["Set-Cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Lax" in cookie
        async with watching(client) as browser:
            assert (await browser.drawn())[0]["status"]["state"] == "running"

    with serving("0.0.0.0:0") as page:
        assert page.url.endswith(f":{page.port}/?token={page.token}")
        assert "0.0.0.0" not in page.url
        talk(page, dialogue)


def test_pages_from_elsewhere_are_refused() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        for path in PATHS:
            async with client.get(path, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
            async with client.get(path, headers={"Origin": "http://evil.example"}) as answer:
                assert answer.status == 403
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with watching(client, Origin="http://evil.example"):
                pass
        async with watching(client, Origin=f"http://127.0.0.1:{page.port}") as browser:
            await browser.drawn()

    with serving() as page:
        assert page.token is None
        talk(page, dialogue)


def test_a_token_of_ones_own() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with client.get("/healthz") as answer:
            assert answer.status == 401
        async with client.get("/healthz", params={"token": "long & mine"}) as answer:
            assert answer.status == 200

    with serving(token="long & mine") as page:
        assert page.url.endswith("/?token=long%20%26%20mine")
        talk(page, dialogue)
        with pytest.raises(EdgeAttnError, match="--token has 5 characters; give it 8 at least"):
            Web(page._live, "127.0.0.1:0", "short")
        with pytest.raises(EdgeAttnError, match=rf"127.0.0.1:{page.port} cannot be served: .*choose another address"):
            Web(page._live, f"127.0.0.1:{page.port}")


def test_ending_says_goodbye_to_browsers() -> None:
    async def dialogue(client: aiohttp.ClientSession) -> None:
        async with watching(client) as polite, watching(client) as stuck:
            await polite.drawn()
            await stuck.message()
            start = time.monotonic()
            await asyncio.to_thread(page._live.close)
            assert time.monotonic() - start < 1.0
            while (message := await polite.connection.receive(timeout=5)).type is aiohttp.WSMsgType.BINARY:
                pass
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)

    with serving() as page:
        talk(page, dialogue)


def test_without_aiohttp_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgeattn.camera.web")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ExtraMissingError, match=r"--web needs 'aiohttp'.*pip install 'edgeattn\[web\]'"):
        import edgeattn.camera.web  # noqa: F401


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--web"], ""), (["--web", "--token", "x"], ""), (["--web", ":90"], ":90"), (["--web=:90"], ":90"), ([], None),
    ],
)  # fmt: skip
def test_the_address_may_be_left_out(
    arguments: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    context = command.make_context("run", ["bundle", *arguments], resilient_parsing=True)
    assert context.params["web"] == expected


def test_run_serves_and_ctrl_c_ends_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pictures = [picture for picture, _ in tiny.pictures(24, height=96, width=128)]
    video = write_video(tmp_path / "long.mp4", pictures * 20)
    options = ["--source", str(video), "--realtime", "--web", "127.0.0.1:0", "--engine", "onnxruntime"]
    command = [sys.executable, str(SCRIPT), str(tiny_bundle.path), *options, "--precision", "float"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    url = next(line for line in lines if line.startswith("watch it at ")).split()[-1]

    async def look() -> None:
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(20)) as client, watching(client) as browser:
            for _ in range(5):
                await browser.drawn()
            process.send_signal(signal.SIGINT)
            await asyncio.to_thread(process.wait, 20)

    asyncio.run(look())
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert " frames, " in out
    assert [path.name for path in tmp_path.iterdir()] == ["long.mp4"], "no video was written beside the page"
