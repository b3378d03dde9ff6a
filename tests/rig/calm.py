"""Timed checks on a machine that is shared."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from edgeattn.profiling.report import CORES_LIMIT
from edgeattn.timing import pressure


def in_calm(check: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Make a timed check up to five times, with pauses: what else runs on a build machine only ever adds, for seconds at times.

    Where most of the tries fell into times in which a hypervisor took of our cores, as the kernel counts it, no figure
    speaks for or against the code: then the check is skipped, and says how much was taken.
    """
    taken = []
    for pause_s in (1.0, 4.0, 8.0, 8.0, 0.0):
        before = pressure.read()
        try:
            return check()
        except AssertionError as error:
            failure = error
            taken.append(pressure.read().stolen_cores(before) or 0.0)
        sleep(pause_s)
    if sorted(taken)[len(taken) // 2] <= CORES_LIMIT:
        raise failure
    pytest.skip(f"no verdict: a hypervisor took {min(taken):.1f} to {max(taken):.1f} cores while this was timed")
