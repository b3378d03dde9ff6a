"""The MQTT sink against a real broker: it may be missing, refuse, freeze or die; the loop never waits for it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from calm import in_calm
from mosquitto import Mosquitto, missing

pytest.importorskip("paho.mqtt", reason="needs the extra mqtt")

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from edgeattn.bundle import Bundle
from edgeattn.camera.mqtt import Broker, Mqtt, parse_broker
from edgeattn.errors import EdgeAttnError

pytestmark = [pytest.mark.rig, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
SCRIPT = Path(__file__).parents[2] / "tools" / "run_camera.py"


class Numbered:
    """Stands in for results: `write` tells the number it is given."""

    def __call__(self, result: Any) -> dict[str, Any] | None:
        return {"number": result}


class Reader:
    """Reads all of a topic, as anybody else on the broker would."""

    def __init__(self, broker: Mosquitto, login: tuple[str, str] | None = None) -> None:
        self.messages: queue.Queue[tuple[str, str, bool]] = queue.Queue()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("door/#", qos=1)
        self._client.on_message = lambda client, data, m: self.messages.put((m.topic, m.payload.decode(), m.retain))
        self._client.reconnect_delay_set(1, 1)
        subscribed: queue.Queue[None] = queue.Queue()
        self._client.on_subscribe = lambda *_: subscribed.put(None)
        if login:
            self._client.username_pw_set(*login)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        subscribed.get(timeout=10)

    def next(self) -> tuple[str, str, bool]:
        return self.messages.get(timeout=20)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


def sink(broker: Mosquitto, said: list[str], *, lasting: bool = True) -> Mqtt:
    return Mqtt(Broker("127.0.0.1", broker.port, "door"), Numbered(), lasting=lasting, say=said.append)


def test_changes_arrive_and_the_last_one_stays(broker: Mosquitto) -> None:
    said: list[str] = []
    reader, ours = Reader(broker), sink(broker, said)
    assert reader.next() == ("door/status", "online", False)
    for number in range(3):
        ours.write(number, None)  # type: ignore[arg-type]
    assert [reader.next() for _ in range(3)] == [("door", f'{{"number": {n}}}', False) for n in range(3)]
    late = Reader(broker)
    assert sorted([late.next(), late.next()]) == [("door", '{"number": 2}', True), ("door/status", "online", True)]
    ours.close()
    assert reader.next() == ("door/status", "offline", False)
    until(lambda: ours.figures() == {"connects": 1, "delivered": 5, "missed": 0})
    assert said == [f"mqtt: 127.0.0.1:{broker.port}/door connected"]
    reader.close()
    late.close()


def test_a_broker_that_dies_is_waited_for_and_gets_what_it_missed(tmp_path: Path) -> None:
    """Missing at the start, then killed: every change arrives once it is there again, and writing never waits."""
    said: list[str] = []
    with Mosquitto(tmp_path, started=False) as broker:
        ours = sink(broker, said)
        longest = 0.0
        for number in range(5):
            began = time.monotonic()
            ours.write(number, None)  # type: ignore[arg-type]
            longest = max(longest, time.monotonic() - began)
        until(lambda: said != [])
        broker.start()
        until(lambda: ours.delivered == 6)  # the five, and "online"
        broker.stop()
        until(lambda: len(said) == 3)
        for number in range(5, 10):
            began = time.monotonic()
            ours.write(number, None)  # type: ignore[arg-type]
            longest = max(longest, time.monotonic() - began)
        broker.start()
        until(lambda: ours.delivered == 12)  # the broker has confirmed each of them
        late = Reader(broker)
        assert ("door", '{"number": 9}', True) in (late.next(), late.next())
        ours.close()
        late.close()
    where = f"mqtt: 127.0.0.1:{broker.port}/door"
    assert said == [
        f"{where} cannot be reached (Connection refused); trying again",
        f"{where} connected",
        f"{where} broke off; trying again",
        f"{where} connected",
    ]
    assert ours.figures() == {"connects": 2, "delivered": 13, "missed": 0}
    assert longest < 0.1


def test_what_never_reached_the_broker_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with Mosquitto(tmp_path, started=False) as broker:
        ours = sink(broker, said)
        for number in range(3):
            ours.write(number, None)  # type: ignore[arg-type]
        ours.close()
    assert said[-1] == f"mqtt: 127.0.0.1:{broker.port}/door is away; 3 messages were not delivered"
    assert ours.figures() == {"connects": 0, "delivered": 0, "missed": 3}


def test_frames_are_left_out_while_the_broker_is_frozen(broker: Mosquitto) -> None:
    """Its kernel still takes some; then what waits is not added to, and no write is held up."""

    def check() -> None:
        said: list[str] = []
        ours = sink(broker, said, lasting=False)
        until(lambda: ours.connects == 1)
        broker.freeze()
        ours._tell = lambda result: {"number": result, "long": "x" * 100_000}
        longest = 0.0
        for number in range(300):
            began = time.monotonic()
            ours.write(number, None)  # type: ignore[arg-type]
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.001)
        waiting = len(ours._client._out_packet)
        broker.thaw()
        ours.close()
        assert longest < 0.1
        assert ours.missed > 100
        assert waiting <= 2

    in_calm(check)


def test_a_login_is_asked_for_and_never_shown(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user runs it: the address from a variable, a wrong password first, then the right one."""
    login = ("box", "open:sesame/9")
    with Mosquitto(tmp_path, login) as broker:
        reader = Reader(broker, login)
        options = [
            "--source",
            "test",
            "--on-change",
            "0",
            "--mqtt",
            "env:BROKER",
            "--max-frames",
            "40",
            "--json",
            "r.json",
        ]
        command = [
            sys.executable,
            str(SCRIPT),
            str(tiny_bundle.path),
            "--engine",
            "onnxruntime",
            "--precision",
            "float",
        ]

        def run(password: str, *more: str) -> str:
            monkeypatch.setenv("BROKER", f"mqtt://box:{password}@127.0.0.1:{broker.port}/door")
            done = subprocess.run(
                [*command, *options, *more], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
            )
            report = (tmp_path / "r.json").read_text()
            assert "sesame" not in done.stdout + done.stderr + report
            assert list(tmp_path.glob("*.mp4")) == [], "no video is written unasked"
            (figures,) = json.loads(report)["sinks"]
            assert figures["failed"] is False
            assert json.loads(report)["frames"] == 40, "the loop did not wait"
            return done.stdout

        assert "refuses us (Not authorized); trying again" in run("open:sesame%2F8")
        assert reader.messages.empty()
        out = run("open%3Asesame%2F9")
        assert f"mqtt: 127.0.0.1:{broker.port}/door connected" in out
        assert reader.next()[:2] == ("door/status", "online")
        topic, payload, _ = reader.next()
        assert (topic, json.loads(payload)["from"]) == ("door", None)
        while reader.next()[:2] != ("door/status", "offline"):
            pass
        reader.close()


