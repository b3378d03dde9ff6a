"""A real browser, headless Chromium, driven through its DevTools protocol over a websocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-port=0", "--hide-scrollbars",
)  # fmt: skip
START_S = 60.0


class Browser:
    """One tab. What the page said on its console or raised is kept in `complaints`."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 800, *, mobile: bool = False) -> None:
        self.profile, self.width, self.height, self.mobile = profile, width, height, mobile
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def __aenter__(self) -> Browser:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        command = ["chromium", *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        stack.callback(self._end)
        port_file = self.profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_S
        while not (port_file.exists() and len(port_file.read_text().splitlines()) == 2):
            assert self._process.poll() is None, "the browser ended at once"
            assert time.monotonic() < deadline, "the browser does not start"
            await asyncio.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tab = next(each for each in await answer.json() if each["type"] == "page")
        self._socket = await stack.enter_async_context(http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0))
        stack.callback(asyncio.create_task(self._read()).cancel)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.do(f"{domain}.enable")
        size = {"width": self.width, "height": self.height, "deviceScaleFactor": 1, "mobile": self.mobile}
        await self.do("Emulation.setDeviceMetricsOverride", **size)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self._answers[number], 30)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.do("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        given = await self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in given, given
        return given["result"].get("value")

    async def until(self, expression: str, seconds: float = 20.0) -> Any:
        """Wait until an expression is true in the page, and give its value."""
        deadline = time.monotonic() + seconds
        while not (value := await self.value(expression)):
            assert time.monotonic() < deadline, (expression, self.complaints)
            await asyncio.sleep(0.05)
        return value

    async def click(self, selector: str) -> None:
        """Click the middle of an element, as a mouse does."""
        find = f"const found = document.querySelector({json.dumps(selector)})"
        box = f"(() => {{ {find}; found.scrollIntoView({{block: 'center'}}); return found.getBoundingClientRect().toJSON(); }})()"
        where = await self.value(box)
        at = {"x": where["x"] + where["width"] / 2, "y": where["y"] + where["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            await self.do("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    async def screenshot(self, path: Path) -> None:
        """Save what is seen, by the file's ending."""
        taken = await self.do("Page.captureScreenshot", format=path.suffix.lstrip("."))
        path.write_bytes(base64.b64decode(taken["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] in ("error", "warning"):
                self.complaints.append(str(said["params"]["args"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.complaints.append(str(said["params"]["entry"]["text"]))
