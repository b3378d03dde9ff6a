"""Addresses: where a page is served and how others reach it, and what of an address with a login may be seen."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

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


_PASSWORD = re.compile(r"((?:pass(?:word|wd)?|pwd)=)[^&/?#]*", re.IGNORECASE)
"""As some cameras want it, in the path or the query."""


def public_address(url: str) -> str:
    """An address as it may be shown: without login, without a password in the path, and without the query."""
    parts = urlsplit(url)
    netloc, path = parts.netloc.rpartition("@")[2], _PASSWORD.sub(r"\1...", parts.path)
    return urlunsplit(parts._replace(netloc=netloc, path=path, query="..." if parts.query else "", fragment=""))


def holds_login(url: str) -> bool:
    """Whether a login, or a password, stands in an address."""
    return "@" in urlsplit(url).netloc or _PASSWORD.search(url) is not None


def from_environment(text: str, option: str, example: str) -> str:
    """What the variable says where an option is `env:NAME`, so that no secret is seen among the processes; else the option.

    Raises:
        EdgeAttnError: there is no such variable.
    """
    if not text.startswith("env:"):
        return text
    variable = text.removeprefix("env:")
    if not os.environ.get(variable):
        raise EdgeAttnError(f"{option} {text}: the variable {variable} is not set; export {variable}={example}")
    return os.environ[variable]


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
