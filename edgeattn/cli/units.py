"""Sizes and times as a command line writes them: `2GB`, `10min`."""

from __future__ import annotations

import re

from edgeattn.errors import EdgeAttnError

SIZES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""Bytes of a unit."""
TIMES = {"s": 1, "min": 60, "h": 3600, "d": 86400}
"""Seconds of a unit."""


def size(option: str, text: str) -> int:
    """`2GB` in bytes.

    Raises:
        EdgeAttnError: it is none; names the option.
    """
    number = _number(text, SIZES)
    if number is None:
        raise EdgeAttnError(f"{option} {text}: must be a size, as in 500MB or 2GB")
    return round(number)


def time_or_size(option: str, text: str) -> tuple[float | None, int | None]:
    """`10min` as (seconds, None), `500MB` as (None, bytes).

    Raises:
        EdgeAttnError: it is neither; names the option.
    """
    seconds, most_bytes = _number(text, TIMES), _number(text, SIZES)
    if not seconds and not most_bytes:
        raise EdgeAttnError(f"{option} {text}: must be a time or a size, as in 10min, 1h or 500MB")
    return seconds, None if most_bytes is None else round(most_bytes)


def _number(text: str, units: dict[str, float] | dict[str, int]) -> float | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip(), re.IGNORECASE)
    by_name = {name.lower(): unit for name, unit in units.items()}
    return float(found[1]) * by_name[found[2].lower()] if found and found[2].lower() in by_name else None
