"""Results to an MQTT broker, which may be away for as long as it likes.

A thread of paho's own connects, waits for a broker that is not there, and connects again. Changes of the answer are kept
while it is away and arrive when it is back (QoS 1, at most `QUEUED`); the latest one stays with the broker for whoever
asks later (retained). Single frames are worth nothing then, and are left out. `TOPIC/status` says `online` or `offline`,
the latter also where we are cut off (the will).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from edgeattn.camera.address import from_environment
from edgeattn.camera.canvas import Draws
from edgeattn.camera.lines import Tell
from edgeattn.camera.pipeline import Result
from edgeattn.camera.sinks import WAITING
from edgeattn.errors import EdgeAttnError, ExtraMissingError
from edgeattn.imaging import Picture

try:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
except ImportError as error:
    raise ExtraMissingError("paho-mqtt", "mqtt", "--mqtt") from error

PORTS = {"mqtt": 1883, "mqtts": 8883}
"""Port of each scheme where none is given; mqtts is MQTT over TLS."""
QUEUED = 1000
"""Changes that wait for the broker, at most."""
KEEPALIVE_S = 10
"""How often a silent broker is asked whether it is there."""
SLOWEST_S = 30
"""Longest pause between two tries to connect."""
_CONNECT_S = 3.0
_PARTING_S = 1.0


@dataclass(frozen=True)
class Broker:
    """Where messages go."""

    host: str
    port: int
    topic: str
    tls: bool = False
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address without the login."""
        return f"{self.host}:{self.port}/{self.topic}"


def parse_broker(text: str) -> Broker:
    """`mqtt://[NAME:PASSWORD@]HOST[:PORT]/TOPIC`, mqtts:// with TLS, or `env:NAME`: what that variable says.

    Raises:
        EdgeAttnError: it is none of them; the message holds no password.
    """
    text = from_environment(text, "--mqtt", "mqtt://HOST/TOPIC")
    with contextlib.suppress(ValueError):
        parts = urlsplit(text)
        topic = unquote(parts.path).strip("/")
        if parts.scheme in PORTS and parts.hostname and topic and not {"+", "#", "?", "\0"}.intersection(text + topic):
            user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
            port = parts.port or PORTS[parts.scheme]
            return Broker(parts.hostname, port, topic, parts.scheme == "mqtts", user, password)
    raise EdgeAttnError(
        "--mqtt must be an address with a topic, as mqtt://broker/kitchen/door, or env:NAME that holds it"
    )


class _Client(Client):
    """paho's, which keeps to itself why it could not connect."""

    why = ""

    def reconnect(self) -> MQTTErrorCode:
        try:
            return super().reconnect()
        except OSError as error:
            self.why = getattr(error, "verify_message", "") or error.strerror or str(error) or type(error).__name__
            raise


class Mqtt:
    """The sink that publishes what `tell` makes of the results, from construction to `close`."""

    name, waiting = "mqtt", WAITING

    def __init__(
        self,
        broker: Broker,
        tell: Tell,
        *,
        lasting: bool,
        several: bool = False,
        say: Callable[[str], object] = print,
    ) -> None:
        """Begin to connect; never waits.

        Args:
            broker: where to.
            tell: makes the messages.
            lasting: they are changes, each worth keeping until it is delivered, and not single frames.
            several: the results are of several cameras, each with a topic of its own, `TOPIC/0` and so on.
            say: tells how the connection is doing.
        """
        self.connects, self.delivered, self.missed = 0, 0, 0
        """Times connected; messages that reached the broker, also those to `status` (of frames: that were sent);
        messages given up."""
        self._published = 0
        self._broker, self._tell, self._lasting, self._several, self._say = broker, tell, lasting, several, say
        self._said = ""
        client = self._client = _Client(CallbackAPIVersion.VERSION2)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_publish = self._on_connect_fail, self._on_publish
        client.connect_timeout = _CONNECT_S
        client.reconnect_delay_set(1, SLOWEST_S)
        client.max_queued_messages_set(QUEUED)
        client.will_set(f"{broker.topic}/status", "offline", qos=1, retain=True)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            client.tls_set()
        client.connect_async(broker.host, broker.port, KEEPALIVE_S)
        client.loop_start()

    @property
    def draws(self) -> Draws | None:
        """No picture."""
        return "nothing"

    def write(self, result: Result, picture: Picture | None) -> None:
        """Publish; single frames only while the broker takes them."""
        message = self._tell(result)
        if message is None:
            return
        if not self._lasting and (not self._client.is_connected() or self._client.want_write()):
            self.missed += 1
            return
        qos = 1 if self._lasting else 0
        payload = json.dumps(message, ensure_ascii=False)
        topic = f"{self._broker.topic}/{result.camera}" if self._several else self._broker.topic
        sent = self._client.publish(topic, payload, qos=qos, retain=self._lasting)
        if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self.missed += 1
        else:
            self._published += 1

    def close(self) -> None:
        """Say goodbye, after what still waits; a broker that does not answer is not waited for."""
        if self._client.is_connected():
            with contextlib.suppress(RuntimeError, ValueError):  # it broke off just now
                goodbye = self._client.publish(f"{self._broker.topic}/status", "offline", qos=1, retain=True)
                goodbye.wait_for_publish(_PARTING_S)
        elif lost := self._published - (self.delivered - self.connects):  # each connection also delivers "online"
            self.missed += lost
            self._say(f"mqtt: {self._broker.shown} is away; {lost} messages were not delivered")
        self._client.disconnect()  # and its thread ends by itself: waiting for it may take as long as a name server does

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {"connects": self.connects, "delivered": self.delivered, "missed": self.missed}

    # From here on everything runs in paho's thread.

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._tell_state(f"refuses us ({reason}); trying again")
            return
        self.connects += 1
        client.publish(f"{self._broker.topic}/status", "online", qos=1, retain=True)
        self._tell_state("connected")

    def _on_disconnect(self, client: Client, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure and not self._said.startswith("refuses"):
            self._tell_state("broke off; trying again")

    def _on_connect_fail(self, client: Client, data: Any) -> None:
        if not self._said.startswith("broke"):
            self._tell_state(f"cannot be reached ({self._client.why}); trying again")

    def _on_publish(self, client: Client, data: Any, number: int, reason: Any, properties: Any) -> None:
        self.delivered += 1

    def _tell_state(self, state: str) -> None:
        """Say it when it has changed."""
        if state != self._said:
            self._said = state
            self._say(f"mqtt: {self._broker.shown} {state}")
