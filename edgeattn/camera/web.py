"""A browser as the screen: one page with the picture, the answer, the figures and the switches.

A thread of its own serves it. The picture goes over a websocket, a JPEG with its answer a message; a browser says when it
has drawn one and then gets the latest, so that nothing queues on the way to it and a slow one skips. The JPEG is made once
for all browsers, and only while there are any.

Who may see it: on a loopback address this machine, on any other whoever has the token. A page from elsewhere that is open
in the same browser may not (its `Origin`, or the `Host` that it was tricked under, tells it from ours).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hmac
import json
import secrets
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jinja2
import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.camera.address import DEFAULT, is_loopback, reachable, split_address
from edgeattn.camera.canvas import Draws, View
from edgeattn.camera.live import Live
from edgeattn.camera.metrics import PROMETHEUS, WELL, metrics
from edgeattn.camera.pipeline import Result
from edgeattn.errors import EdgeAttnError, ExtraMissingError
from edgeattn.imaging import Picture
from edgeattn.maps import COLOURS
from edgeattn.tasks import Detections, Regions

try:
    from aiohttp import WSMsgType, web
except ImportError as error:
    raise ExtraMissingError("aiohttp", "web", "--web") from error

TEMPLATE = Path(__file__).with_name("web.html.jinja")
QUALITY = 80
"""Of the JPEG."""
WIDEST = 1280
"""Pixels across the picture in the browser, at most."""
TOKEN_LENGTH = 8
"""Characters of a token, at least."""
LIKELIEST = 3
"""Classes that are shown."""
PATIENCE_S = 10.0
"""How long a browser may take over one picture."""
_STATUS_EVERY_S = 0.25
_SNAPSHOT_S = 2.0
_END_S = 0.05
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclasses.dataclass(eq=False)
class _Client:
    """One browser that watches."""

    number: int
    """The latest picture that was sent to it."""
    ready: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """It has drawn what it was sent."""


class Web:
    """The sink that serves the page, from construction to `close`."""

    name, waiting = "web", 1

    def __init__(self, live: Live, address: str = DEFAULT, token: str | None = None) -> None:
        """Serve a run on `address` (HOST:PORT, a part may be left out; port 0: any free one).

        Raises:
            EdgeAttnError: the address cannot be served, or the token is too short.
        """
        self.host, self.port = split_address(address)
        if token is not None and len(token) < TOKEN_LENGTH:
            raise EdgeAttnError(f"--token has {len(token)} characters; give it {TOKEN_LENGTH} at least")
        self.token = token or (None if is_loopback(self.host) else secrets.token_urlsafe(16))
        """What a browser must show; None: nothing, on a loopback address."""
        self._live = live
        self._several = len(live.channels) > 1
        self._clients: set[_Client] = set()
        self._asking = 0  # requests that wait for one picture
        self._skipped = 0
        self._number, self._message, self._jpeg = 0, b"", b""
        self._status: dict[str, Any] = {}
        self._status_until = 0.0
        self._nonce = secrets.token_urlsafe(12)
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="web", daemon=True)
        self._thread.start()
        try:
            started.result()
        except OSError as error:
            why = f"{error.strerror or error}; choose another address: --web HOST:PORT"
            raise EdgeAttnError(f"{self.host}:{self.port} cannot be served: {why}") from error

    @property
    def url(self) -> str:
        """Where a browser finds it, with the token."""
        host = reachable(self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}/" + (f"?token={quote(self.token, safe='')}" if self.token else "")

    @property
    def draws(self) -> Draws | None:
        """The picture, only while somebody watches."""
        if not (self._clients or self._asking):
            return None
        # A class stands beside the picture, where there is one picture; boxes and regions stand in it.
        return "all" if self._several or self._live.pipeline.bundle.spec.task != "classify" else "attention"

    def write(self, result: Result, picture: Picture | None) -> None:
        """Encode the picture and pass it to the server's thread."""
        if picture is not None:
            self._loop.call_soon_threadsafe(self._publish, _jpeg(picture), None if self._several else _answer(result))

    def close(self) -> None:
        """End the server and every connection."""
        with contextlib.suppress(RuntimeError):  # its loop has ended already
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(1.0)

    # From here on everything runs in the server's thread.

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        self._loop, self._ending, self._came = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        app = web.Application(middlewares=[self._guard], client_max_size=4096)
        app.on_response_prepare.append(self._add_headers)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/live", self._watch),
                web.get("/snapshot.jpg", self._snapshot),
                web.get("/healthz", self._health),
                web.get("/metrics", self._metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_END_S, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self.host, self.port)
            await site.start()
            self.port = runner.addresses[0][1]
        except OSError as error:
            started.set_exception(error)
        else:
            started.set_result(None)
            await self._ending.wait()
        self._came.set()
        await runner.cleanup()

    def _publish(self, jpeg: bytes, answer: dict[str, Any] | None) -> None:
        self._number += 1
        self._jpeg, self._message = jpeg, self._packed(jpeg, answer)
        came, self._came = self._came, asyncio.Event()
        came.set()

    def _packed(self, jpeg: bytes = b"", answer: dict[str, Any] | None = None) -> bytes:
        """A message: the length of its head in 4 bytes, the head in JSON, the JPEG."""
        head = json.dumps({"answer": answer, "status": self._state()}, ensure_ascii=False).encode()
        return len(head).to_bytes(4, "big") + head + jpeg

    def _state(self) -> dict[str, Any]:
        """The run's status, made anew a few times a second."""
        now = time.monotonic()
        if now >= self._status_until:
            self._status, self._status_until = self._live.status(), now + _STATUS_EVERY_S
            self._status["dropped"]["browser"] = self._skipped
            self._status["browsers"] = len(self._clients)
        return self._status

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="this page may not be read from another site\n")
        if self.token is None:
            if not is_loopback(urlsplit(f"//{request.host}").hostname or ""):
                raise web.HTTPForbidden(text="this address is not served here\n")
        else:
            given = self._token_of(request)
            if given is None:
                raise web.HTTPUnauthorized(text="the token is missing: open the address that edgeattn printed\n")
            if not hmac.compare_digest(given.encode(errors="replace"), self.token.encode()):
                raise web.HTTPForbidden(text="wrong token: open the address that edgeattn printed\n")
        return await handler(request)  # type: ignore[no-any-return]

    def _token_of(self, request: web.Request) -> str | None:
        bearer = request.headers.get("Authorization", "")
        if bearer.startswith("Bearer "):
            return bearer.removeprefix("Bearer ")
        return request.query.get("token") or request.cookies.get(f"edgeattn-{self.port}")

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)

    async def _page(self, request: web.Request) -> web.Response:
        if self.token and "token" in request.query:  # into a cookie, and out of the address bar and its history
            response = web.Response(status=303, headers={"Location": "/"})
            response.set_cookie(f"edgeattn-{self.port}", self.token, httponly=True, samesite="Lax")
            return response
        text = _template().render(nonce=self._nonce, bundle=self._live.pipeline.bundle.name, colours=COLOURS)
        policy = (
            f"default-src 'none'; script-src 'nonce-{self._nonce}'; style-src 'nonce-{self._nonce}'; "
            "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _watch(self, request: web.Request) -> web.WebSocketResponse:
        """A browser's websocket: pictures out; `drawn`, or a view as JSON, in."""
        watching = web.WebSocketResponse(compress=False, max_msg_size=4096, timeout=_END_S)
        await watching.prepare(request)
        client = _Client(self._number)
        client.ready.set()
        self._clients.add(client)
        sender = asyncio.create_task(self._send(watching, client, request.transport))
        try:
            async for message in watching:
                if message.type is WSMsgType.TEXT and message.data == "drawn":
                    client.ready.set()
                elif message.type is WSMsgType.TEXT:
                    self._live.controls.view = self._view(message.data)
                    self._status_until = 0.0
        except (ValueError, TypeError, LookupError):
            await watching.close(code=1003, message=b"no such view")
        finally:
            self._clients.discard(client)
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender
        return watching

    def _view(self, text: str) -> View:
        asked = json.loads(text)
        block = asked["block"] if asked["block"] in self._live.controls.blocks else None
        return View(bool(asked["attention"]), block, float(asked["opacity"]), str(asked["colours"]))

    async def _send(self, watching: web.WebSocketResponse, client: _Client, transport: Any) -> None:
        """The latest picture each time the browser is ready; without one, the status twice a second."""
        try:
            while not self._ending.is_set():
                await asyncio.wait_for(client.ready.wait(), PATIENCE_S)
                if client.number == self._number:
                    await self._next(0.5)
                if self._ending.is_set():
                    break
                client.ready.clear()
                fresh = client.number != self._number
                self._skipped += max(0, self._number - client.number - 1)
                client.number = self._number
                await asyncio.wait_for(watching.send_bytes(self._message if fresh else self._packed()), PATIENCE_S)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(watching.close(code=1001, message=b"ended", drain=False), _END_S)
        except (asyncio.TimeoutError, ConnectionError):  # it has hung up, or takes nothing any more
            if transport is not None:
                transport.abort()

    async def _next(self, timeout_s: float) -> bool:
        """Wait for the next picture; False: none came."""
        try:
            await asyncio.wait_for(self._came.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return not self._ending.is_set()

    async def _snapshot(self, request: web.Request) -> web.Response:
        self._asking += 1
        try:
            if not await self._next(_SNAPSHOT_S):
                raise web.HTTPServiceUnavailable(text=f"no picture came within {_SNAPSHOT_S:g} s\n")
        finally:
            self._asking -= 1
        return web.Response(body=self._jpeg, content_type="image/jpeg")

    async def _health(self, request: web.Request) -> web.Response:
        state = self._state()
        return web.json_response(state, status=200 if state["state"] in WELL else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=metrics(self._state()).encode(), headers={"Content-Type": PROMETHEUS})


def _answer(result: Result) -> dict[str, Any]:
    """What is said of one picture."""
    answer = result.smoothed
    if isinstance(answer, Detections):
        bars = list(zip(answer.names, answer.scores.tolist(), strict=True))[:LIKELIEST]
    elif isinstance(answer, Regions):
        bars = [(answer.labels[k], float(answer.shares[k])) for k in answer.there[:LIKELIEST]]
    else:
        likely = np.argsort(-answer.probabilities, kind="stable")[:LIKELIEST]
        bars = [(answer.labels[int(i)], float(answer.probabilities[i])) for i in likely]
    return {
        "index": result.frame.index,
        "age_ms": round(result.age_ms, 1),
        "label": answer.label,
        "score": round(answer.score, 4),
        "rejected": answer.rejected,
        "likeliest": [[name, round(score, 4)] for name, score in bars],
    }


def _jpeg(picture: Picture) -> bytes:
    height, width = picture.shape[:2]
    if width > WIDEST:
        picture = np.asarray(cv2.resize(picture, (WIDEST, max(1, round(height * WIDEST / width)))), np.uint8)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
