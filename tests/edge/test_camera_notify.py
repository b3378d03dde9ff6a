"""The service manager's protocol over real sockets, and the line of state."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from manager import listening

from edgeattn.camera.heart import line_of
from edgeattn.camera.notify import Notifier

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no local sockets here")


@pytest.mark.parametrize("abstract", [False, True])
def test_fields_come_in_one_message(tmp_path: Path, abstract: bool) -> None:
    with listening(tmp_path, abstract=abstract) as manager:
        notifier = Notifier({"NOTIFY_SOCKET": manager.address})
        assert notifier.send(READY=1, STATUS="two\nlines  here")
        assert manager.wait_for(lambda message: True) == {"READY": "1", "STATUS": "two lines here"}
        notifier.reloading()
        reloading = manager.wait_for(lambda message: "RELOADING" in message)
        assert int(reloading["MONOTONIC_USEC"]) > 0


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody listens", "vsock:2:1234"])
def test_nobody_who_listens_is_no_error(address: str) -> None:
    assert Notifier({"NOTIFY_SOCKET": address}).send(READY=1) is False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_how_often_a_sign_of_life_is_wanted(given: dict[str, str], expected: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/notify"} | given).watchdog_s == expected
    assert Notifier(given).watchdog_s is None


def test_the_line_of_state() -> None:
    status: dict[str, Any] = {
        "state": "running", "bundle": "signs", "source": "camera 0", "engine": "openvino", "precision": "int8", "fps": 29.97,
        "age_ms": {"p50": 14.2}, "cameras": [], "failed": [], "shadow": None, "fallback": None, "changes": [],
    }  # fmt: skip
    assert line_of(status) == "running; signs on camera 0, openvino int8; 30.0 fps, age p50 14 ms"
    status |= {
        "state": "down",
        "cameras": [{"state": "down", "states": [{"reason": "no frame comes"}]}],
        "fallback": "drift",
    }
    status["changes"] = [{"what": "reload", "outcome": "refused", "reason": "it is spoilt"}]
    status["shadow"] = {"verdict": "failed", "window_differed": 9, "window": 40}
    assert line_of(status) == (
        "down (no frame comes); signs on camera 0, openvino int8; drift: 9 of 40 answers are not float's; "
        "float has taken over from what drifted; reload refused: it is spoilt"
    )
