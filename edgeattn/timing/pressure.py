"""Was the processor ours? How long tasks waited for a core, from `/proc/pressure/cpu`, and what a hypervisor took."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgeattn.timing.clock import Clock, monotonic_ns

_PRESSURE = Path("/proc/pressure/cpu")
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Pressure:
    """Two counters of the kernel; the difference of two readings says how disturbed the time between them was."""

    at_ns: int
    """When it was read."""
    waited_ns: int | None
    """Time since boot in which at least one task waited for a core; None where the kernel does not tell."""
    stolen_ns: int | None
    """Time since boot that a hypervisor gave to others while we wanted it, summed over cores; None where unknown."""

    def waited_share(self, since: Pressure) -> float | None:
        """Share of the time since an earlier reading in which some task waited for a core, 0 to 1."""
        return _share(self.waited_ns, since.waited_ns, self.at_ns - since.at_ns)

    def stolen_share(self, since: Pressure) -> float | None:
        """Cores that a hypervisor took on average since an earlier reading (0.5: half a core)."""
        return _share(self.stolen_ns, since.stolen_ns, self.at_ns - since.at_ns)


def read(clock: Clock = monotonic_ns) -> Pressure:
    """Read the counters now; costs some tens of microseconds."""
    return Pressure(clock(), _waited_ns(), _stolen_ns())


def _share(now: int | None, then: int | None, elapsed_ns: int) -> float | None:
    if now is None or then is None or elapsed_ns <= 0:
        return None
    return (now - then) / elapsed_ns


def _waited_ns() -> int | None:
    try:
        some = _PRESSURE.read_text().splitlines()[0]  # some avg10=0.03 avg60=0.05 avg300=0.07 total=7390772
        return int(some.rpartition("total=")[2]) * 1000
    except (OSError, ValueError, IndexError):
        return None


def _stolen_ns() -> int | None:
    try:
        ticks = _STAT.read_text().splitlines()[0].split()  # cpu user nice system idle iowait irq softirq steal ...
        return int(ticks[8]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return None
