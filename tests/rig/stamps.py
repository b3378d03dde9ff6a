"""The clock that the rig's cameras burn into their frames: a strip of 64 grey blocks across the top and the bottom.

48 bits of microseconds of the monotonic clock, which all processes of a machine share, 8 bits of a frame counter and 8
of a checksum. Blocks are fractions of the width and survive JPEG, H.264 and resizing (down to 160 pixels wide, in JPEG).
A strip that is damaged, or two that differ, is no stamp: so only a frame that arrived whole has one.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

BLOCKS = 64
STRIP = 16
"""Height of a strip in rows: what JPEG and H.264 encode as one row of macroblocks."""
LEAST_HEIGHT = 160


class Stamp(NamedTuple):
    """What is burned into one frame."""

    ns: int
    """The moment just before it was encoded."""
    index: int
    """Counts the frames, modulo 256."""


def stamp_row(stamp: Stamp, width: int) -> bytes:
    """One row of grey pixels of the strip; `width` is a multiple of 64."""
    payload = (stamp.ns // 1000).to_bytes(6, "big") + bytes([stamp.index % 256])
    bits = int.from_bytes(payload + _checksum(payload), "big")
    return b"".join(
        bytes([235 if bits >> shift & 1 else 20]) * (width // BLOCKS) for shift in range(BLOCKS - 1, -1, -1)
    )


def read_stamp(picture: np.ndarray) -> Stamp | None:
    """The stamp of a frame (H, W, 3), resized or not; None unless both of its strips are whole and say the same."""
    height = picture.shape[0]
    top, bottom = _read_row(picture[height // LEAST_HEIGHT]), _read_row(picture[-1 - height // LEAST_HEIGHT])
    return top if top == bottom else None


def _read_row(row: np.ndarray) -> Stamp | None:
    centres = [(2 * block + 1) * row.shape[0] // (2 * BLOCKS) for block in range(BLOCKS)]
    raw = sum(1 << BLOCKS - 1 - place for place, x in enumerate(centres) if row[x, 1] > 127).to_bytes(8, "big")
    if _checksum(raw[:7]) != raw[7:]:
        return None
    return Stamp(1000 * int.from_bytes(raw[:6], "big"), raw[6])


def _checksum(payload: bytes) -> bytes:
    return bytes([zlib.crc32(payload) & 0xFF])
