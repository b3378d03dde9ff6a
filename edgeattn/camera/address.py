"""Where a page is served, and how others reach it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

import psutil

from edgeattn.errors import EdgeAttnError

DEFAULT = "127.0.0.1:8080"
"""The address where none is given."""


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT`, `HOST`, `:PORT`, `[IPV6]:PORT` or nothing as host and port.

    Raises:
        EdgeAttnError: it is none of them.
    """
    default_host, _, default_port = DEFAULT.partition(":")
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{address}")
        port = int(default_port) if parts.port is None else parts.port
        if not (parts.path or parts.query or parts.username):
            return parts.hostname or default_host, port
    raise EdgeAttnError(f"--web {address} is not an address; write HOST:PORT, as {DEFAULT}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def addresses() -> Iterable[str]:
    """This machine's addresses, for another device's browser; loopback last."""
    found = [each.address for some in psutil.net_if_addrs().values() for each in some if each.family == socket.AF_INET]
    return sorted(found, key=is_loopback)


def reachable(host: str) -> str:
    """An address of this machine that others can open, where the server listens on all."""
    return host if host not in ("0.0.0.0", "::") else next(iter(addresses()), "127.0.0.1")
