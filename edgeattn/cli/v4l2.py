"""What a local camera offers, asked of its driver (Linux, video4linux2)."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_CAPTURE = 1
_FORMAT, _FORMAT_IOCTL = struct.Struct("=III32s4sI12x"), 0xC0405602  # struct v4l2_fmtdesc, VIDIOC_ENUM_FMT
_SIZE, _SIZE_IOCTL = struct.Struct("=I4sI6I8x"), 0xC02C564A  # struct v4l2_frmsizeenum, VIDIOC_ENUM_FRAMESIZES
_DISCRETE = 1


def formats(device: Path) -> list[str]:
    """Pixel formats with their largest sizes, as in `MJPG to 1920x1080`; empty where the device films nothing.

    Raises:
        OSError: it cannot be opened.
    """
    if sys.platform != "linux":
        return []
    node = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    try:
        return [_told(node, fourcc) for fourcc in _fourccs(node)]
    finally:
        os.close(node)


def _fourccs(node: int) -> Iterator[bytes]:
    for index in range(64):
        answer = _ask(node, _FORMAT_IOCTL, _FORMAT.pack(index, _CAPTURE, 0, b"", b"", 0))
        if answer is None:
            return
        yield _FORMAT.unpack(answer)[4]


def _told(node: int, fourcc: bytes) -> str:
    largest = (0, 0)
    for index in range(256):
        answer = _ask(node, _SIZE_IOCTL, _SIZE.pack(index, fourcc, 0, *[0] * 6))
        if answer is None:
            break
        _, _, kind, *sides = _SIZE.unpack(answer)
        width, height = sides[:2] if kind == _DISCRETE else (sides[1], sides[4])
        largest = max(largest, (width, height), key=lambda size: size[0] * size[1])
    name = fourcc.decode("ascii", "replace").strip()
    return f"{name} to {largest[0]}x{largest[1]}" if largest[0] else name


def _ask(node: int, request: int, question: bytes) -> bytes | None:
    """What the driver answers; None: it has no more."""
    import fcntl

    try:
        return fcntl.ioctl(node, request, question)
    except OSError:
        return None
