"""Memory of this process, as the kernel counts it, and what saves some of it."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from pathlib import Path

from edgeattn.timing.environment import UNAVAILABLE

_SELF = Path("/proc/self")


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
    """Give the system what opening a model has freed; the C library keeps it otherwise."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _field(file: str, name: str) -> float | str:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", (_SELF / file).read_text(), re.MULTILINE)
    except OSError:
        found = None
    return round(int(found[1]) * 1024 / 1e6, 1) if found else UNAVAILABLE
