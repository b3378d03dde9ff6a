"""Addresses as a user writes them."""

from __future__ import annotations

import pytest

from edgeattn.camera.address import addresses, is_loopback, reachable, split_address
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
