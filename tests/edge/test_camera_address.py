"""Addresses as a user writes them."""

from __future__ import annotations

import pytest

from edgeattn.camera.address import (
    addresses,
    from_environment,
    holds_login,
    is_loopback,
    public_address,
    reachable,
    split_address,
)
from edgeattn.errors import EdgeAttnError


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", ("127.0.0.1", 8080)), (":90", ("127.0.0.1", 90)), ("0.0.0.0", ("0.0.0.0", 8080)),
        ("box:90", ("box", 90)), ("[::1]:90", ("::1", 90)), (":0", ("127.0.0.1", 0)),
    ],
)  # fmt: skip
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["http://box:90", "box:port", "box:90/live", "me@box", ":99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(EdgeAttnError, match="is not an address; write HOST:PORT"):
        split_address(address)


def test_a_server_on_all_addresses_is_told_by_one_that_others_can_open() -> None:
    first = next(iter(addresses()))
    assert reachable("0.0.0.0") == reachable("::") == first
    assert reachable("box") == "box"
    assert not is_loopback(first) or all(map(is_loopback, addresses()))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://me:secret@door:8554/1?pwd=secret#x", "rtsp://door:8554/1?..."),
        ("rtsp://door/user=me_password=secret_channel=1.sdp", "rtsp://door/user=me_password=..."),
        ("http://door/Passwd=secret/video", "http://door/Passwd=.../video"),
    ],
)
def test_no_login_is_shown(url: str, shown: str) -> None:
    assert public_address(url) == shown
    assert holds_login(url)
    assert not holds_login("rtsp://door:8554/channel=1?stream=2")


def test_a_secret_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR", "rtsp://me:secret@door")
    assert from_environment("env:DOOR", "--source", "") == "rtsp://me:secret@door"
    assert from_environment("rtsp://door", "--source", "") == "rtsp://door"
    monkeypatch.delenv("DOOR")
    with pytest.raises(EdgeAttnError, match=r"--token env:DOOR: the variable DOOR is not set; export DOOR=\.\.\."):
        from_environment("env:DOOR", "--token", "...")
