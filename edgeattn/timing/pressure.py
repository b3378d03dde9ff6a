"""Was the processor ours? Waiting for a core, what other programs used and a hypervisor took, as the kernel counts.

Waiting alone does not tell: an inference with many threads makes its own wait as well. It disturbs a measurement when
other programs used the cores at that time.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from edgeattn.timing.clock import Clock, monotonic_ns

_PRESSURE = Path("/proc/pressure/cpu")
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Pressure:
    """Counters of the kernel at one moment; the difference of two readings says how disturbed the time between was."""

    at_ns: int
    """When it was read."""
    waited_ns: int | None
    """Time since boot in which at least one task waited for a core; None where the kernel does not tell."""
    others_ns: int | None
    """Processor time of all but this process and those that it started, with an offset; None where it is not told."""
    stolen_ns: int | None
    """Processor time that a hypervisor gave to others while we wanted it; None where the kernel does not tell."""

    def waited_share(self, since: Pressure) -> float | None:
        """Share of the time since an earlier reading in which some task waited for a core, 0 to 1."""
        return _rate(self.waited_ns, since.waited_ns, self.at_ns - since.at_ns)

    def other_cores(self, since: Pressure) -> float | None:
        """Cores that other programs used on average since an earlier reading (0.5: half a core)."""
        cores = _rate(self.others_ns, since.others_ns, self.at_ns - since.at_ns)
        return None if cores is None else max(0.0, cores)  # the two clocks behind it differ by some ticks

    def stolen_cores(self, since: Pressure) -> float | None:
        """Cores that a hypervisor took on average since an earlier reading."""
        return _rate(self.stolen_ns, since.stolen_ns, self.at_ns - since.at_ns)


def read(clock: Clock = monotonic_ns) -> Pressure:
    """Read the counters now; costs some tens of microseconds."""
    busy_ns, stolen_ns = _processor_ns()
    own = os.times()  # of processes that we started, and that have ended
    own_ns = time.process_time_ns() + round(1e9 * (own.children_user + own.children_system))
    others_ns = None if busy_ns is None else busy_ns - own_ns
    return Pressure(clock(), _waited_ns(), others_ns, stolen_ns)


def _rate(now: int | None, then: int | None, elapsed_ns: int) -> float | None:
    if now is None or then is None or elapsed_ns <= 0:
        return None
    return (now - then) / elapsed_ns


def _waited_ns() -> int | None:
    try:
        some = _PRESSURE.read_text().splitlines()[0]  # some avg10=0.03 avg60=0.05 avg300=0.07 total=7390772
        return int(some.rpartition("total=")[2]) * 1000
    except (OSError, ValueError, IndexError):
        return None


def _processor_ns() -> tuple[int | None, int | None]:
    """Time that all cores were busy, and that was stolen from them."""
    try:
        tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        fields = _STAT.read_text().splitlines()[0].split()[1:9]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    except (OSError, ValueError, IndexError, AttributeError):
        return None, None
    return (user + nice + system + irq + softirq) * tick_ns, steal * tick_ns