def test_a_killed_run_is_reported_by_its_will(tiny_bundle: Bundle, broker: Mosquitto, tmp_path: Path) -> None:
    reader = Reader(broker)
    options = ["--source", "test", "--mqtt", f"mqtt://127.0.0.1:{broker.port}/door"]
    command = [sys.executable, str(SCRIPT), str(tiny_bundle.path), "--engine", "onnxruntime", "--precision", "float"]
    process = subprocess.Popen([*command, *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert reader.next()[:2] == ("door/status", "online")
    topic, payload, kept = reader.next()
    assert (topic, kept) == ("door", False)
    assert json.loads(payload)["label"] in ("red", "green", "blue"), "without --on-change a message a frame"
    process.kill()
    process.wait()
    while reader.next()[:2] != ("door/status", "offline"):
        pass
    reader.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://broker/door", Broker("broker", 1883, "door")),
        ("mqtts://broker/a/b/", Broker("broker", 8883, "a/b", True)),
        ("mqtt://me:p%40ss@[::1]:99/door", Broker("::1", 99, "door", False, "me", "p@ss")),
    ],
)
def test_addresses(text: str, expected: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_broker(text) == expected
    monkeypatch.setenv("BROKER", text)
    assert parse_broker("env:BROKER") == expected
    assert "p@ss" not in repr(expected) + expected.shown


@pytest.mark.parametrize(
    "text", ["broker/door", "mqtt://:secret@broker", "mqtt://u:secret@broker:x/door", "mqtt:///door", "http://secret/a",
             "mqtt://broker/door/#", "mqtt://broker/+/secret"]
)  # fmt: skip
def test_what_is_no_address_is_not_shown(text: str) -> None:
    with pytest.raises(EdgeAttnError, match=r"mqtt://broker/kitchen/door") as told:
        parse_broker(text)
    assert "secret" not in str(told.value)


def test_a_variable_that_is_not_set() -> None:
    with pytest.raises(EdgeAttnError, match="export ABSENT=mqtt://HOST/TOPIC"):
        parse_broker("env:ABSENT")
