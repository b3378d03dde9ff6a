"""Memory of this process, as the kernel counts it, and what saves some of it."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeattn.timing.environment import UNAVAILABLE

_SELF = Path("/proc/self")
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ([-r][-w][-x][ps]) [0-9a-f]+ \S+ (\d+)")
"""A mapping in `smaps`: where it starts and ends, what is allowed there, and the file's number (0: none)."""
_DONTNEED = 4


def memory() -> dict[str, float | str]:
    """`rss_mb`, `peak_rss_mb` and `pss_mb` (pages shared with other processes counted in part), in 10^6 bytes.

    What the kernel does not tell is `"unavailable"`.
    """
    import psutil

    return {
        "rss_mb": round(psutil.Process().memory_info().rss / 1e6, 1),
        "peak_rss_mb": _field("status", "VmHWM"),
        "pss_mb": _field("smaps_rollup", "Pss"),
    }


def leave_out_converter() -> None:
    """Keep `import openvino` from its converter of other frameworks' models, 15 MB that nothing here needs.

    Its package allows for that; but for the whole process, which should be ours.
    """
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]


def give_back() -> None:
    """Give the system what opening a model needed: what was freed, which the C library keeps otherwise, and pages of libraries.

    Of those the process holds what it has touched once, though it is on disk as well. What is used again comes back by
    itself, mostly from the system's cache: of OpenVINO's 38 MB a camera loop needs none for more than a moment.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim(0)
        for start, length in _as_on_disk((_SELF / "smaps").read_text(encoding="utf-8", errors="replace")):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _DONTNEED)


def _as_on_disk(smaps: str) -> Iterator[tuple[int, int]]:
    """Start and length of what is mapped from files, cannot be written, and has no page that was changed before (proc(5))."""
    at = None
    for line in smaps.splitlines():
        if mapped := _MAPPED.match(line):
            start, end = int(mapped[1], 16), int(mapped[2], 16)
            at = (start, end - start) if mapped[3].startswith("r-") and mapped[4] != "0" else None
        elif at is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield at
            at = None


def _field(file: str, name: str) -> float | str:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", (_SELF / file).read_text(), re.MULTILINE)
    except OSError:
        found = None
    return round(int(found[1]) * 1024 / 1e6, 1) if found else UNAVAILABLE
